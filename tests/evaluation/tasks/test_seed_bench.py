import json
from pathlib import Path

import pytest

from crome.errors import InputError
from crome.evaluation.predictions import Prediction
from crome.evaluation.scoring import score_answers
from crome.evaluation.tasks import read_records, seed_bench


def released(tmp_path: Path) -> str:
    rows = [
        {
            "question_id": identity,
            "question": "What colour is it?",
            "question_type_id": kind,
            "data_id": f"{identity}.jpg",
            "answer": "B",
            **{f"choice_{letter}": f"option {letter}" for letter in "abcd"},
        }
        for identity, kind in (("1", 3), ("2", 5), ("v3", 10))
    ]
    file = tmp_path / "SEED-Bench.json"
    file.write_text(json.dumps({"question_type": {}, "questions": rows}))
    return str(file)


def test_image_part_and_whole(tmp_path: Path) -> None:
    source = released(tmp_path)
    assert [r["id"] for r in seed_bench.SEED_IMAGE.read(source)] == ["1", "2"]
    assert [r["id"] for r in seed_bench.SEED_ALL.read(source)] == ["1", "2", "v3"]


def test_generation_and_ranking(tmp_path: Path) -> None:
    records = seed_bench.SEED_IMAGE.read(released(tmp_path))
    said = {
        "1": Prediction("1", response="B. option b", losses=(2.0, 1.0, 3.0, 4.0)),
        "2": Prediction("2", response="option b", losses=(1.0, 1.0, 1.0, 1.0)),
    }
    generated, _ = score_answers(seed_bench.SEED_IMAGE, records, said)
    assert generated.metrics["seed-image/generate"].value == 1 / 2
    assert generated.metrics["seed-image/generate/instance counting"].value == 0
    assert generated.counts["unreadable"] == 1
    ranked, _ = score_answers(seed_bench.SEED_IMAGE, records, said, "rank")
    assert ranked.metrics["seed-image/rank"].value == 1 / 2


def test_questions(tmp_path: Path) -> None:
    record = seed_bench.SEED_IMAGE.read(released(tmp_path))[0]
    ranked = seed_bench.SEED_IMAGE.question(record, "rank")
    assert ranked.prompt == "Question: What colour is it?\nAnswer:"
    assert ranked.candidates == ("option a", "option b", "option c", "option d")
    assert record["images"] == ("1.jpg",)
    assert seed_bench.SEED_IMAGE.question(record, "llava").prompt.startswith(
        "What colour is it?\nA. option a"
    )


def test_gold_letters_alone_are_enough(tmp_path: Path) -> None:
    file = tmp_path / "gold.jsonl"
    file.write_text('{"question_id": "1", "prediction": "A", "gt_answer": "A"}\n')
    (record,) = seed_bench.SEED_IMAGE.read(str(file))
    scores, _ = score_answers(seed_bench.SEED_IMAGE, [record], {"1": Prediction("1", response="A")})
    assert scores.metrics["seed-image/generate"].value == 1


def test_video_alone_has_no_image_part(tmp_path: Path) -> None:
    file = tmp_path / "seed.jsonl"
    file.write_text('{"question_id": "v1", "gt_answer": "A"}\n')
    assert len(read_records(seed_bench.SEED_ALL, str(file))) == 1
    with pytest.raises(InputError, match="none of its records belongs to seed-image"):
        read_records(seed_bench.SEED_IMAGE, str(file))
