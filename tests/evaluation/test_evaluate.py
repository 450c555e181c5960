"""From rows to scores: batches, resuming, what is counted and how."""

import json
import weakref
from dataclasses import replace

import pytest
import torch
from PIL import Image

from crome.errors import InputError, JobError
from crome.evaluation import predict as predicting
from crome.evaluation.answers import exact_match, vqa_accuracy
from crome.evaluation.evaluate import evaluate
from crome.evaluation.predict import batches, predict
from crome.evaluation.predictions import PredictionWriter, read_predictions
from crome.evaluation.report.rows import ALL, examples, score_run
from crome.images import load_image
from crome.rows import Row


@pytest.fixture
def asked(pictures):
    """Ten questions of several lengths on three pictures, two of them without any."""
    return [
        Row((pictures[n % 3],) if n % 5 else (), f"Is there a star{' or two' * n}?", "no", str(n))
        for n in range(10)
    ]


def test_batches_hold_every_row_once_with_pictures_together(pictures):
    rows = [Row((pictures[n % 2],), "What?", "x", str(n)) for n in range(8)]
    made = list(batches(rows, 4))
    assert [len(batch) for batch in made] == [4, 4]
    assert sorted(row.id for batch in made for row in batch) == [row.id for row in rows]
    assert all(len({id(row.images[0]) for row in batch}) == 1 for batch in made)


def test_an_interrupted_run_goes_on_to_the_same_file(build, asked, tmp_path):
    pair = build()
    whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    said = predict(pair.model, pair.processor, asked, whole, batch_size=4, max_new_tokens=4)
    assert list(said) == [p.id for p in read_predictions(whole)]
    lines = whole.read_bytes().splitlines(keepends=True)
    cut.write_bytes(b"".join(lines[:4]) + lines[4][:30])  # killed while it wrote
    again = predict(pair.model, pair.processor, asked, cut, batch_size=4, max_new_tokens=4)
    assert again == said
    assert sorted(cut.read_bytes().splitlines()) == sorted(whole.read_bytes().splitlines())


def test_batch_size_does_not_change_answers(build, asked, tmp_path):
    pair = build()
    runs = [
        predict(pair.model, pair.processor, asked, tmp_path / f"{n}.jsonl", batch_size=n)
        for n in (1, 10)
    ]
    assert runs[0] == runs[1]


def test_what_is_asked_several_times_is_answered_once(build, asked, tmp_path, monkeypatch):
    pair = build()
    rows = [*asked, *(replace(row, id=f"{row.id} again") for row in asked)]
    sizes, answer = [], predicting.answer
    monkeypatch.setattr(
        predicting, "answer", lambda *a, **k: sizes.append(len(a[2])) or answer(*a, **k)
    )
    said = predict(pair.model, pair.processor, rows, tmp_path / "p.jsonl", max_new_tokens=4)
    assert (sum(sizes), len(said)) == (len(asked), len(rows))
    assert all(said[row.id] == said[f"{row.id} again"] for row in asked)


def test_other_weights_or_settings_do_not_mix(build, asked, tmp_path, randomise):
    pair, path = build(), tmp_path / "p.jsonl"
    predict(pair.model, pair.processor, asked[:3], path, max_new_tokens=4)
    with pytest.raises(InputError, match="max_new_tokens 4, now 5"):
        predict(pair.model, pair.processor, asked, path, max_new_tokens=5)
    randomise(pair.model.adapter)
    with pytest.raises(InputError, match="checkpoint"):
        predict(pair.model, pair.processor, asked, path, max_new_tokens=4)


def test_a_blank_picture_makes_all_pictures_alike(build, pictures, tmp_path):
    pair = build()
    rows = [
        Row((picture,), "What is the colour?", "x", str(n)) for n, picture in enumerate(pictures)
    ]
    blind = predict(pair.model, pair.processor, rows, tmp_path / "b.jsonl", sight="blank")
    seen = predict(pair.model, pair.processor, rows, tmp_path / "s.jsonl")
    assert len(set(blind.values())) == 1
    assert len(set(seen.values())) > 1


