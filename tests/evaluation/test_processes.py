"""Evaluation split over processes: one predictions file, the same answers, resumable."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from PIL import Image

from crome.evaluation.evaluate import evaluate
from crome.evaluation.predictions import read_predictions
from crome.features.verbs import Caching

sys.path.insert(0, str(Path(__file__).parent))
from runs import evaluate_in


@pytest.fixture
def settings(build: Any, tmp_path: Path) -> dict[str, Any]:
    pair = build()
    pair.model.save_pretrained(tmp_path / "base")
    pair.processor.save_pretrained(tmp_path / "base")
    rows = []
    for number, colour in enumerate(("red", "green", "blue")):
        Image.new("RGB", (28, 28), colour).save(tmp_path / f"{number}.png")
        rows += [
            {"id": f"{number}-{k}", "image": f"{number}.png", "answer": colour,
             "question": f"Which colour{', really' * k}?"}
            for k in range(4)
        ]  # fmt: skip
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "data": tmp_path / "rows.jsonl", "checkpoint": str(tmp_path / "base"), "batch_size": 2,
        "dtype": "float32", "max_new_tokens": 3, "attention_pictures": False,
        "cache": Caching(use=False),
    }  # fmt: skip


def answers(out: Path) -> dict[str, str]:
    return {p.id: p.response for p in read_predictions(out / "predictions.jsonl")}


def test_two_processes_write_what_one_does(settings: dict[str, Any], tmp_path: Path) -> None:
    alone, together = tmp_path / "alone", tmp_path / "together"
    evaluate(alone, **settings)
    assert evaluate_in(2, together, **settings) == [0, 0]
    assert answers(together) == answers(alone)
    assert len(answers(together)) == 12
    assert not list(together.glob("*.part-*"))
    one, two = (json.loads((out / "scores.json").read_text()) for out in (alone, together))
    assert one["metrics"] == two["metrics"]
    assert one["baselines"] == two["baselines"]


def test_what_several_processes_left_is_gone_on_with_by_one(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    evaluate(out, **settings)
    whole = answers(out)
    lines = (out / "predictions.jsonl").read_bytes().splitlines(keepends=True)
    (out / "predictions.jsonl").write_bytes(b"".join(lines[:3]))
    part = out / "predictions.part-1.jsonl"
    part.write_bytes(b"".join(lines[5:8]) + lines[8][:20])  # killed while it wrote
    evaluate(out, **settings)
    assert answers(out) == whole
    assert len(read_predictions(out / "predictions.jsonl")) == 12
    assert not part.exists()


def test_a_bad_picture_is_refused_by_all(settings: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(b"no picture")
    assert evaluate_in(2, tmp_path / "out", **settings) == [2, 2]


def test_a_folder_of_save_to_disk_is_evaluated(settings: dict[str, Any], tmp_path: Path) -> None:
    rows = [json.loads(line) for line in settings["data"].read_text().splitlines()]
    for row in rows:
        row["image"] = str(tmp_path / row["image"])
    Dataset.from_list(rows).save_to_disk(tmp_path / "saved")
    out = tmp_path / "out"
    evaluate(out, **settings | {"data": tmp_path / "saved", "baselines": False})
    assert len(answers(out)) == 12
