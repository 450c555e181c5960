"""A model on a benchmark, end to end on tiny towers and fabricated records."""

import base64
import json
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from crome.errors import InputError
from crome.evaluation import run as runs
from crome.evaluation.asking import asking
from crome.evaluation.grading import Grading
from crome.evaluation.pictures import image_file
from crome.evaluation.predictions import read_predictions
from crome.evaluation.report.bars import MODEL
from crome.evaluation.run import RUNS
from crome.evaluation.scoring import score_answers
from crome.evaluation.tasks import TASKS, get_task, read_records

COLOURS = ["red", "blue", "green"]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Six AI2D-like questions on three pictures."""
    folder = tmp_path / "ai2d"
    folder.mkdir()
    rows = []
    for number, colour in enumerate(COLOURS):
        Image.new("RGB", (28, 28), colour).save(folder / f"{number}.png")
        for k in range(2):
            rows.append(
                {"id": f"{number}-{k}", "image": f"{number}.png", "options": COLOURS,
                 "question": f"Which colour is it{', really' * k}?", "answer": "ABC"[number]}
            )  # fmt: skip
    file = folder / "test.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture
def ask(build: Callable[..., Any], source: Path, tmp_path: Path, capsys) -> Callable[..., Any]:
    """Runs a benchmark; returns what is on stdout, decoded."""
    pair = build()

    def run(name: str = "ai2d", where: Path = source, **settings: Any) -> Any:
        task = get_task(name)
        settings = {"image_root": where.parent, "max_new_tokens": 3, **settings}
        out = settings.pop("out", tmp_path / "out")
        records = read_records(task, str(where))
        capsys.readouterr()
        runs.run(task, records, lambda: (pair.model, pair.processor), out, **settings)
        return json.loads(capsys.readouterr().out or "null")

    run.out = tmp_path / "out"  # type: ignore[attr-defined]
    return run


def test_generation_scores_model_and_baselines(ask: Any) -> None:
    said = ask()
    assert list(said) == ["ai2d/generate"]
    assert list(said["ai2d/generate"]) == [*RUNS, "always A"]
    scores = json.loads((ask.out / "scores.json").read_text())
    assert scores["metrics"]["ai2d/generate"]["n"] == 6
    assert scores["baselines"]["blank image"].keys() == scores["metrics"].keys()
    assert scores["settings"]["prompts"] == "llava"
    (first, *_) = read_predictions(ask.out / "predictions.jsonl")
    assert "<image>Which colour is it?" in first.prompt
    assert "A. red\nB. blue" in first.prompt
    assert first.losses is None
    assert first.generation["images"] == "shown"
    (unseen, *_) = read_predictions(ask.out / "predictions-no-image.jsonl")
    assert "<image>" not in unseen.prompt
    page = (ask.out / "report.html").read_text()
    assert "always A" in page
    assert "labels-shown" not in page  # a part that is the whole gets no bars of its own
    assert "no image" in page


def test_ranking_takes_the_smallest_loss(ask: Any) -> None:
    said = ask(protocol="rank", baselines=False)
    predictions = read_predictions(ask.out / "predictions.jsonl")
    for prediction in predictions:
        assert prediction.losses is not None
        assert prediction.prompt.count("A. red") == 0
        assert prediction.response == COLOURS[prediction.losses.index(min(prediction.losses))]
    right = sum(p.response == COLOURS[int(p.id[0])] for p in predictions)
    assert said == {"ai2d/rank": {MODEL: right / 6, "always A": 1 / 3}}


def test_loss_per_token_is_its_own_protocol(ask: Any, source: Path, tmp_path: Path) -> None:
    ask(protocol="rank-per-token", baselines=False, out=tmp_path / "means")
    ask(protocol="rank", baselines=False, out=tmp_path / "sums")
    task = get_task("ai2d")
    means = {p.id: p for p in read_predictions(tmp_path / "means" / "predictions.jsonl")}
    assert all(p.generation["length_normalised"] for p in means.values())
    with pytest.raises(InputError, match="its losses are means"):
        score_answers(task, read_records(task, str(source)), means, "rank")


def test_another_prompt_or_beams_are_part_of_the_name(ask: Any, tmp_path: Path) -> None:
    said = ask(style="instructblip", num_beams=2, baselines=False)
    assert list(said) == ["ai2d/generate[instructblip, 2 beams]"]
    with pytest.raises(InputError, match="style 'instructblip', now 'llava'"):
        ask(num_beams=2, baselines=False)


def test_a_run_killed_at_any_line_goes_on_to_the_same_file(ask: Any, tmp_path: Path) -> None:
    settings = {"baselines": False, "batch_size": 4, "attention_pictures": False}
    ask(**settings)
    file = ask.out / "predictions.jsonl"
    whole = file.read_bytes()
    for kept in (0, 1, 3, 5):
        lines = whole.splitlines(keepends=True)
        file.write_bytes(b"".join(lines[:kept]) + lines[kept][:40])
        ask(**settings)
        assert file.read_bytes() == whole


def test_unreadable_images_are_named_or_counted(ask: Any, source: Path) -> None:
    (source.parent / "1.png").write_bytes(b"not a picture")
    with pytest.raises(InputError, match=r"1 of 3 images.*record 1-0, image.*1\.png"):
        ask()
    said = ask(on_bad_row="skip", baselines=False)
    scores = json.loads((ask.out / "scores.json").read_text())
    assert scores["counts"]["missing_ids"] == 2
    assert "2 prediction ids were missing: counted as wrong" in scores["warnings"]
    assert scores["metrics"]["ai2d/generate"]["n"] == 6
    assert said["ai2d/generate"][MODEL] <= 4 / 6


def test_images_handed_on_as_jpeg_are_found(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").touch()
    assert image_file("a.png", tmp_path, tmp_path) == tmp_path / "a.jpg"
    assert image_file("b.png", tmp_path, tmp_path) == tmp_path / "b.png"


def test_encoded_images_are_kept_once(ask: Any, tmp_path: Path) -> None:
    """MMBench's table: base64, first passes alone, two questions on one picture."""
    file = BytesIO()
    Image.new("RGB", (28, 28), "red").save(file, "PNG")
    cells = ("index", "question", "A", "B", "answer", "image", "category", "l2-category")
    coded = base64.b64encode(file.getvalue()).decode()
    lines = [
        cells,
        ("1", "Which?", "red", "blue", "A", coded, "c", "d"),
        ("2", "Which then?", "red", "blue", "A", "1", "c", "d"),
    ]
    table = tmp_path / "mmbench.tsv"
    table.write_text("".join("\t".join(line) + "\n" for line in lines))
    said = ask("mmbench", table, attention_pictures=False)
    assert list(said) == ["mmbench/circular-rules"]
    assert len(read_predictions(ask.out / "predictions.jsonl")) == 4  # two passes each
    assert len(list((ask.out / "images").iterdir())) == 1


