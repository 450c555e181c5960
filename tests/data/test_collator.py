"""The collator, with a processor that only shows what it was given, and with the real one."""

import json

import pytest
import torch
from PIL import Image

from crome.data.collator import PATIENCE, Collator
from crome.errors import InputError, JobError
from crome.images import View, load_image
from crome.model.lengths import Room
from crome.model.processing import arguments
from crome.rows import Row


class Called:
    """A processor that hands what it is called with to a function."""

    media = ("image",)

    def __init__(self, function):
        self.function = function

    def encode(self, rows, answers=False):
        return self.function(**arguments(rows, answers))

    def reads_whole(self, question, answer=""):
        return True


def shown(**kwargs):
    return {name: list(value) for name, value in kwargs.items()}


def test_rows_and_groups_of_rows_become_one_batch(pictures):
    one = Row((pictures[0],), "What?", "star", "0", history=(("Who?", "me"),))
    two, three = Row((), "Why?", "so", "1"), Row((pictures[0], pictures[1]), "How?", "2", "2")
    expected = {
        "images": [one.images, (), three.images],
        "text": ["What?", "Why?", "How?"],
        "answers": ["star", "so", "2"],
        "histories": [(("Who?", "me"),), (), ()],
    }
    for items in ([one, two, three], [one, [two, three]], [[one, two, three]]):
        assert Collator(Called(shown), Room(None))(items) == expected


def test_a_hand_written_batch_label_by_label(build, pictures):
    processor = build(language="vicuna").processor
    rows = [Row((pictures[0],), "no", "yes", "0"), Row((), "yes", "no no", "1")]
    batch = Collator(processor, Room(None))(rows)
    encode = lambda text: processor.tokenizer(text, add_special_tokens=False)["input_ids"]  # noqa: E731
    (yes,), (no,), no_no = (encode(text) for text in ("yes", "no", "no no"))
    bos, end, pad = 1, 2, 0
    long = [bos, yes, *no_no, end]
    fill = len(long) - 4
    assert batch["input_ids"].tolist() == [[bos, no, yes, end, *[pad] * fill], long]
    assert batch["labels"].tolist() == [
        [-100, -100, yes, end, *[-100] * fill],
        [-100, -100, *no_no, end],
    ]
    assert batch["attention_mask"].tolist() == [[1] * 4 + [0] * fill, [1] * len(long)]
    assert batch["image_index"].tolist() == [[0], [-1]]
    assert batch["visual_position"].tolist() == [0, 2]
    assert all(isinstance(value, torch.Tensor) for value in batch.values())


# ---------------------------------------------------------------------- pictures that go away


@pytest.fixture
def on_files(tmp_path, pictures):
    """Rows on two pictures in files, and a text-only row."""
    for number in range(2):
        pictures[number].save(tmp_path / f"{number}.png")
    rows = [Row((tmp_path / f"{n % 2}.png",), f"{n}?", "a", str(n)) for n in range(4)]
    return [*rows, Row((), "t?", "a", "text")]


def asked(batch) -> list[str]:
    return batch["text"]


def reading(**kwargs):
    """In the processor's place: reads what it is given."""
    for images in kwargs["images"]:
        for image in images:
            load_image(image)
    return kwargs


def test_rows_whose_picture_went_away_are_left_out_and_written_down(on_files, tmp_path, caplog):
    log = tmp_path / "skipped.jsonl"
    collate = Collator(Called(reading), Room(None), log)
    assert len(asked(collate(on_files))) == 5
    on_files[1].images[0].unlink()
    assert asked(collate(on_files)) == ["0?", "2?", "t?"]
    assert asked(collate([on_files[1]])) == ["0?"]  # nothing left: an earlier row again
    written = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["id"] for line in written] == ["1", "3", "1"]
    assert "no picture" in written[0]["reason"]
    assert "left out rows of a batch: no picture" in caplog.text
    with pytest.raises(InputError, match="no picture"):
        Collator(Called(reading), Room(None))(on_files)


def test_a_disk_that_went_away_ends_the_run(on_files, tmp_path):
    collate = Collator(Called(reading), Room(None), tmp_path / "skipped.jsonl")
    collate(on_files)
    for row in on_files[:2]:
        row.images[0].unlink()
    with pytest.raises(JobError, match=r"1 picture in succession .* Is a disk away"):
        collate(on_files[:1])  # nor can the earlier row be read


def test_many_unreadable_pictures_in_succession_end_the_run(on_files, tmp_path):
    collate = Collator(Called(reading), Room(None), tmp_path / "skipped.jsonl")
    collate(on_files[-1:])  # without picture, so that it may stand in for long
    on_files[0].images[0].unlink()
    for _ in range(PATIENCE - 1):
        assert asked(collate(on_files[:1])) == ["t?"]
    with pytest.raises(JobError, match=f"{PATIENCE} pictures in succession"):
        collate(on_files[:1])


def test_an_error_that_is_no_pictures_is_raised(on_files, tmp_path):
    def failing(**kwargs):
        raise InputError("something else")

    with pytest.raises(InputError, match="something else"):
        Collator(Called(failing), Room(None), tmp_path / "skipped.jsonl")(on_files)


def test_a_view_of_a_picture_that_breaks_later_costs_its_row_alone(tmp_path):
    good, bad = tmp_path / "good.png", tmp_path / "bad.png"
    Image.new("RGB", (8, 8)).save(good)
    bad.write_bytes(b"no picture")

    def sizes(images, **_):
        return {"sizes": [load_image(i).size for row in images for i in row]}

    rows = [Row((View(path, 1),), "q", "a", path.stem) for path in (good, bad)]
    assert len(Collator(Called(sizes), Room(None), tmp_path / "skipped.jsonl")(rows)["sizes"]) == 1
    assert json.loads((tmp_path / "skipped.jsonl").read_text())["id"] == "bad"
