"""The verbs from a folder of pictures to files, and one line for what goes wrong."""

import csv
import json
import shutil

import pytest
from PIL import Image

from crome import cli
from crome.errors import InputError
from crome.fewshot import commands, load_classifier
from crome.fewshot.pictures import content_hash


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


def broken(folder, *names):
    """Files that begin like pictures and cannot be decoded."""
    for name in names:
        (folder / name).write_bytes(b"\x89PNG\r\n\x1a\n broken " + str(folder / name).encode())


def test_one_broken_picture_loses_no_other(fitted, photos, tmp_path, capsys):
    folder = tmp_path / "new"
    shutil.copytree(photos / "red", folder)
    broken(folder, "5.png", "x.png")
    (folder / "notes.txt").write_text("no picture")
    code, out, err = run(capsys, "predict", fitted, folder, tmp_path / "gone.png", "--top", 1)
    assert code == 0
    assert len(out.splitlines()) == 9
    warnings = err.strip().splitlines()
    assert all(line.startswith("warning: ") for line in warnings)
    assert len(warnings) == 4
    for name in ("5.png", "x.png", "gone.png", "notes.txt"):
        assert name in err
    code, out, err = run(capsys, "predict", fitted, folder / "5.png", folder / "x.png")
    assert (code, out) == (2, "")
    assert "2 pictures cannot be read" in err


def test_all_broken_pictures_of_a_set_are_named_at_once_or_skipped(clip, photos, tmp_path, capsys):
    data = tmp_path / "data"
    shutil.copytree(photos, data)
    broken(data / "red", "0.png", "1.png")
    broken(data / "green", "3.png")
    settings = ["--shots", 4, "--views", 0, "--encoder", clip, "--out", tmp_path / "c"]
    code, _, err = run(capsys, "fit", data, *settings)
    assert code == 2
    assert "3 pictures cannot be read" in err
    assert all(f"{data}/{name}" in err for name in ("red/0.png", "red/1.png", "green/3.png"))
    assert not (tmp_path / "c").exists()
    code, out, err = run(capsys, "fit", data, *settings, "--on_bad_image", "skip")
    assert code == 0, err
    assert err.count("left out:") == 3
    code, out, err = run(capsys, "evaluate", tmp_path / "c", data)
    assert code == 0
    assert "n=" in out


def test_the_csv_has_as_many_labels_as_asked_for(fitted, photos, tmp_path, capsys):
    for top, columns in ((1, 3), (2, 5), (9, 7)):  # there are three classes
        table = tmp_path / "p.csv"
        run(capsys, "predict", fitted, photos / "red", "--out", table, "--top", top)
        with table.open() as stream:
            rows = list(csv.DictReader(stream))
        assert len(rows[0]) == columns
        if top > 1:
            assert {row["label"] for row in rows} == {"red"}
            assert {row["label_2"] for row in rows} <= {"green", "sea_blue"}
            assert all(float(r["probability"]) >= float(r["probability_2"]) for r in rows)


def test_strange_pictures_are_none_of_these(fitted, photos, tmp_path, capsys):
    Image.new("RGB", (24, 30), "white").save(tmp_path / "white.png")
    words = [tmp_path / "white.png", photos / "red" / "8.png", "--none_below", 0.12]
    code, out, _ = run(capsys, "predict", fitted, *words)
    assert code == 0
    first, second = out.splitlines()
    assert "none of these 0.10, " in first  # fitted on nine pictures: the least value is 1 / 10
    assert "none of these" not in second
    run(capsys, "predict", fitted, *words, "--out", tmp_path / "p.csv")
    with (tmp_path / "p.csv").open() as stream:
        assert [row["label"] for row in csv.DictReader(stream)] == ["none of these", "red"]
    for share in (0, 1, -1, "nan"):
        code, _, err = run(capsys, "predict", fitted, words[1], "--none_below", share)
        assert code == 2
        assert "expected a share between 0 and 1" in err


