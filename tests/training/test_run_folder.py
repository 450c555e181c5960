"""A run's folder belongs to one run: no other settings, no foreign files, no second process."""

import json
import shutil

import pytest
import torch
import yaml
from filelock import FileLock
from PIL import Image
from safetensors.torch import load_file

from crome import cli, options
from crome.checkpoints.loading import load
from crome.errors import InputError, JobError
from crome.rows import Row
from crome.training import run_folder
from crome.training.checkpoint_files import checkpoint_folders, last_checkpoint
from crome.training.log import read_log
from crome.training.settings import Optimization

RESULT = ("model.safetensors", "adapter/adapter_model.safetensors")


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


CHANGES = (
    ({"seed": 1}, "seed was 0 and is 1"),
    ({"rate": 1e-3}, "learning_rate was 0.01 and is 0.001"),
    ({"stage": "instruct"}, "stage was 'finetune' and is 'instruct'"),
    ({"dtype": "bfloat16"}, "dtype was 'float32'"),
    ({"questions_per_image": 1}, "questions_per_image"),
    ({"settings": {"max_question_tokens": 50}}, "settings was {} and is {'max_question_tokens"),
    ({"trainer": {"adam_beta2": 0.9}}, "trainer was {} and is {'adam_beta2': 0.9}"),
)


def test_a_finished_run_is_not_overwritten(short):
    """Whether it has left checkpoints or not: its record is compared whenever it is there."""
    out = short(save_steps=0)
    before = contents(out)
    for changes, message in CHANGES:
        with pytest.raises(InputError, match=message):
            short(**changes)
        assert contents(out) == before


def test_a_run_that_failed_before_it_began_keeps_no_folder(short, place):
    row = {"audio": "s.mp3", "question": "What?", "answer": "no"}
    (place / "s.mp3").write_bytes(b"ID3")
    (place / "heard.jsonl").write_text(json.dumps(row))
    with pytest.raises(InputError, match="row 0 has audio"):
        short(data=place / "heard.jsonl")
    assert (short(seed=1) / "model.safetensors").exists()


def test_other_rows_are_another_run(short, place):
    out = short()
    before = contents(out)
    (place / "others.jsonl").write_text((place / "rows.jsonl").read_text().replace("blue", "red"))
    with pytest.raises(InputError, match="data_fingerprint was"):
        short(data=place / "others.jsonl")
    assert contents(out) == before


def test_the_same_rows_at_another_place_are_the_same_run(short, place):
    short()
    (place / "moved").mkdir()
    for path in place.glob("*.png"):
        shutil.copy(path, place / "moved")
    shutil.copy(place / "rows.jsonl", place / "moved")
    out = short(data=place / "moved" / "rows.jsonl", steps=3)
    assert last_checkpoint(out).name == "checkpoint-3"


def test_other_pictures_behind_the_same_rows_are_another_run(short, place, pictures):
    short()
    (place / "others").mkdir()
    for number, picture in enumerate(pictures):
        picture.rotate(90).save(place / "others" / f"{number}.png")
    with pytest.raises(InputError, match="first rows are others, or show other pictures"):
        short(image_root=place / "others", steps=3)


def test_rows_that_are_skipped_no_longer_are_another_run(short, place):
    """The file's bytes are the same, and the rows and their order are not."""
    lines = (place / "rows.jsonl").read_text()
    (place / "rows.jsonl").write_text(lines + json.dumps(
        {"image": "cut.png", "question": "What?", "answer": "no"}) + "\n")  # fmt: skip
    (place / "cut.png").write_bytes((place / "0.png").read_bytes()[:200])
    short(on_bad_row="skip")
    with pytest.raises(InputError, match="rows was 8 and is 9"):
        short(on_bad_row="skip", check_images=False, steps=3)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "checkpoint-5", "adapter"])
