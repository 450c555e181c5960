"""The verbs from a folder of pictures to files, and one line for what goes wrong."""

import csv
import json
import shutil

import pytest
from PIL import Image

from crome import cli
from crome.errors import InputError
from crome.fewshot import commands


@pytest.fixture(scope="module")
def fitted(clip, photos, tmp_path_factory):
    """A classifier of three shots per class on the tiny CLIP."""
    file = tmp_path_factory.mktemp("fitted") / "c.safetensors"
    commands.fit(photos, file, shots=3, encoder=clip, views=2)
    return file


def run(capsys, *arguments):
    """Exit code, standard output and standard error of `crome fewshot …`."""
    code = 0
    try:
        cli.main(["fewshot", *map(str, arguments)])
    except SystemExit as end:
        code = end.code
    return code, *capsys.readouterr()


def test_fit_prints_accuracy_with_interval_beside_zero_shot(clip, photos, tmp_path, capsys):
    file = tmp_path / "new" / "c.safetensors"
    commands.fit(photos, file, shots=2, encoder=clip, views=0)
    first, ours, zero_shot, *others = capsys.readouterr().out.splitlines()
    assert "3 classes, 6 training images, settings by 6 validation images, draw" in first
    # Colours of ten pictures each are told apart by any features, random ones too.
    assert "100.0 % (95 %: 82.4 to 100.0, n=18)" in ours
    assert "zero-shot" in zero_shot
    assert f"written to {file}" in others


def test_predict_takes_files_and_folders_as_words(fitted, photos, tmp_path, capsys):
    files = [photos / "red" / "8.png", photos / "sea_blue" / "9.png"]
    code, out, _ = run(capsys, "predict", fitted, *files, "--top", 1)
    assert code == 0
    assert [line.split()[1] for line in out.splitlines()] == ["red", "sea_blue"]
    table = tmp_path / "p.csv"
    run(capsys, "predict", fitted, photos / "green", "--out", table)
    with table.open() as stream:
        rows = list(csv.DictReader(stream))
    assert {row["label"] for row in rows} == {"green"}
    assert len(rows) == 10


def test_evaluate_leaves_out_what_it_was_fitted_on(fitted, photos, tmp_path, capsys):
    code, out, err = run(
        capsys, "evaluate", fitted, photos, "--json_out", tmp_path / "numbers.json"
    )
    assert code == 0
    assert "18 of 30 images were used in fitting; they are left out" in err
    assert "n=12), calibration error" in out
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    assert numbers["n"] == 12
    assert numbers["low"] < numbers["accuracy"] <= numbers["high"]


def test_explain_draws(fitted, photos, tmp_path, capsys):
    picture = tmp_path / "why.png"
    code, out, _ = run(capsys, "explain", fitted, photos / "red" / "8.png", "--out", picture)
    assert code == 0
    assert "red" in out
    assert "log-odds over" in out
    assert Image.open(picture).height > 100


def test_benchmark_verb(clip, photos, tmp_path, capsys):
    words = ["benchmark", photos, "--shots", 1, "--shots", 2, "--seeds", 1]
    words += ["--methods", "zero-shot", "--methods", "gda"]
    code, out, err = run(capsys, *words, "--encoder", clip, "--views", 0, "--out", tmp_path / "out")
    assert code == 0, err
    assert len((tmp_path / "out" / "results.jsonl").read_text().splitlines()) == 4
    assert "zero-shot" in out


def test_quickstart_on_a_folder(clip, photos, tmp_path):
    commands.quickstart(photos, tmp_path / "quick", clip)
    assert {f.name for f in (tmp_path / "quick").iterdir()} == {
        "classifier.safetensors", "explanation.png"
    }  # fmt: skip


def test_quickstart_without_pictures_to_test_on_fits_all_the_same(clip, photos, tmp_path, capsys):
    for name in ("red", "green"):
        (tmp_path / "two" / name).mkdir(parents=True)
        for i in range(2):
            shutil.copy(photos / name / f"{i}.png", tmp_path / "two" / name)
    commands.quickstart(tmp_path / "two", tmp_path / "quick", clip)
    *_, none_left, written, following = capsys.readouterr().out.splitlines()
    assert none_left == "  no image left to test on"
    assert following.startswith(f"next: crome fewshot predict {written.split()[-1]} ")


def test_draw_file_is_written_then_obeyed(clip, photos, tmp_path, capsys):
    draw = tmp_path / "draw.json"
    for seed in (1, 2):  # the second seed changes nothing: the draw is read
        commands.fit(photos, tmp_path / "c", shots=2, encoder=clip, views=0, seed=seed, draw=draw)
    first, second = [
        line.split("draw ")[1].split(",")[0]
        for line in capsys.readouterr().out.splitlines()
        if "draw " in line
    ]
    assert first == second


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["fit", "PHOTOS", "--method", "magic"], "method 'magic'; expected one of zero-shot"),
        (["fit", "nowhere"], "no folder or CSV file at nowhere"),
        (["fit", "PHOTOS", "--shots", "0"], "shots=0; expected at least 1"),
        (["fit", "PHOTOS", "--val", "full"], "photos has no validation part"),
        (["predict", "FITTED", "nosuch.png"], "cannot read nosuch.png"),
        (["predict", "PHOTOS/red/0.png", "PHOTOS"], "cannot read a classifier from"),
        (["predict", "FITTED"], "images"),
        (["evaluate", "FITTED", "PHOTOS", "--part", "all"], "part"),
        (["benchmark", "dtd"], "the published set dtd needs --root"),
        (["benchmark", "PHOTOS", "--methods", "magic"], "method 'magic'; expected some of"),
    ],
)
def test_mistakes_are_one_line_and_exit_with_two(fitted, photos, capsys, words, message):
    words = [w.replace("PHOTOS", str(photos)).replace("FITTED", str(fitted)) for w in words]
    code, _, err = run(capsys, *words)
    assert code == 2
    assert message in err
    assert len(err.strip().splitlines()) == 1