def test_records_without_question_text_are_refused(ask: Any, tmp_path: Path) -> None:
    letters = tmp_path / "seed.jsonl"
    letters.write_text('{"question_id": "1", "gt_answer": "A", "image": "1.jpg"}\n')
    with pytest.raises(InputError, match="record 1 has no question text"):
        ask("seed-image", letters)


@pytest.fixture
def mm_vet(tmp_path: Path) -> Path:
    folder = tmp_path / "mm-vet"
    folder.mkdir()
    Image.new("RGB", (28, 28), "red").save(folder / "v1.jpg")
    entry = {"imagename": "v1.jpg", "question": "What?", "answer": "red", "capability": ["rec"]}
    (folder / "images").mkdir()
    (folder / "v1.jpg").rename(folder / "images" / "v1.jpg")
    (folder / "mm-vet.json").write_text(json.dumps({"v1_0": entry, "v1_1": entry}))
    return folder / "mm-vet.json"


class Grader:
    """Gives half a point to everything."""

    name = "grader"

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, messages: Any, *, temperature: float, max_tokens: int) -> str:
        self.calls += 1
        return "0.5 since it is half <right>"


def test_a_judged_benchmark_is_graded_end_to_end(ask: Any, mm_vet: Path) -> None:
    grader = Grader()
    settings = {"grading": Grading(ask=grader, runs=2), "attention_pictures": False}
    said = ask("mm-vet", mm_vet, **settings)
    assert said == {"mm-vet/grader[crome-1]x2": dict.fromkeys(RUNS, 50.0)}
    assert (ask.out / "predictions.verdicts.jsonl").exists()
    assert "0.5 since it is half &lt;right&gt;" in (ask.out / "report.html").read_text()
    asked = grader.calls
    assert ask("mm-vet", mm_vet, **settings) == said
    assert grader.calls == asked  # nothing is asked twice


