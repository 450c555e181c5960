"""Every YAML file below configs/ is a whole argument list of its verb."""

from inspect import signature
from pathlib import Path

import pytest

from crome.config_file import read_config
from crome.options import from_file
from crome.training.train import train

CONFIGS = Path(__file__).parents[1] / "configs"
OTHERS = {"attached", "crome-tiny", "fewshot", "mixtures", "recipes"}  # tested with their rooms
FOUND = sorted(p for p in CONFIGS.rglob("*.yaml") if p.relative_to(CONFIGS).parts[0] not in OTHERS)


def test_finds_the_configs():
    assert [str(p.relative_to(CONFIGS)) for p in FOUND] == [
        "finetune-example.yaml",
    ]


@pytest.mark.parametrize("path", FOUND, ids=lambda p: p.stem)
def test_parses_and_names_every_option(path):
    assert set(read_config(path)) == set(signature(train).parameters)
    assert not from_file(train, path)["out"].is_absolute()