def test_few_images_are_warned_of_and_an_empty_class_refused(clip, photos, tmp_path, capsys):
    data = tmp_path / "data"
    shutil.copytree(photos, data)
    for i in range(4, 10):
        (data / "red" / f"{i}.png").unlink()
    commands.fit(data, tmp_path / "c", shots=5, encoder=clip, views=0)
    assert "fewer than 5 training images for 1 class(es): red (2)" in capsys.readouterr().err
    for i in range(4):
        (data / "red" / f"{i}.png").unlink()
    with pytest.raises(InputError, match="red has no images"):
        commands.fit(data, tmp_path / "c", encoder=clip)


@pytest.mark.parametrize("leaks", ["warn", "refuse"])
def test_same_picture_in_training_and_test(clip, photos, tmp_path, capsys, leaks):
    for part in ("train", "test"):
        shutil.copytree(photos, tmp_path / "data" / part)
    for i in range(1, 10):  # one picture per class stays in both
        for name in ("green", "red"):
            (tmp_path / "data" / "test" / name / f"{i}.png").unlink()
    settings = {"shots": 10, "encoder": clip, "views": 0, "val": "none", "leaks": leaks}
    if leaks == "refuse":
        with pytest.raises(InputError, match=r"12 test image\(s\) are also training images, such"):
            commands.fit(tmp_path / "data", tmp_path / "c", **settings)
        return
    commands.fit(tmp_path / "data", tmp_path / "c", **settings)
    said = capsys.readouterr()
    assert "12 test image(s) are also training images" in said.err
    assert "no image left to test on" in said.out


def test_unreadable_picture_is_named(clip, photos, tmp_path):
    shutil.copytree(photos, tmp_path / "data")
    (tmp_path / "data" / "red" / "0.png").write_text("not a picture")
    with pytest.raises(InputError, match=r"red/0\.png is not a picture"):
        commands.fit(tmp_path / "data", tmp_path / "c", shots=10, encoder=clip, views=0)


def test_classifier_of_another_encoder_is_refused(fitted, clip, photos, monkeypatch, capsys):
    monkeypatch.setattr("crome.fewshot.features.CPU_BATCH", 16)  # does not matter to features
    assert run(capsys, "predict", fitted, photos / "red" / "0.png")[0] == 0
    from crome.fewshot.encoders.dual import DualEncoder

    original = DualEncoder.__init__

    def other(self, *arguments):
        original(self, *arguments)
        self.fingerprint, self.formerly = "clip-other", ()

    monkeypatch.setattr(DualEncoder, "__init__", other)
    code, _, err = run(capsys, "predict", fitted, photos / "red" / "0.png")
    assert code == 2
    assert "is now clip-other: other weights, preprocessing or precision. Fit again." in err


def test_unknown_class_in_evaluation_is_named(fitted, photos, tmp_path, capsys):
    shutil.copytree(photos, tmp_path / "data")
    (tmp_path / "data" / "red").rename(tmp_path / "data" / "crimson")
    code, _, err = run(capsys, "evaluate", fitted, tmp_path / "data")
    assert code == 2
    assert "has the class 'crimson', which" in err


def test_predict_takes_paths_as_people_have_them(fitted, photos, tmp_path, capsys):
    odd = tmp_path / "größe 🎈 [x]" / "[1] 'é'.PNG"
    odd.parent.mkdir()
    shutil.copy(photos / "red" / "8.png", odd)
    for words in ([odd], [odd.parent], [odd, photos / "red" / "9.png"]):
        code, out, err = run(capsys, "predict", fitted, *words, "--top", 1)
        assert code == 0, err
        assert out.count("red 1.00") + out.count("red 0.9") == len(words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["fit", "PHOTOS", "--seed", "-1"], "seed is -1; expected 0 or more"),
        (["fit", "PHOTOS", "--out", "PHOTOS"], "is a folder; expected a file"),
        (["predict", "FITTED", "PHOTOS", "--top", "0"], "top is 0"),
        (["explain", "FITTED", "PHOTOS/red/0.png", "--out", "why.txt"], "expected a name in .png"),
    ],
)
def test_more_mistakes(fitted, photos, capsys, words, message):
    words = [w.replace("PHOTOS", str(photos)).replace("FITTED", str(fitted)) for w in words]
    code, _, err = run(capsys, *words)
    assert code == 2
    assert message in err