def test_the_judge_s_calls_are_told_before_they_are_made(
    ask: Any, mm_vet: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    told = []
    monkeypatch.setattr(runs.console, "print", lambda *texts, **_: told.extend(map(str, texts)))
    ask("mm-vet", mm_vet, grading=Grading(ask=Grader(), runs=2), attention_pictures=False)
    assert any("12 calls; --no-baselines makes that 4" in text for text in told)


def test_hidden_answers_are_asked_for_once_and_submitted(ask: Any, tmp_path: Path) -> None:
    Image.new("RGB", (28, 28), "red").save(tmp_path / "a.png")
    table = tmp_path / "test.tsv"
    table.write_text("index\tquestion\tA\tB\timage\n3\tWhich?\tred\tblue\ta.png\n")
    assert ask("mmbench", table, attention_pictures=False) is None
    assert len(read_predictions(ask.out / "predictions.jsonl")) == 2
    assert not list(ask.out.glob("predictions-*"))
    assert not (ask.out / "scores.json").exists()
    lines = (ask.out / "submission.tsv").read_text().splitlines()
    assert lines[0] == "index\tquestion\tA\tB\tprediction"
    assert len(lines) == 3
    assert "not scored yet" in (ask.out / "report.html").read_text()


def test_some_hidden_answers_are_refused_before_a_model_is_loaded(ask: Any, tmp_path: Path) -> None:
    table = tmp_path / "mixed.tsv"
    table.write_text(
        "index\tquestion\tA\tB\timage\tanswer\n3\tQ\tx\ty\ta.png\t\n4\tQ\tx\ty\ta.png\tA\n"
    )
    with pytest.raises(InputError, match="2 of 4 records of mmbench have no answer, such as 3"):
        ask("mmbench", table)


def test_a_limit_leaves_constant_letters_at_zero(ask: Any, tmp_path: Path) -> None:
    Image.new("RGB", (28, 28), "red").save(tmp_path / "a.png")
    table = tmp_path / "dev.tsv"
    rows = "".join(f"{k}\tWhich {k}?\tred\tblue\ta.png\tA\n" for k in range(4))
    table.write_text("index\tquestion\tA\tB\timage\tanswer\n" + rows)
    found = ask("mmbench", table, limit=1, baselines=False, attention_pictures=False)
    assert found["mmbench/circular-rules"]["always A"] == 0
    assert len(read_predictions(ask.out / "predictions.jsonl")) == 2


def test_replaced_pictures_are_not_resumed(ask: Any, source: Path) -> None:
    ask(baselines=False, attention_pictures=False)
    Image.new("RGB", (28, 28), "black").save(source.parent / "1.png")
    with pytest.raises(InputError, match=r"was started with data .*, now"):
        ask(baselines=False, attention_pictures=False)


def test_own_rows_keep_their_wording_turns_and_choices(ask: Any, tmp_path: Path) -> None:
    Image.new("RGB", (28, 28), "red").save(tmp_path / "a.png")
    file = tmp_path / "rows.jsonl"
    turns = [("human", "<image>\nWhat?"), ("gpt", "a kite"), ("human", "Which?"), ("gpt", "red")]
    rows = [
        {"id": "1", "image": "a.png", "question": "Which colour?", "answer": "red",
         "choices": ["red", "blue"]},
        {"id": "2", "image": "a.png",
         "conversations": [{"from": who, "value": text} for who, text in turns]},
    ]  # fmt: skip
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = ask("rows", file, attention_pictures=False)
    assert found.keys() == {*RUNS, "most frequent answer"}
    prompts = {p.id: p.prompt for p in read_predictions(ask.out / "predictions.jsonl")}
    assert "Which colour?<|end|>" in prompts["1"]  # as it stands, without a list of options
    assert "a kite<|end|><|user|>Which?" in prompts["2/1"]
    ranked = ask("rows", file, protocol="rank", limit=1, baselines=False, out=tmp_path / "ranked")
    assert set(ranked) == {"model", "most frequent answer"}


def test_without_a_judge_the_answers_wait(ask: Any, mm_vet: Path) -> None:
    assert ask("mm-vet", mm_vet, baselines=False) is None
    assert len(read_predictions(ask.out / "predictions.jsonl")) == 2
    assert not (ask.out / "scores.json").exists()
    assert "not scored yet" in (ask.out / "report.html").read_text()


def test_every_protocol_of_every_task_has_its_mode() -> None:
    seen = 0
    for name in TASKS:
        task = get_task(name)
        for protocol in task.protocols:
            how = asking(task, protocol, None, Grading())
            assert how.ranked == ("rank" in protocol)
            assert how.style == ("rank" if how.ranked else task.style)
            assert how.per_token == protocol.endswith("-per-token")
            seen += 1
    assert seen >= 25
    with pytest.raises(InputError, match="no protocol 'x'"):
        asking(get_task("mme"), "x", None, Grading())
