"""The command line in process: help, exit codes, and one clear line for what goes wrong.

Run on tiny towers: a checkpoint folder, and a folder of pictures and rows, good and bad.
"""

import json
import os
import re
import shlex
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from subprocess import PIPE

import pytest
import torch
import yaml
from PIL import Image

from crome import cli, options
from crome.model.adapter_files import ADAPTER_CONFIG, ADAPTER_FILE
from crome.model.pretrained import BRIDGE_FILE, bridge_tensors
from crome.model.tensors import load_tensors

QUESTION = "What is the colour?"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pictures, and for each sort of bad one a data file that shows it in its last row."""
    root = tmp_path_factory.mktemp("data")
    Image.new("RGB", (28, 28), "red").save(root / "ok.png")
    Image.new("RGB", (28, 28), "red").save(root / "ok.jpg")
    (root / "cut.jpg").write_bytes((root / "ok.jpg").read_bytes()[:400])
    (root / "text.png").write_text("hello")
    (root / "empty.png").touch()
    (root / "drawing.svg").write_text("<svg/>")
    (root / "bomb.png").write_bytes(bomb())
    good = [{"image": "ok.png", "question": f"{QUESTION} {n}", "answer": "red"} for n in range(6)]
    write_rows(root / "good.jsonl", good)
    for name in ("missing.png", "cut.jpg", "text.png", "empty.png", "drawing.svg", "bomb.png"):
        write_rows(root / f"{name}.jsonl", [good[0], {**good[1], "image": name}])
    write_rows(root / "answer.jsonl", [good[0], {**good[1], "answer": " "}])
    write_rows(root / "type.jsonl", [good[0], {**good[1], "question": 3}])
    write_rows(root / "long.jsonl", [good[0], {**good[1], "question": "x " * 10_000_000}])
    return root


def bomb() -> bytes:
    """A PNG of a few bytes that says it has 10¹⁰ pixels."""
    header = struct.pack(">IIBBBBB", 100_000, 100_000, 1, 0, 0, 0, 0)
    chunks = (b"IHDR" + header, b"IDAT" + zlib.compress(b"\0"), b"IEND")
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks
    )


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def base(build, tmp_path):
    """A saved checkpoint on tiny towers."""
    pair, path = build(), tmp_path / "base"
    pair.model.save_pretrained(path)
    pair.processor.save_pretrained(path)
    return path


@pytest.fixture
def crome(capfd):
    """Runs a command; returns its exit code and what it said on stderr."""

    def run(*arguments):
        code = 0
        try:
            cli.main([str(a) for a in arguments])
        except SystemExit as end:
            code = end.code or 0
        said = capfd.readouterr()
        run.out = said.out
        return code, said.err

    return run


def training(base, data, out, *more):
    quick = ("--dtype", "float32", "--sample_steps", 0, "--optimization.max_steps", 2)
    return ("train", "--checkpoint", base, "--data", data, "--out", out, *quick, *more)


def evaluation(base, data, out, *more):
    quick = ("--dtype", "float32", "--max_new_tokens", 2)
    return ("evaluate", "--checkpoint", base, "--data", data, "--out", out, *quick, *more)


def asking(base, *more):
    return ("ask", QUESTION, "--checkpoint", base, "--dtype", "float32", *more)


def one_line(said: str) -> str:
    """The error, which must be the last thing said, on a line of its own, without a traceback."""
    assert "Traceback" not in said
    last = said.rstrip("\n").split("\n")[-1]
    assert last.startswith("crome: ")
    return last


# ---------------------------------------------------------------------- help and arguments


@pytest.mark.parametrize("verb", cli.VERBS)
def test_help_of_every_verb(crome, verb):
    code, _ = crome(verb, "--help")
    assert code == 0
    assert crome.out.startswith(f"Usage: crome {verb}")
    assert "--config" in crome.out
    example = crome.out.splitlines()[-1]  # on one line, so that it can be copied
    assert example.startswith(f"Example: crome {verb}")
    usage = crome.out.partition("Example:")[0]
    assert all(word in usage for word in example.split() if word.startswith("--"))
    places = usage.splitlines()[0].partition("[OPTIONS]")[2].split()
    typed = shlex.split(example.removeprefix(f"Example: crome {verb}"))
    assert bool(places) == bool(typed and not typed[0].startswith("--"))
    assert not re.search(r"class '|Literal\[|Optional\[|null|SUPPRESS|type:", usage)


@pytest.mark.parametrize(
    ("verb", "told"),
    [
        ("train", "Usage: crome train --out PATH [OPTIONS]"),
        ("train", "--optimization.batch_size INT Rows a step on one device. [default: 16]"),
        ("train", "in 8 or 4 bits"),  # of a group of options, from its own docstring
        ("train", "[choices: 8bit, 4bit]"),
        ("plan", "--json --no-json Print JSON instead of tables. [default: False]"),
        ("plan", "--optimization.batch_size INT Rows a step on one device. [default: 16]"),
        ("ask", "Usage: crome ask [OPTIONS] QUESTION"),
        ("ask", "Repeat the option for several."),
        ("fewshot predict", "Usage: crome fewshot predict [OPTIONS] CLASSIFIER IMAGES"),
        ("fewshot benchmark", "--shots INT... Images per class. Repeat the option for several."),
    ],
)
def test_help_shows_how_options_are_typed(crome, monkeypatch, verb, told):
    monkeypatch.setenv("COLUMNS", "200")
    crome(*verb.split(), "--help")
    assert told in " ".join(crome.out.replace("│", " ").split())


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_help_on_a_terminal_of_few_characters(encoding):
    job = subprocess.run(
        [sys.executable, "-m", "crome", "--help"], capture_output=True,
        env=os.environ | {"PYTHONIOENCODING": encoding},
    )  # fmt: skip
    assert (job.returncode, job.stderr) == (0, b"")


def test_overview_names_every_verb(crome):
    assert crome()[0] == 0
    assert all(f"  {verb} " in crome.out for verb in cli.VERBS)


def test_version(crome):
    assert crome("--version")[0] == 0
    assert crome.out.strip().count(".") == 2


def test_a_verb_runs_without_arguments(monkeypatch):
    """`crome quickstart` is the first thing a newcomer types."""
    called = []

    def verb(steps: int = 3, loud: bool = False) -> None:
        """Does nothing."""
        called.append((steps, loud))

    monkeypatch.setattr(cli, "load", lambda _: verb)
    for arguments in ([], ["--loud"], ["--loud=false"], ["--no-loud"], ["--loud", "--steps", "4"]):
        cli.main(["quickstart", *arguments])
    assert called == [(3, False), (3, True), (3, False), (3, False), (4, True)]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["fly"], "no verb 'fly'; there are"),
        (["trian"], "no verb 'trian' (meant train?)"),
        (["fewshot", "fitt"], "(meant fewshot fit?)"),
        (["train", "--out", "x", "--sed", "1"], "no option --sed (meant --seed?)."),
        (["train", "--out", "x", "--learning_rate", "1"], "(meant --optimization.learning_rate?)"),
        (["quickstart", "--output_dir", "x"], "--output_dir (meant --out?)."),
        (["train", "--out", "x", "--num_train_epochs", "1"], "(meant --optimization.epochs?)"),
        (["train", "--out", "x", "--per-device-train-batch-size", "1"], "batch_size?)"),
        (["train", "--out", "x", "--image_folder", "x"], "(meant --image_root?)"),
        (["train", "--out", "x", "--eval_steps", "2"], "(meant --tracking.validation_steps?)"),
        (["train", "--out", "x", "--resume_from_checkpoint", "x"], "goes on with the run in --out"),
        (["ask", "what?", "--resume", "x"], "no option --resume. "),
        (["train", "--out", "x", "--load_in_4bit"], "(meant --holding.quantization?)"),
        (
            ["train", "--out", "x", "--optimization.batch_size", "2.5"],
            "--optimization.batch_size: found 2.5; expected a whole number.",
        ),
        (["train", "--out", "x", "--save-steps=0.5"], "--save-steps: found 0.5; expected a whole"),
        (["fewshot", "benchmark", "x", "--shots", "[1, 2.5]"], "--shots: found [1, 2.5]; expected"),
        (["ask", "- what?"], "'- what?' begins with a hyphen"),
        (["ask", "what?", "--model", "x"], "(meant --checkpoint?)"),
        (["ask"], "question"),
        (["train", "--data", "x"], "out"),
        (["train", "--out", "x"], "--data"),
        (["train", "--out", "x", "--learning_rat", "1"], "--learning_rat"),
        (
            ["train", "--out", "x", "--stage", "fly"],
            "--stage: found fly; expected one of pretrain, in",
        ),
        (
            ["train", "--out", "x", "--optimization", "3"],
            "--optimization: found 3; expected its options, such as --optimization.learning_rate.",
        ),
        (
            ["train", "--out", "x", "--save_steps", "many"],
            "--save_steps: found many; expected a whole number.",
        ),
        (["train", "--out", "x", "--data", "x", "--optimization.batch_size", "0"], "batch_size"),
        (["train", "--out", "x", "--data", "x", "--optimization.learning_rate", "-1"], "above 0"),
        (["train", "--out", "x", "--data", "x", "--questions_per_image", "0"], "above 0"),
        (["evaluate", "--out", "x", "--data", "x", "--batch_size", "0"], "batch_size is 0"),
        (["ask", " "], "empty"),
        (["ask", "what?", "--max_new_tokens", "0"], "max_new_tokens"),
        (["validate", "nothing.jsonl"], "nothing.jsonl"),
        (["validate", "x" * 300], "too long"),
        (["params", "gpt"], "no preset 'gpt'"),
        (["assets", "--names", "gpt"], "no asset gpt"),
        (["ask", "what?", "--checkpoint", "no/where"], "no checkpoint 'no/where'"),
    ],
)
def test_wrong_arguments_are_one_line_and_code_2(crome, arguments, told):
    code, said = crome(*arguments)
    assert code == 2
    assert told in one_line(said)
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("out: x\nstagee: finetune\n", "run.yaml (meant --stage?)"),
        ("out: x\noptimization:\n  learning_rat: 1\n", "(meant --optimization.learning_rate?)"),
        ("out: x\noptimization: 3\n", "optimization is 3; expected its options"),
        ("out: x\ndata: [a]\n", 'run.yaml: found ["a"]; expected a single value.'),
        (
            "out: x\nholding: {quantization: 3}\n",
            "--holding.quantization in ",
        ),
        ("out: x\nsave_steps: many\n", "save_steps"),
        ("out: [x\n", "parsing"),
        ("- a\n", "run.yaml holds list; expected options"),
        ("seed: 1\nseed: 2\n", "seed is given twice"),
        ("seed: -1\nout: x\n", "--seed is -1"),
        (
            "out: x\noptimization: {max_steps: 2.5}\n",
            "run.yaml: found 2.5; expected a whole number.",
        ),
    ],
)
def test_wrong_yaml_is_one_line(crome, tmp_path, text, told):
    (tmp_path / "run.yaml").write_text(text)
    code, said = crome("train", "--config", tmp_path / "run.yaml")
    assert code == 2
    assert told in one_line(said)


def test_job_errors_end_with_code_1(crome, monkeypatch):
    def verb() -> None:
        raise OSError(28, "No space left on device", "file")

    monkeypatch.setattr(cli, "load", lambda _: verb)
    code, said = crome("quickstart")
    assert (code, said) == (1, "crome: No space left on device: file\n")


def test_output_that_nobody_reads_any_more_is_no_error():
    """`crome … | head -1` ends as other tools do: silently."""
    code = """
