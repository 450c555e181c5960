"""Training of the packaged base: scenes as rows, and the configurations that made it."""

from inspect import signature
from pathlib import Path

import pytest
from jsonargparse import ArgumentParser

from crome.rows import Row
from tools.tiny.train import SceneStream, train

CONFIGS = Path(__file__).parents[2] / "configs" / "crome-tiny"


def test_scenes_become_groups_of_rows(pictures):
    scene = [{"image": pictures[0], "question": "q", "answer": "a", "id": "0", "kind": "colour"}]
    stream = SceneStream([scene, scene * 2])
    assert len(stream) == 2
    assert stream[1] == [Row((pictures[0],), "q", "a", "0", kind="colour")] * 2


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda p: p.stem)
def test_a_configuration_names_every_option(path):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_function_arguments(train, as_group=False)
    assert set(parser.parse_path(path).as_dict()) == set(signature(train).parameters)