def test_every_class_is_scored(fitted, photos, tmp_path, capsys):
    shutil.copytree(photos, tmp_path / "data")
    used = load_classifier(fitted)[1]["used"]
    red = sorted((tmp_path / "data" / "red").glob("*.png"))
    moved = next(file for file in red if content_hash(file) not in used)
    moved.rename(tmp_path / "data" / "green" / "red.png")
    _, out, _ = run(
        capsys, "evaluate", fitted, tmp_path / "data", "--json_out", tmp_path / "n.json"
    )
    numbers = json.loads((tmp_path / "n.json").read_text())
    assert numbers["labels"] == ["green", "red", "sea_blue"]
    place = numbers["labels"].index
    confusion = numbers["confusion"]
    assert confusion[place("green")][place("red")] == 1
    red = numbers["by_class"][place("red")]
    right, taken = (
        confusion[place("red")][place("red")],
        sum(row[place("red")] for row in confusion),
    )
    assert red["precision"] == right / taken < 1
    assert red["recall"] == 1
    assert red["f1"] == pytest.approx(2 * red["precision"] / (1 + red["precision"]))
    assert numbers["top"]["1"] == numbers["accuracy"]
    line = next(line for line in out.splitlines() if line.strip().startswith("green"))
    assert line.endswith("red (1)")


def test_copies_encoded_anew_are_left_out_of_the_evaluation(fitted, photos, tmp_path, capsys):
    for file in photos.rglob("*.png"):
        copy = tmp_path / "data" / file.parent.name / f"{file.stem}.jpg"
        copy.parent.mkdir(parents=True, exist_ok=True)
        Image.open(file).save(copy, quality=95)
    code, _, err = run(capsys, "evaluate", fitted, tmp_path / "data")
    assert code == 0
    assert "18 of 30 images were used in fitting; they are left out" in err


def test_an_encoder_that_was_moved_is_named_again(clip, photos, tmp_path, capsys):
    shutil.copytree(clip, tmp_path / "here")
    file = tmp_path / "c.safetensors"
    commands.fit(photos, file, shots=2, encoder=str(tmp_path / "here"), views=0)
    (tmp_path / "here").rename(tmp_path / "there")
    picture = photos / "red" / "8.png"
    for words in (
        ["predict", file, picture],
        ["evaluate", file, photos],
        ["explain", file, picture],
    ):
        capsys.readouterr()
        code, _, err = run(
            capsys, *words, *(["--out", tmp_path / "e.png"] * (words[0] == "explain"))
        )
        assert code == 2
        assert "here, which is gone; name its folder with --encoder" in err
        words = [*words, "--encoder", tmp_path / "there"]
        code, _, err = run(
            capsys, *words, *(["--out", tmp_path / "e.png"] * (words[0] == "explain"))
        )
        assert code == 0, err


def test_a_classifier_saved_from_python_needs_an_encoder_only(clip, photos, tmp_path, capsys):
    from crome.fewshot import GDAClassifier, image_features, load_encoder, save_classifier

    files = sorted(photos.rglob("*.png"))
    X = image_features(load_encoder(clip), files)
    model = GDAClassifier().fit(X, [file.parent.name for file in files])
    save_classifier(model, tmp_path / "m.safetensors")
    code, _, err = run(capsys, "predict", tmp_path / "m.safetensors", files[0])
    assert code == 2
    assert "does not say which encoder it belongs to; name it with --encoder" in err
    words = ["predict", tmp_path / "m.safetensors", files[0], "--encoder", clip, "--top", 1]
    code, out, _ = run(capsys, *words)
    assert code == 0
    assert "green" in out


def test_a_precision_is_kept_with_the_classifier(clip, photos, tmp_path, capsys):
    file = tmp_path / "c.safetensors"
    commands.fit(photos, file, shots=2, encoder=clip, views=0, dtype="bfloat16", device="cpu")
    capsys.readouterr()
    picture = photos / "red" / "8.png"
    assert run(capsys, "predict", file, picture)[0] == 0
    code, _, err = run(capsys, "predict", file, picture, "--dtype", "float32")
    assert code == 2
    assert "other weights, preprocessing or precision" in err
    code, _, err = run(capsys, "predict", file, picture, "--device", "cuda:7")
    assert code == 2
    assert "device is 'cuda:7', which cannot be used here" in err


def test_classes_are_matched_as_people_read_them(fitted, photos, tmp_path, capsys):
    rows = [f"{photos}/red/9.png,red ", f"{photos}/sea_blue/9.png,\u200bsea_blue"]
    (tmp_path / "t.csv").write_text("\n".join(["image,label", *rows]), encoding="utf-8")
    code, out, err = run(capsys, "evaluate", fitted, tmp_path / "t.csv")
    assert code == 0, err
    assert "100.0 %" in out
