"""Names that are no Unicode reach neither tokenizers nor files."""

import csv
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from crome import cli
from crome.fewshot import class_features, load_encoder
from crome.fewshot.data.reading import read_images
from crome.fewshot.text import printable

BYTES = os.fsdecode(b"pets\xff")


def test_what_is_no_character_is_marked():
    assert printable("größe 日本 🎈") == "größe 日本 🎈"
    assert printable(BYTES).startswith("pets\N{REPLACEMENT CHARACTER}")
    assert "\ud800" not in printable("half \ud800 a pair")


def test_odd_names_can_be_encoded(clip):
    rows = class_features(load_encoder(clip), ["half \ud800 a pair", BYTES, "red"])
    assert np.isfinite(rows).all()


def test_folders_and_files_of_odd_names_go_all_the_way(clip, photos, tmp_path, capsys):
    root = tmp_path / BYTES
    try:
        shutil.copytree(photos / "red", root / os.fsdecode(b"re\xffd"))
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    shutil.copytree(photos / "green", root / "green")
    picture = root / "green" / os.fsdecode(b"\xfe.png")
    shutil.copy(root / "green" / "0.png", picture)
    assert read_images(root).classes[0] == "green"
    file, table = tmp_path / "c.safetensors", tmp_path / "p.csv"
    words = ["--encoder", clip, "--views", "0", "--shots", "2"]
    cli.main(["fewshot", "fit", str(root), *words, "--out", str(file)])
    cli.main(["fewshot", "predict", str(file), str(picture), "--out", str(table)])
    cli.main(["fewshot", "predict", str(file), str(picture)])
    cli.main(["fewshot", "evaluate", str(file), str(root), "--json_out", str(tmp_path / "n.json")])
    words = ["--encoder", clip, "--views", "0", "--shots", "1", "--seeds", "1"]
    out = tmp_path / "bench"
    cli.main(["fewshot", "benchmark", str(root), *words, "--methods", "gda", "--out", str(out)])
    with table.open(encoding="utf-8", errors="surrogateescape") as stream:
        (row,) = csv.DictReader(stream)
    assert Path(row["image"]) == picture
    assert row["label"] == "green"
    capsys.readouterr()