from crome import cli, options
def verb():
    "Says much."
    for _ in range(10**5):
        print("line")
cli.load = lambda _: verb
cli.main(["quickstart"])
"""
    job = subprocess.Popen([sys.executable, "-c", code], stdout=PIPE, stderr=PIPE)
    assert job.stdout.readline() == b"line\n"
    job.stdout.close()
    assert (job.wait(), job.stderr.read()) == (141, b"")


def test_a_broken_pipe_within_is_told(crome, monkeypatch):
    def verb() -> None:
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr(cli, "load", lambda _: verb)
    assert crome("quickstart") == (1, "crome: Broken pipe: while writing\n")


def test_ctrl_c_is_no_traceback(crome, monkeypatch):
    def verb() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "load", lambda _: verb)
    assert crome("quickstart") == (130, "crome: interrupted\n")


# ---------------------------------------------------------------------- bad data

BAD = {
    "missing.png": "no file",
    "cut.jpg": "decoded",
    "text.png": "not a picture",
    "empty.png": "it is empty",
    "drawing.svg": "SVG",
    "bomb.png": "89 megapixels",
}
BAD_ROWS = {"answer": "empty text", "type": "found 3", "long": "20,000,000 characters"}


@pytest.mark.parametrize(
    ("data", "told"),
    [
        *((f"{k}.jsonl", v) for k, v in BAD.items()),
        *((f"{k}.jsonl", v) for k, v in BAD_ROWS.items()),
    ],
)
def test_bad_rows_are_named_before_anything_runs(crome, folder, tmp_path, data, told):
    """Validate, train and evaluate see the same; a checkpoint is not even looked for."""
    code, said = crome("validate", folder / data)
    assert code == 2
    assert f"{data}: 1 problem" in one_line(said)
    assert "line 2" in crome.out
    assert told in crome.out
    for verb in (training, evaluation):
        code, said = crome(*verb("no/where", folder / data, tmp_path / "out"))
        assert code == 2
        assert "1 bad row of 2" in said
        assert "line 2" in said
        assert told in said
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("image", "told"), BAD.items())
def test_ask_names_a_bad_picture_before_a_checkpoint_is_looked_for(crome, folder, image, told):
    told = "no picture" if image == "missing.png" else told
    code, said = crome(*asking("no/where", "--image", folder / "ok.png", "--image", folder / image))
    assert code == 2
    assert image in one_line(said)
    assert told in said


# ---------------------------------------------------------------------- damaged checkpoints


@pytest.mark.parametrize("size", [0, 5, 3000])
def test_a_cut_checkpoint_is_named(crome, base, size):
    os.truncate(base / BRIDGE_FILE, size)
    code, said = crome(*asking(base))
    assert code == 2
    assert "model.safetensors cannot be read" in one_line(said)


def test_towers_that_are_gone_are_named(crome, base):
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"language_model_id": "no/where"}))
    code, said = crome(*asking(base))
    assert code == 2
    assert "the language model 'no/where' cannot be loaded" in one_line(said)


def test_a_cut_tokenizer_is_named(crome, base):
    for file in (base / "qformer_tokenizer").iterdir():
        file.unlink()
    code, said = crome(*asking(base))
    assert code == 2
    assert "qformer_tokenizer" in one_line(said)


def test_adapters_that_do_not_fit_are_named(crome, base, build, tmp_path):
    other = build("clip")
    other.model.save_adapter(tmp_path / "other")
    code, said = crome(*asking(base, "--adapter", tmp_path / "other"))
    assert code == 2
    assert "another base" in one_line(said)
    assert "bridge_fingerprint" in said  # seen before the model is loaded
    os.truncate(tmp_path / "other" / ADAPTER_FILE, 50)
    for folder in (tmp_path, base):
        assert crome(*asking(base, "--adapter", folder))[0] == 2
    code, said = crome(*asking(tmp_path / "other"))
    assert code == 2
    assert "task adapter" in one_line(said)


def test_a_wrong_path_of_an_adapter_is_told_before_the_model_is_loaded(crome, tmp_path):
    code, said = crome(*asking("no/where", "--adapter", tmp_path / "weld"))
    assert code == 2
    assert f"no adapter '{tmp_path / 'weld'}'" in one_line(said)
    assert "adapter_config.json and adapter_model.safetensors" in said
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / ADAPTER_CONFIG).write_text("{}")
    code, said = crome(*asking("no/where", "--adapter", tmp_path))
    assert code == 2
    assert f"is not a task adapter (meant {tmp_path / 'adapter'}?)" in one_line(said)


# ---------------------------------------------------------------------- the job itself


def test_train_evaluate_ask(crome, base, folder, tmp_path):
    """The words of the README, on towers of a few thousand parameters."""
    run, scores = tmp_path / "ünï 图", tmp_path / "eval"
    before = load_tensors(base / BRIDGE_FILE)
    assert crome(*training(base, folder / "good.jsonl", run))[0] == 0
    assert (
        crome(*evaluation(base, folder / "good.jsonl", scores, "--adapter", run / "adapter"))[0]
        == 0
    )
    assert set(json.loads(crome.out)) == {
        "model",
        "blank image",
        "no image",
        "most frequent answer",
    }
    assert {p.name for p in scores.iterdir()} >= {"scores.json", "report.html", "predictions.jsonl"}
    assert crome(*asking(base, "--image", folder / "ok.png", "--adapter", run / "adapter"))[0] == 0
    after = bridge_tensors(run)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert all(name.startswith("adapter.") for name in moved)


def test_skip_leaves_a_bad_picture_out(crome, base, folder, tmp_path, caplog):
    data = folder / "cut.jpg.jsonl"
    assert crome(*evaluation(base, data, tmp_path / "out", "--on_bad_row", "skip"))[0] == 0
    assert "skipped 1 bad row of 2" in caplog.text
    assert json.loads((tmp_path / "out" / "scores.json").read_text())["rows"] == 1


def test_a_finished_run_is_not_trained_further(crome, base, folder, tmp_path):
    run = tmp_path / "run"
    for _ in range(2):
        assert crome(*training(base, folder / "good.jsonl", run, "--save_steps", 1))[0] == 0
        assert sorted(p.name for p in run.glob("checkpoint-*")) == ["checkpoint-1", "checkpoint-2"]


def test_out_that_cannot_be_a_folder(crome, base, folder):
    for verb in (training, evaluation):
        code, said = crome(*verb(base, folder / "good.jsonl", folder / "ok.png"))
        assert code == 2
        assert "ok.png" in one_line(said)


@pytest.mark.parametrize("out", ["ok.png", "ok.png/run", "closed/run"])
def test_an_out_that_cannot_be_written_is_told_first(crome, folder, monkeypatch, out):
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != folder / "closed")
    (folder / "closed").mkdir(exist_ok=True)
    code, said = crome(*training("no/where", folder / "good.jsonl", folder / out))
    assert code == 2
    assert str(folder / out.removesuffix("/run")) in one_line(said)
    assert "give --out" in said


def test_changed_rows_are_no_continuation(crome, base, folder, tmp_path):
    data = tmp_path / "rows.jsonl"
    data.write_bytes((folder / "good.jsonl").read_bytes())
    command = training(base, data, tmp_path / "run", "--image_root", folder)
    assert crome(*command)[0] == 0
    data.write_text(data.read_text().replace('"red"', '"blue"'))
    code, said = crome(*command)
    assert code == 2
    assert "data_fingerprint was 'file-" in one_line(said)
    record = tmp_path / "run" / "run.yaml"  # of a version that did not look into files
    facts = yaml.safe_load(record.read_text())
    older = {k: v for k, v in facts.items() if k not in ("data_fingerprint", "first_rows")}
    older["crome_version"] = "0.0.9"
    record.write_text(yaml.safe_dump(older))
    assert crome(*command)[0] == 0


def test_a_failed_save_leaves_the_last_checkpoint(crome, base, folder, tmp_path, monkeypatch):
    """The second checkpoint meets a full disk; the same command then goes on from the first."""
    command = training(base, folder / "good.jsonl", tmp_path / "run", "--save_steps", 1)
    save, calls = torch.save, []

    def full(*args, **kwargs):
        calls.append(args)
        if len(calls) > 2:  # optimizer and scheduler of the first checkpoint went well
            raise RuntimeError("write failed")
        return save(*args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(torch, "save", full)
        code, said = crome(*command)
    assert code == 1
    assert "Earlier checkpoints are intact" in one_line(said)
    left = [p.name for p in (tmp_path / "run").iterdir() if p.name.startswith((".", "checkpoint"))]
    assert set(left) <= {"checkpoint-1"}
    assert crome(*command)[0] == 0
    assert (tmp_path / "run" / "checkpoint-2").is_dir()


def test_another_run_does_not_go_on_in_the_same_folder(crome, base, folder, tmp_path):
    """Else a finished folder would pass for the result of settings it never saw."""
    run, scores = tmp_path / "run", tmp_path / "eval"
    assert crome(*training(base, folder / "good.jsonl", run))[0] == 0
    code, said = crome(*training(base, folder / "good.jsonl", run, "--stage", "instruct"))
    assert code == 2
    assert "stage was 'finetune' and is 'instruct'" in one_line(said)
    longer = [*training(base, folder / "good.jsonl", run)[:-1], 3]
    assert crome(*longer)[0] == 0
    assert (run / "checkpoint-3").is_dir()
    evaluate = evaluation(base, folder / "good.jsonl", scores, "--no-baselines")
    assert crome(*evaluate)[0] == 0
    longer_answers = [3 if word == 2 else word for word in evaluate]
    for command in ((*evaluate, "--adapter", run / "adapter"), longer_answers):
        code, said = crome(*command)
        assert code == 2
        assert "was started with" in one_line(said)
    skipped = evaluation(base, folder / "type.jsonl", scores, "--on_bad_row", "skip")
    code, said = crome(*skipped, "--no-baselines")
    assert code == 2
    assert "good.jsonl" in one_line(said)
    assert "type.jsonl" in said


def parse(verb: str, *words: str) -> dict:
    chosen = cli.VERBS[verb]
    command = options.described(cli.load(chosen.function), chosen.positional)
    return options.parsed(command, words, f"crome {verb}")


@pytest.mark.parametrize(
    ("verb", "typed", "given"),
    [
        ("ask", "what? --image a", {"question": "what?", "image": [Path("a")]}),
        ("ask", "--image a what?", {"question": "what?", "image": [Path("a")]}),
        ("ask", "--image a --image b what?", {
            "question": "what?", "image": [Path("a"), Path("b")]}),
        ("fewshot predict", "c a b --top 5", {
            "classifier": Path("c"), "images": [Path("a"), Path("b")], "top": 5}),
        ("fewshot predict", "--top 5 c a", {
            "classifier": Path("c"), "images": [Path("a")], "top": 5}),
        ("fewshot benchmark", "--shots 1 --shots 4 a b", {"sets": ["a", "b"], "shots": [1, 4]}),
        ("fewshot benchmark", "a --shots [1,4]", {"sets": ["a"], "shots": [1, 4]}),
        ("params", "--json crome-tiny", {"preset": "crome-tiny", "json": True}),
        ("serve", "--adapter a=b --adapter c=d", {"adapter": ["a=b", "c=d"]}),
        ("convert", "--source s --preset p --out o --settings {branches:\\ [query]}", {
            "source": "s", "preset": "p", "out": Path("o"), "settings": {"branches": ["query"]}}),
    ],
)  # fmt: skip
def test_no_option_takes_what_belongs_elsewhere(verb, typed, given):
    """An option takes one word, is repeated for several, and places stand before or behind it."""
    assert parse(verb, *shlex.split(typed)) == given


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--seed", "1", "--seed", "2"], "--seed"),
        (["--shots", "1", "4"], "'4' belongs to no option"),
        (["--fresh", "false"], "a switch is --name, --no-name or --name=false"),
        (["--checkpoint", ""], "--checkpoint is empty"),
        (["--checkpoint="], "--checkpoint is empty"),
        (["--settings", "3"], "expected a mapping"),
        (["--settings.m", "3"], "write --settings '{m: VALUE}'"),
        (["--seed", "99999999999999999999"], "--seed is 99999999999999999999"),
        (["--optimization.learning_rate", "inf"], "learning_rate is inf"),
    ],
)
def test_what_would_be_dropped_or_misread_is_refused(crome, words, told):
    code, said = crome("train", "--out", "x", *words)
    assert code == 2
    assert told in one_line(said) or "--shots" in one_line(said)


def test_the_command_line_wins_over_a_config_wherever_it_stands(tmp_path):
    config = tmp_path / "c.yaml"
    config.write_text("out: a\nseed: 1\noptimization: {epochs: 2, batch_size: 3}\n")
    typed = ["--seed", "2", "--optimization.epochs", "5"]
    for words in (["--config", str(config), *typed], [*typed, "--config", str(config)]):
        given = parse("train", *words)
        assert (given["out"], given["seed"]) == (Path("a"), 2)
        assert (given["optimization"].epochs, given["optimization"].batch_size) == (5, 3)


def test_two_configs_add_up_and_must_agree(crome, tmp_path):
    for name, text in {"a": "out: x\nseed: 1\n", "b": "fresh: true\n", "c": "seed: 2\n"}.items():
        (tmp_path / name).write_text(text)
    a, b, c = ("--config", str(tmp_path / "a")), ("--config", str(tmp_path / "b")), tmp_path / "c"
    assert parse("train", *a, *b) == {"out": Path("x"), "seed": 1, "fresh": True}
    code, said = crome("train", *a, "--config", c)
    assert code == 2
    assert "different values for seed" in one_line(said)


LAUGHS = "a0: &a0 [1]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)
)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"\x7fELF\x00\xff", "not text"),
        (b"[" * 5000, "YAML"),
        (b"a: " + b"[" * 5000 + b"]" * 5000, "nested too deeply"),
        (LAUGHS.encode(), "more than 100,000 values"),
        (b"a: &a [*a]\n", "more than 100,000 values"),
        (b"x" * 2**21, "expected a YAML file"),
        (b"out: !!python/object/apply:os.system [ls]\n", "YAML"),
        (b"\x00", "YAML"),
        (None, "cannot be read"),
    ],
    ids=["binary", "open", "deep", "laughs", "itself", "large", "code", "null", "missing"],
)
@pytest.mark.timeout(20)
def test_a_hostile_config_is_one_line(crome, tmp_path, content, told):
    path = tmp_path / "c.yaml"
    if content is not None:
        path.write_bytes(content)
    code, said = crome("train", "--config", path)
    assert code == 2
    assert told in one_line(said)


def test_options_may_be_typed_with_hyphens(monkeypatch):
    called = []

    def verb(cross_check: str = "", json: bool = False) -> None:
        """Does nothing."""
        called.append((cross_check, json))

    monkeypatch.setitem(cli.VERBS, "verb", cli.Verb("m:verb", "does nothing"))
    monkeypatch.setattr(cli, "load", lambda _: verb)
    for words in (["--cross-check", "lmms-eval"], ["--cross-check=lmms-eval"]):
        cli.main(["verb", *words, "--json"])
    assert called == [("lmms-eval", True)] * 2
