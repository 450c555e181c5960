import json
from pathlib import Path

import pytest

from crome.errors import InputError
from crome.evaluation import vqa_text
from crome.evaluation.predictions import Prediction
from crome.evaluation.scoring import score_answers
from crome.evaluation.tasks import vqav2


@pytest.mark.parametrize(
    ("response", "normal"),
    [
        ("Yes.", "yes"),
        ("  two\tred\nkites ", "2 red kites"),
        ("A kite on the roof", "kite on roof"),
        ("dont know", "don't know"),
        ("couldn'tve", "couldn't've"),
        ("3.5 m", "3.5 m"),
        ("1,000 kites", "1000 kites"),
        ("black/white", "black white"),  # no mark beside a space: spaces
        ("black/white, red", "black white red"),
        ("black / white", "black white"),
        ("none", "0"),
        ("black-and-white", "black and white"),
        ("x.y.5", "xy.5"),
        ("", ""),
    ],
)
def test_normalize(response: str, normal: str) -> None:
    assert vqav2.normalize(response) == normal


def test_contractions_are_of_one_forgotten_apostrophe() -> None:
    assert vqa_text.CORRECTED["yalld've"[:4] + "'d've"] == "y'all'd've"
    assert vqa_text.CORRECTED["'ows'at"] == "'ow's'at"
    assert vqa_text.CORRECTED["oclock"] == "o'clock"
    assert vqa_text.CORRECTED["twas"] == "'twas"
    assert "well" not in vqa_text.CORRECTED


@pytest.mark.parametrize("agreeing", range(11))
def test_accuracy_is_the_mean_over_leaving_one_out(agreeing: int) -> None:
    annotators = ["red"] * agreeing + ["blue"] * (10 - agreeing)
    sets = [annotators[:k] + annotators[k + 1 :] for k in range(10)]
    mean = sum(min(1.0, given.count("red") / 3) for given in sets) / 10
    assert vqav2.accuracy("red", annotators) == pytest.approx(mean)


def test_annotators_keep_their_punctuation_only_when_they_agree() -> None:
    assert vqav2.accuracy("t shirt", ["t-shirt"] * 10) == 0
    assert vqav2.accuracy("t shirt", ["t-shirt"] * 9 + ["shirt"]) == 1


def released(folder: Path) -> str:
    questions = [
        {"question_id": k, "image_id": 42, "question": f"Which colour? {k}"} for k in (420, 421)
    ]
    annotations = [
        {
            "question_id": q["question_id"],
            "image_id": 42,
            "answer_type": "other",
            "multiple_choice_answer": "red",
            "answers": [{"answer": "red", "answer_id": k} for k in range(10)],
        }
        for q in questions
    ]
    name = "v2_OpenEnded_mscoco_val2014_questions.json"
    (folder / name).write_text(json.dumps({"questions": questions}))
    (folder / "v2_mscoco_val2014_annotations.json").write_text(
        json.dumps({"annotations": annotations})
    )
    return str(folder)


def test_reads_the_released_folder_or_the_annotations_alone(tmp_path: Path) -> None:
    record = vqav2.VQAV2.read(released(tmp_path))[0]
    assert record["images"] == ("COCO_val2014_000000000042.jpg",)
    assert vqav2.VQAV2.question(record, "llava").prompt.startswith("Which colour? 420\nAnswer")
    alone = vqav2.VQAV2.read(str(tmp_path / "v2_mscoco_val2014_annotations.json"))
    assert [r["id"] for r in alone] == ["420", "421"]
    (tmp_path / "v2_other_annotations.json").write_text("{}")
    with pytest.raises(InputError, match="expected one file"):
        vqav2.VQAV2.read(str(tmp_path))


def test_score(tmp_path: Path) -> None:
    records = vqav2.VQAV2.read(released(tmp_path))
    scores, baselines = score_answers(
        vqav2.VQAV2, records, {"420": Prediction("420", response="The Red.")}
    )
    assert scores.metrics["vqav2/official"].value == 50
    assert scores.metrics["vqav2/official/other"].n == 2
    assert baselines["always red"]["vqav2/official"] == 100