def test_files_of_another_kind_are_not_replaced(tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(InputError, match=rf"holds {name} and no run\.yaml"):
        run_folder.check_folder(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_files_that_a_run_does_not_write_may_lie_there(short, place):
    (place / "run").mkdir()
    (place / "run" / "notes.txt").write_text("mine")
    short()
    assert (place / "run" / "notes.txt").read_text() == "mine"


def test_a_second_process_is_refused(short, place):
    out = short()
    before = contents(out)
    with FileLock(out / run_folder.LOCK), pytest.raises(InputError, match="another run is writing"):
        short(steps=3)
    assert contents(out) == before
    short(steps=3)


@pytest.mark.parametrize("text", ["", "optimiz", "[1, 2]", "a: [", "\x00"])
def test_a_damaged_record_is_one_line(tmp_path, text):
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(InputError, match=r"run\.yaml is damaged"):
        run_folder.claim(tmp_path, {}, write=True)
    assert (tmp_path / "run.yaml").read_text() == text


def test_a_record_that_was_cut_behind_a_line_is_damaged(tmp_path):
    """It is still YAML, and would match any settings that are missing in it."""
    record = {"stage": "finetune", "optimization": {"learning_rate": 1e-3}, "seed": 3}
    run_folder.claim(tmp_path, record, write=True)
    (tmp_path / "log.jsonl").write_text("{}\n")  # the run has begun
    run_folder.claim(tmp_path, record, write=True)
    path = tmp_path / "run.yaml"
    cut = "".join(path.read_text().splitlines(keepends=True)[:-1])
    path.write_text(cut)
    with pytest.raises(InputError, match=r"run\.yaml is damaged, .*says nothing of seed"):
        run_folder.claim(tmp_path, record, write=True)
    assert path.read_text() == cut


def test_pictures_in_memory_are_compared_with_their_palettes():
    rows = []
    for colour in ((255, 0, 0), (0, 0, 255)):
        picture = Image.new("P", (8, 6), 1)
        picture.putpalette([0, 0, 0, *colour])
        rows.append(Row((picture,), "q", "a", "1"))
    assert run_folder.first_rows(rows[:1]) != run_folder.first_rows(rows[1:])


def test_what_a_killed_run_left_unfinished_is_removed(short):
    out = short()
    for folder in (out, out / "adapter"):
        (folder / ".staging-a.json.x").touch()
    short(steps=3)
    assert not list(out.rglob(".staging-*"))


def test_a_record_is_a_config_of_the_same_run(short, place):
    """`crome train --config run.yaml` goes on with the run; with --out it is run again."""
    out = short()
    record = yaml.safe_load((out / "run.yaml").read_text())
    assert {"crome_version", "data_fingerprint", "rows", "first_rows"} <= record.keys()
    again = place / "again"
    cli.main(["train", "--config", str(out / "run.yaml"), "--out", str(again)])
    for name in RESULT:
        ours, theirs = (load_file(folder / name) for folder in (again, out))
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    command = options.described(cli.load(cli.VERBS["train"].function), False)
    words = ["--config", str(again / "run.yaml")]
    assert options.parsed(command, words, "x", recorded=cli.RECORDED)["out"] == again
    cli.main(["train", "--config", str(out / "run.yaml"), "--optimization.max_steps", "3"])
    assert last_checkpoint(out).name == "checkpoint-3"


# ---------------------------------------------------------------------- nothing that is no number


@pytest.mark.parametrize(("steps", "save_steps"), [(4, 0), (4, 1)])
def test_nothing_that_is_no_number_is_saved(short, place, steps, save_steps):
    with pytest.raises(JobError, match=r"lower the learning rate.*another --out"):
        short(steps=steps, rate=1e30, save_steps=save_steps, log_steps=100)
    out = place / "run"
    assert not (out / "model.safetensors").exists()
    assert not (out / "adapter").exists()
    assert not checkpoint_folders(out)  # finite weights so large make a loss that is none
    with pytest.raises(
        InputError, match=r"a run without a result\. Let its command go on with it\."
    ):
        load(str(out))
    short("next", rate=1e-3)  # what the message says


# ---------------------------------------------------------------------- checkpoints and logs


def test_checkpoints_that_are_not_whole_are_passed_over(short, capsys):
    """No seal, an empty one, an empty folder, a name that is no number: the one before is used."""
    out = short(steps=3, save_total_limit=3)
    newest = out / "checkpoint-3"
    (out / "checkpoint-10").mkdir()
    (out / "checkpoint-²").mkdir()
    assert last_checkpoint(out) == newest
    for content in ("null", "{}", "[]", "{", None):
        seal = newest / "files.json"
        seal.unlink() if content is None else seal.write_text(content)
        assert last_checkpoint(out).name == "checkpoint-2"
    assert "checkpoint-3 is damaged (files.json is missing)" in capsys.readouterr().err
    short(steps=3)
    assert last_checkpoint(out).name == "checkpoint-3"


def test_as_many_checkpoints_are_kept_as_wanted(short):
    out = short(steps=4, save_total_limit=3)
    assert [p.name[-1] for p in checkpoint_folders(out)] == ["2", "3", "4"]


def test_a_cut_log_loses_one_line(tmp_path):
    lines = [json.dumps({"step": n, "loss": 0.5}) for n in range(4)]
    text = "\n".join([*lines[:2], lines[2][:7], lines[3]]) + "\n\xff\n[]\n"
    (tmp_path / "log.jsonl").write_bytes(text.encode("latin-1"))
    assert [line["step"] for line in read_log(tmp_path / "log.jsonl")] == [0, 1, 3]


@pytest.mark.parametrize("steps", [0, -2])
def test_a_length_that_is_none_is_refused(steps):
    with pytest.raises(InputError, match=rf"max_steps is {steps}"):
        Optimization(max_steps=steps)