def test_predictions_say_prompt_settings_and_weights(build, asked, tmp_path):
    pair, path = build(), tmp_path / "p.jsonl"
    predict(pair.model, pair.processor, asked[1:2], path, max_new_tokens=4)
    line = json.loads(path.read_text())
    assert line["prompt"] == f"<s><|user|><image>{asked[1].question}<|end|><|assistant|>"
    generation = line["generation"]
    assert generation.keys() == {
        "images", "batch_size", "do_sample", "max_new_tokens", "dtype", "device", "attention",
        "preprocessing", "template",
    }  # fmt: skip
    assert (generation["dtype"], generation["device"], generation["batch_size"]) == (
        "float32", "cpu", 32,
    )  # fmt: skip
    assert line["checkpoint"].count("/") == 1
    assert line["pictures"] == 1


@pytest.mark.parametrize("what", ["dtype", "batch_size", "preprocessing", "template"])
def test_settings_that_change_answers_do_not_mix(build, asked, tmp_path, monkeypatch, what):
    pair, path, size = build(), tmp_path / "p.jsonl", 32
    predict(pair.model, pair.processor, asked[:3], path, max_new_tokens=4)
    match what:
        case "dtype":
            pair.model.language_model.to(torch.bfloat16)
        case "batch_size":
            size = 2
        case "preprocessing":
            monkeypatch.setattr(pair.processor.image_processor, "do_normalize", False)
        case "template":
            render = pair.processor.render
            monkeypatch.setattr(pair.processor, "render", lambda *a: f"Today. {render(*a)}")
    with pytest.raises(InputError, match=f"{what} .*, now .*give the same settings"):
        predict(pair.model, pair.processor, asked, path, batch_size=size, max_new_tokens=4)
    assert len(read_predictions(path)) == 3


def test_rows_say_how_many_pictures_were_shown(build, asked, tmp_path):
    pair = build()
    for sight, shown in (("shown", 1), ("blank", 1), ("none", 0)):
        path = tmp_path / f"{sight}.jsonl"
        predict(pair.model, pair.processor, asked, path, max_new_tokens=1, sight=sight)
        counts = {p.id: p.pictures for p in read_predictions(path)}
        assert counts == {row.id: shown if row.images else 0 for row in asked}


def test_blank_pictures_are_made_batch_by_batch(build, tmp_path, monkeypatch):
    pair, made, blank = build(), [], predicting.blank
    rows = []
    for n in range(24):  # each of another size
        path = tmp_path / f"{n}.png"
        Image.new("RGB", (20 + n, 30)).save(path)
        rows.append(Row((path,), "What is the colour?", "x", str(n)))
    monkeypatch.setitem(
        predicting.SIGHTS, "blank", lambda row: made.append(weakref.ref(b := blank(row))) or b
    )
    alive = []
    answer = predicting.answer
    monkeypatch.setattr(
        predicting, "answer",
        lambda *a, **k: alive.append(sum(r() is not None for r in made)) or answer(*a, **k),
    )  # fmt: skip
    predict(
        pair.model, pair.processor, rows, tmp_path / "p.jsonl", sight="blank", batch_size=4,
        max_new_tokens=1,
    )  # fmt: skip
    assert len(made) == 24
    assert max(alive) <= 8  # this batch's, and the one before


def test_the_size_of_a_turned_picture_is_that_shown(tmp_path):
    path = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20)).save(path, exif=exif)
    assert predicting.picture_size(path) == load_image(path).size == (20, 40)


def test_rows_need_ids_of_their_own(build, asked, tmp_path):
    pair = build()
    with pytest.raises(InputError, match="'1'"):
        predict(pair.model, pair.processor, [asked[1], asked[1]], tmp_path / "p.jsonl")


def test_a_full_disk_keeps_the_finished_lines(tmp_path):
    """/dev/full takes nothing; the error names the file and how much is done."""
    from crome.evaluation.predictions import Prediction

    def fill():
        with PredictionWriter(tmp_path / "p.jsonl") as writer:
            writer.write(Prediction("1"))
            writer._file.close()
            writer._file = open("/dev/full", "ab")
            writer.write(Prediction("2"))

    with pytest.raises(JobError, match=r"p\.jsonl.*1 finished lines"):
        fill()
    assert [p.id for p in read_predictions(tmp_path / "p.jsonl")] == ["1"]


