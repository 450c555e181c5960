"""The order of rows: complete, grouped by image, a pure function of seed and position."""

import pickle
from collections import Counter
from itertools import groupby

import pytest

from crome.data.stream import RowStream
from crome.rows import Row


@pytest.fixture(scope="module")
def many():
    """Ten images with seven questions each and five text-only rows."""
    asked = [Row((f"{i}.png",), f"{q}?", "a", f"{i}/{q}") for i in range(10) for q in range(7)]
    return asked + [Row((), "t?", "a", f"text/{i}") for i in range(5)]


def ids(stream, positions=None) -> list[str]:
    return [stream[i].id for i in (range(len(stream)) if positions is None else positions)]


@pytest.mark.parametrize("per_image", [1, 2, 4, 100])
def test_every_epoch_has_every_row_once(many, per_image):
    stream = RowStream(many, epochs=3, questions_per_image=per_image)
    order = ids(stream)
    epochs = [order[i : i + 75] for i in range(0, 225, 75)]
    assert all(Counter(epoch) == Counter(row.id for row in many) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_questions_on_an_image_come_in_groups(many):
    order = ids(RowStream(many, questions_per_image=4))
    images = [name.split("/")[0] if "text" not in name else name for name in order]
    runs = [(name, len(list(run))) for name, run in groupby(images) if "text" not in name]
    longest = {name: max(n for other, n in runs if other == name) for name, _ in runs}
    # 7 questions are groups of 4, 2 and 1, which may meet
    assert len(longest) == 10
    assert all(length >= 4 for length in longest.values())
    assert sum(length >= 2 for _, length in runs) >= 15
    assert ids(RowStream(many, questions_per_image=1)) != order


def test_a_position_is_the_same_row_whatever_was_read_before(many):
    whole = ids(RowStream(many, epochs=4, seed=3))
    places = [299, 7, 150, 74, 75, 0]
    assert ids(RowStream(many, epochs=4, seed=3), places) == [whole[i] for i in places]
    assert ids(RowStream(many, epochs=4, seed=4)) != whole


def test_length_and_end(many):
    assert len(RowStream(many, epochs=0.5)) == 38
    assert len(RowStream(many[:1], epochs=0.1)) == 1
    with pytest.raises(IndexError):
        RowStream(many)[75]


def test_pictures_in_memory_group_too(pictures):
    rows = [Row((pictures[i % 2],), f"{i}?", "a", str(i)) for i in range(8)]
    order = [int(name) % 2 for name in ids(RowStream(rows, questions_per_image=4))]
    assert order in ([0] * 4 + [1] * 4, [1] * 4 + [0] * 4)


def test_it_can_be_sent_to_loader_processes(many):
    """Python 3.14 starts them by pickling."""
    stream = RowStream(many, seed=1)
    order = ids(stream)
    assert ids(pickle.loads(pickle.dumps(stream))) == order
