"""The main job, small: which questions are asked, what the summary says, and one run end to end."""

import json
import shlex

import pytest
from PIL import Image

from crome import cli
from crome import quickstart as module
from crome.data.packaged import by_picture
from crome.evaluation.report.page import Score
from crome.evaluation.report.rows import ALL
from crome.quickstart import (
    AFTER,
    BEFORE,
    BLIND,
    QUESTION_ONLY,
    accuracies,
    command,
    quickstart,
    whole_groups,
)
from crome.rows import Row


def rows_on(pictures, questions=3):
    return [
        Row((p,), f"Is it {n}?", "yes" if n else "no", f"{k}/{n}", kind="odd" if n else "even")
        for k, p in enumerate(pictures)
        for n in range(questions)
    ]


def test_by_picture_takes_whole_pictures(tmp_path):
    rows = rows_on([tmp_path / f"{n}.png" for n in range(20)])
    chosen = by_picture(rows, 10, seed=0)
    assert len(chosen) == 12
    assert all([r.images for r in chosen].count(row.images) == 3 for row in chosen)
    assert chosen == by_picture(rows[::-1][::-1], 10, seed=0)
    assert chosen != by_picture(rows, 10, seed=1)
    assert sorted(r.id for r in by_picture(rows, 0, seed=0)) == sorted(r.id for r in rows)


def test_whole_groups_leave_out_what_fills_none(tmp_path):
    few, many = rows_on([tmp_path / "few.png"], 3), rows_on([tmp_path / "many.png"], 9)
    assert whole_groups([*few, *many], 4) == many[:8]
    assert whole_groups(few, 4) == []


def test_the_command_has_what_is_not_the_default():
    assert command(task="easy-vqa", steps=240, seed=0) == "crome quickstart"
    given = command(task="textile", steps=2, balance=False, checkpoint="a b")
    assert given == "crome quickstart --task=textile --steps=2 --balance=false '--checkpoint=a b'"


def test_summary_has_every_run_by_kind():
    values = {BEFORE: 0.2, AFTER: 0.91239, BLIND: 0.5, QUESTION_ONLY: 0.67}
    scores = [Score(r, g, 10, v, 0, 1) for r, v in values.items() for g in (ALL, "shape", "color")]
    summary = accuracies(scores)
    assert summary["accuracy_after"] == 0.9124
    assert {k: summary[f"accuracy_{k}"] for k in ("before", "blind", "question_only")} == {
        "before": 0.2, "blind": 0.5, "question_only": 0.67,
    }  # fmt: skip
    assert set(summary["by_kind"]) == {"shape", "color"}
    assert set(summary["by_kind"]["shape"]) == {"before", "after", "blind", "question_only"}


@pytest.fixture
def task(tmp_path, monkeypatch):
    """Red and blue pictures with two questions, as the task easy-vqa."""
    colours = ["red", "blue"] * 4
    for n, colour in enumerate(colours):
        Image.new("RGB", (28, 28), colour).save(tmp_path / f"{n}.png")

    def rows(split):
        part = range(6) if split == "train" else range(6, 8)
        return [
            Row((tmp_path / f"{n}.png",), question, answer, f"{n}/{kind}", kind=kind)
            for n in part
            for kind, question, answer in (
                ("colour", "What is the colour?", colours[n]),
                ("yes/no", "Is there a star?", "no"),
            )
        ]

    monkeypatch.setitem(module.TASKS, "easy-vqa", rows)


def test_a_whole_run(build, task, tmp_path, monkeypatch, capsys):
    pair, out, base = build(), tmp_path / "it's out", tmp_path / "base"
    pair.model.save_pretrained(base)
    pair.processor.save_pretrained(base)
    monkeypatch.setattr(module, "load", lambda *_, **__: (pair.model, pair.processor))
    for _ in range(2):  # again into the same folder: measured anew
        quickstart(out, steps=3, batch_size=4, test_questions=4, checkpoint=str(base))
    printed = [line.strip() for line in capsys.readouterr().err.splitlines()]
    (command, _) = (line for line in printed if line.startswith("crome ask"))
    cli.main([*shlex.split(command)[1:], "--dtype", "float32", "--max_new_tokens", "2"])
    start = printed.index("from crome import CromeForConditionalGeneration, CromeProcessor")
    exec("\n".join(printed[start : start + 3]), found := {})
    assert found["model"].active_adapter == "easy-vqa"
    summary = json.loads((out / "summary.json").read_text())
    assert summary["test_questions"] == 4
    assert summary["examples"] == 12
    assert summary["accuracy_question_only"] >= 0.5
    assert summary["trainable_parameters"] == 5 * 4 * 32  # five matrices of the adapter
    assert summary["train_seconds"] > 0
    assert set(summary["by_kind"]) == {"colour", "yes/no"}
    assert "accuracy" not in (out / "report.html").read_text()[:20]
    saved = {p.name for p in (out / "adapter").iterdir()}
    assert saved == {"adapter_model.safetensors", "adapter_config.json"}
    pair.model.load_adapter(out / "adapter", "task")