def test_a_wrong_adapter_is_told_before_rows_and_model(build, tmp_path, monkeypatch):
    pair, base, task = build(), tmp_path / "base", tmp_path / "task"
    pair.model.save_adapter(task)
    torch.nn.init.normal_(pair.model.query_tokens)
    pair.model.save_pretrained(base)
    settings = {"data": tmp_path / "rows.jsonl", "checkpoint": str(base)}
    with pytest.raises(InputError, match="trained on another base"):
        evaluate(tmp_path / "out", adapter=task, **settings)
    with pytest.raises(InputError, match="no adapter"):
        evaluate(tmp_path / "out", adapter=tmp_path / "absent", **settings)
    pair.model.save_adapter(task)
    with pytest.raises(InputError, match=r"rows\.jsonl"):  # on with the rows, which are not there
        evaluate(tmp_path / "out", adapter=task, **settings)


def test_scores_by_kind_with_intervals():
    rows = [Row((), "q", "yes", str(n), kind="a" if n < 4 else "b") for n in range(10)]
    answers = {row.id: "Yes." if int(row.id) < 6 else "no" for row in rows}
    scores = {s.group: s for s in score_run("model", rows, answers)}
    assert {g: (s.n, s.value) for g, s in scores.items()} == {
        ALL: (10, 0.6), "a": (4, 1.0), "b": (6, pytest.approx(1 / 3)),
    }  # fmt: skip
    assert all(s.low <= s.value <= s.high for s in scores.values())
    shown = examples(rows, {"model": answers})
    assert [e.correct["model"] for e in shown] == [True] * 6 + [False] * 4


@pytest.mark.parametrize(
    ("response", "answer", "same"),
    [("Yes", "yes", 1), (" red. ", "Red", 1), ("a red", "red", 0), ("two", "2", 0), ("", "no", 0)],
)
def test_exact_match(response, answer, same):
    assert exact_match(response, answer) == same


@pytest.mark.parametrize(
    ("response", "answer", "value"),
    [
        ("Two", "2", 1),
        ("a red car", "red car.", 1),
        ("1,000", "1000", 1),
        ("cow", "cat", 0),
    ],
)
def test_vqa_accuracy(response, answer, value):
    assert vqa_accuracy(response, answer) == value


def test_recorded_steps_give_the_same_answers_and_are_recorded_as_such(
    build, pictures, recording, monkeypatch, tmp_path
):
    pair = build()
    pair.model.save_pretrained(tmp_path / "base")
    pair.processor.save_pretrained(tmp_path / "base")
    pictures[0].save(tmp_path / "a.png")
    rows = [{"image": "a.png", "question": "Is it " * n, "answer": "no"} for n in range(1, 6)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = {}
    for decoding in ("plain", "auto", "recorded"):
        evaluate(
            tmp_path / decoding, tmp_path / "rows.jsonl", checkpoint=str(tmp_path / "base"),
            dtype="float32", baselines=False, attention_pictures=False, decoding=decoding,
        )  # fmt: skip
        found[decoding] = read_predictions(tmp_path / decoding / "predictions.jsonl")
    kinds = {name: told[0].generation.get("decoding") for name, told in found.items()}
    assert kinds == {"plain": None, "auto": "recorded", "recorded": "recorded"}
    plain, *others = ([p.response for p in told] for told in found.values())
    assert others == [plain, plain]
    monkeypatch.undo()  # nothing records on a CPU
    with pytest.raises(InputError, match="cannot be recorded on cpu; give --decoding auto"):
        evaluate(
            tmp_path / "cpu", tmp_path / "rows.jsonl", checkpoint=str(tmp_path / "base"),
            dtype="float32", decoding="recorded",
        )  # fmt: skip


def test_a_report_of_an_attached_model_has_no_queries_to_tell_of(case, tmp_path, pictures):
    for part in (case("llava").model.vlm, case("llava").own):
        part.save_pretrained(tmp_path / "llava")
    pictures[0].save(tmp_path / "picture.png")
    row = {"image": "picture.png", "question": "What is it?", "answer": "a star"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    evaluate(tmp_path / "out", data=tmp_path / "rows.jsonl", checkpoint=str(tmp_path / "llava"),
             dtype="float32", max_new_tokens=2)  # fmt: skip
    report = (tmp_path / "out" / "report.html").read_text()
    assert "queries" not in report
    assert "counts" not in report  # none of them is above zero
