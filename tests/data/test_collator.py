"""The collator, with a processor that only shows what it was given, and with the real one."""

import torch

from crome.data.collator import Collator
from crome.data.rows import Row


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
        assert Collator(shown)(items) == expected


def test_a_hand_written_batch_label_by_label(build, pictures):
    processor = build(language="vicuna").processor
    rows = [Row((pictures[0],), "no", "yes", "0"), Row((), "yes", "no no", "1")]
    batch = Collator(processor)(rows)
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
