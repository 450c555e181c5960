"""Training of the packaged base: scenes as rows, and the configurations that made it."""

from inspect import signature
from pathlib import Path

import pytest

from crome.options import from_file
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
    assert set(from_file(train, path)) == set(signature(train).parameters)
