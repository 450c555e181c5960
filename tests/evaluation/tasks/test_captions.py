import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest

from crome.errors import InputError
from crome.evaluation.predictions import Prediction
from crome.evaluation.scoring import score_answers
from crome.evaluation.tasks import read_records
from crome.evaluation.tasks.captions import CAPTIONS, SENTENCE, plain

needs_library = pytest.mark.skipif(
    find_spec("pycocoevalcap") is None, reason="pycocoevalcap is not installed: crome[captions]"
)
needs_java = pytest.mark.skipif(shutil.which("java") is None, reason="there is no java")
COCO = {
    "images": [{"id": 7, "file_name": "7.jpg"}, {"id": 8, "file_name": "8.jpg"}],
    "annotations": [
        {"image_id": 7, "caption": "A red square on a white ground."},
        {"image_id": 8, "caption": "Two dogs run along the beach."},
        {"image_id": 7, "caption": "One red square"},
    ],
}


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    file = tmp_path / "captions_val2014.json"
    file.write_text(json.dumps(COCO))
    return file


def said(**responses: str) -> dict[str, Prediction]:
    return {key[1:]: Prediction(key[1:], response=text) for key, text in responses.items()}


def test_cocos_annotations_are_read(coco: Path) -> None:
    records = read_records(CAPTIONS, str(coco))
    assert [(r["id"], len(r["answer"]), r["images"]) for r in records] == [
        ("7", 2, ("7.jpg",)),
        ("8", 1, ("8.jpg",)),
    ]
    assert CAPTIONS.question(records[0], "llava").prompt == SENTENCE
    assert CAPTIONS.question(records[0], "instructblip").prompt == "A short image description:"


def test_rows_with_one_caption_or_several(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    rows = [{"image": "a.png", "captions": ["x", "y"]}, {"image": "b.png", "answer": "z"}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [r["answer"] for r in read_records(CAPTIONS, str(file))] == [("x", "y"), ("z",)]


def test_captions_of_an_unknown_image_are_named(coco: Path) -> None:
    coco.write_text(json.dumps({"images": [], "annotations": COCO["annotations"]}))
    with pytest.raises(InputError, match="image 7 has captions and no entry"):
        read_records(CAPTIONS, str(coco))


@needs_library
@pytest.mark.parametrize("protocol", ["cider-plain", pytest.param("cider", marks=needs_java)])
def test_cider_of_equal_other_and_missing_captions(coco: Path, protocol: str) -> None:
    """Equal to the only reference is 10; half of two references' mean; nothing in common is 0."""
    records = read_records(CAPTIONS, str(coco))
    given = said(_7="nothing alike\there", _8="Two dogs run along the beach")
    scores, baselines = score_answers(CAPTIONS, records, given, protocol)
    assert scores.rows == {"7": 0.0, "8": pytest.approx(10.0, abs=1e-6)}
    assert scores.metrics[f"captions/{protocol}"].value == pytest.approx(5.0, abs=1e-6)
    missing, _ = score_answers(CAPTIONS, records, said(_8="Two dogs"), protocol)
    assert missing.rows["7"] == 0
    assert baselines["another image's caption"][f"captions/{protocol}"] < 1


def test_plain_tokens() -> None:
    assert plain({"a": ["It's A red-brown dog."]}) == {"a": ["it s a red brown dog"]}


def test_one_image_has_no_cider(coco: Path) -> None:
    records = read_records(CAPTIONS, str(coco))[:1]
    with pytest.raises(InputError, match=r"at least two|crome\[captions\]"):
        score_answers(CAPTIONS, records, said(_7="x"), "cider-plain")
