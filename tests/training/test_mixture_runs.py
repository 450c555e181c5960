"""Runs of the verb on a mixture of data sets."""

import io
import json
import tarfile

import pytest
import yaml

from crome.errors import InputError
from crome.training.log import read_log
from crome.training.plan import plan
from crome.training.train import Optimization, train


@pytest.fixture
def folder(build, pictures, tmp_path, monkeypatch):
    """A saved base, a mixture of questions on four pictures and of text-only rows."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("CROME_FEATURES", str(tmp_path / "features"))
    pair = build()
    pair.model.save_pretrained(tmp_path / "base")
    pair.processor.save_pretrained(tmp_path / "base")
    for number, picture in enumerate(pictures):
        picture.save(tmp_path / f"{number}.png")
    shown = [
        {"image": f"{n % 4}.png", "question": f"{n}?", "answer": "a b"[: 1 + n % 3]}
        for n in range(12)
    ]
    told = [{"question": f"text {n}?", "answer": "no"} for n in range(4)]
    for name, rows in (("shown", shown), ("told", told)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sources = {
        "shown": {"file": "shown.jsonl", "templates": "short-answer"},
        "told": {"file": "told.jsonl"},
    }
    (tmp_path / "mix.yaml").write_text(json.dumps({"sources": sources}))
    return tmp_path


def run(folder, out: str, steps: int, **settings) -> list[tuple[int, float]]:
    """Trains and returns steps and losses."""
    train(
        folder / out, data=folder / "mix.yaml", checkpoint=str(folder / "base"), dtype="float32",
        optimization=Optimization(batch_size=4, epochs=2, max_steps=steps, learning_rate=1e-2,
                                  warmup_steps=0, gradient_accumulation_steps=1),
        save_steps=2, log_steps=1, sample_steps=0, **settings,
    )  # fmt: skip
    return [(x["step"], x["loss"]) for x in read_log(folder / out / "log.jsonl") if "loss" in x]


def test_a_run_on_a_mixture_stops_and_goes_on(folder):
    whole = run(folder, "whole", 4)
    assert [step for step, _ in whole] == [1, 2, 3, 4]
    run(folder, "parted", 2)
    parted = run(folder, "parted", 4)
    # the schedule of the first part was shorter: the rows are the same, the weights are not
    assert [step for step, _ in parted] == [1, 2, 3, 4]
    assert parted[0] == whole[0]
    record = yaml.safe_load((folder / "whole" / "run.yaml").read_text())
    assert record["data_fingerprint"].startswith("mixture-")


def test_other_data_are_no_continuation(folder):
    run(folder, "out", 2)
    with (folder / "told.jsonl").open("a") as file:
        file.write(json.dumps({"question": "new?", "answer": "no"}) + "\n")
    with pytest.raises(InputError, match="data_fingerprint was 'mixture-"):
        run(folder, "out", 4)


def test_a_picture_that_goes_away_on_the_way(folder):
    run(folder, "first", 1, on_bad_row="skip")  # everything decodes: the mixture is prepared
    (folder / "2.png").write_bytes(b"gone")
    losses = run(folder, "out", 6, on_bad_row="skip")
    assert [step for step, _ in losses] == [1, 2, 3, 4, 5, 6]
    skipped = [json.loads(x) for x in (folder / "out" / "skipped.jsonl").read_text().splitlines()]
    assert skipped
    assert all("2.png is not a picture" in line["reason"] for line in skipped)
    with pytest.raises(InputError, match=r"2\.png is not a picture"):
        run(folder, "strict", 6)


@pytest.mark.parametrize("views", [0, 3])
def test_a_run_on_shards(folder, views, capsys):
    with tarfile.open(folder / "0.tar", "w") as tar:
        for number in range(4):
            entry = json.dumps({"question": f"{number}?", "answer": "a"}).encode()
            for ending, content in (
                ("json", entry),
                ("png", (folder / f"{number}.png").read_bytes()),
            ):
                info = tarfile.TarInfo(f"{number}.{ending}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    (folder / "mix.yaml").write_text("shards: '*.tar'\nrows: 4\nbuffer: 2\n")
    assert [step for step, _ in run(folder, "out", 2, views=views)] == [1, 2]
    capsys.readouterr()
    plan(
        checkpoint=str(folder / "base"), data=folder / "mix.yaml", out=folder / "other",
        dtype="float32", views=views, json=True, memory=8,
    )  # fmt: skip
    assert json.loads(capsys.readouterr().out)["rows"] == 4
