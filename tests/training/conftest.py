"""What the tests of runs share: a saved base, a data file beside its pictures, and a short run."""

import json
from pathlib import Path

import pytest

from crome.training.settings import Optimization
from crome.training.train import train

QUESTIONS = [("What is the colour?", "blue"), ("Is there one star?", "yes"), ("What is it?", "no")]


def write_data(path: Path, questions=QUESTIONS, count: int = 8) -> Path:
    """Rows on the four pictures beside the file, in turn."""
    rows = [
        {"image": f"{n % 4}.png", "question": q, "answer": a}
        for n in range(count)
        for q, a in [questions[n % len(questions)]]
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def place(build, pictures, tmp_path):
    """A folder with a base, four pictures and `rows.jsonl`."""
    pair = build()
    pair.model.save_pretrained(tmp_path / "base")
    pair.processor.save_pretrained(tmp_path / "base")
    for number, picture in enumerate(pictures):
        picture.save(tmp_path / f"{number}.png")
    write_data(tmp_path / "rows.jsonl")
    return tmp_path


@pytest.fixture
def short(place):
    """Trains two steps on the place's rows, but for what is given otherwise."""

    def run(out: str = "run", *, steps: int = 2, rate: float = 1e-2, batch: int = 4, **settings):
        usual = {
            "data": place / "rows.jsonl", "checkpoint": str(place / "base"), "dtype": "float32",
            "save_steps": 1, "log_steps": 1, "sample_steps": 0,
            "optimization": Optimization(
                batch_size=batch, learning_rate=rate, max_steps=steps, warmup_steps=0
            ),
        }  # fmt: skip
        train(place / out, **usual | settings)
        return place / out

    return run
