"""Dockerfile and compose file agree with the project: its extras, files, verbs and options."""

import fnmatch
import json
import re
import shlex
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from crome import cli

sys.path.insert(0, str(Path(__file__).parent))
from pages import ROOT

if not (ROOT / "Dockerfile").exists():
    pytest.skip("the Dockerfile is not part of this installation", allow_module_level=True)

LINES = re.sub(r"\\\n", " ", (ROOT / "Dockerfile").read_text()).splitlines()
STEPS = [line.split(None, 1) for line in LINES if line and not line.startswith("#")]
COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]


def stages():
    """Name of a stage → the stage it continues, and its steps."""
    found = {}
    for word, rest in STEPS:
        if word == "FROM":
            before, _, name = rest.split()
            found[name] = (before, [])
        else:
            found[name][1].append((word, rest))
    return found


def whole(name):
    """All steps of an image, from the first stage on."""
    before, steps = stages()[name]
    return [*whole(before), *steps] if before in stages() else steps


def test_extras_and_files_exist():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    text = "\n".join(LINES)
    for extras in re.findall(r'"\.\[([\w,-]+)\]"', text):
        assert set(extras.split(",")) <= set(settings["optional-dependencies"])
    ignored = (ROOT / ".dockerignore").read_text().split()
    for word, rest in STEPS:
        for path in rest.split()[:-1] if word == "COPY" else ():
            assert (ROOT / path).exists(), path
            assert any(fnmatch.fnmatch(path, line[1:]) for line in ignored if line[0] == "!"), path


@pytest.mark.parametrize("image", ["cpu", "gpu"])
def test_a_change_of_source_installs_no_packages_anew(image):
    steps = whole(image)
    packages = next(n for n, (_, rest) in enumerate(steps) if "-c constraints.txt" in rest)
    copied = [n for n, (word, rest) in enumerate(steps) if word == "COPY" and "src" in rest]
    assert packages < min(copied)
    after = [rest for word, rest in steps[packages + 1 :] if word == "RUN" and "pip" in rest]
    assert all("--no-deps" in rest for rest in after)
    assert ("USER", "crome") in steps


def test_the_last_stage_is_the_cpus():
    assert list(stages())[-1] == "cpu"


def parse(words, monkeypatch):
    """The command line up to the call of the verb."""
    called = []
    load = cli.load

    def recording(verb):
        import functools

        return functools.wraps(load(verb))(lambda **given: called.append(given))

    monkeypatch.setattr(cli, "load", recording)
    cli.run(words)
    assert called


@pytest.mark.parametrize("image", ["cpu", "gpu"])
def test_images_start_with_a_command_that_parses(image, monkeypatch):
    steps = dict(whole(image))
    words = [*json.loads(steps["ENTRYPOINT"]), *json.loads(steps["CMD"])]
    assert words[0] == "crome"
    parse(words[1:], monkeypatch)


def test_whoever_serves_is_asked_whether_it_is_ready():
    """By the image on the CPU, by the service on a GPU, at an address that the server has."""
    routes = (ROOT / "src/crome/serving/http/app.py").read_text()
    checks = [dict(whole("cpu"))["HEALTHCHECK"], COMPOSE["serve-gpu"]["healthcheck"]["test"][-1]]
    for check in checks:
        (port, path) = re.findall(r"http://127\.0\.0\.1:(\d+)(/\w+)", check)[0]
        assert f'"{path}"' in routes
        assert ("EXPOSE", port) in whole("cpu")
        assert ("EXPOSE", port) in whole("gpu")


def test_the_gpu_image_has_the_build_with_cuda():
    """PyTorch's wheel on the package index is that with CUDA; a version of the CPU alone is not."""
    pinned = re.search(r"^torch==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned
    assert "+cpu" not in pinned[1]
    words = [word for word, rest in whole("gpu") if "EXTRA_INDEX" in rest]
    assert words == []  # the index of CPU builds is for the other image


def test_services_build_stages_and_run_commands_that_parse(monkeypatch):
    for service in COMPOSE.values():
        target = service.get("build", ".")
        assert target == "." or target["target"] in stages()
    parse(COMPOSE["serve-gpu"]["command"], monkeypatch)
    train = COMPOSE["train-gpu"]["entrypoint"]
    parse([*train[1:], "--data", "/runs/rows.jsonl", "--out", "/runs/weld"], monkeypatch)


def test_the_commands_of_the_comments_name_stages_and_services():
    for line in (ROOT / "Dockerfile").read_text().splitlines():
        for name in re.findall(r"--target (\S+)", line):
            assert name in stages()
    for line in (ROOT / "compose.yaml").read_text().splitlines():
        if line.startswith("# docker compose"):
            words = shlex.split(line[1:].split("    ")[0])
            service = words[4] if "run" in words and "--profile" not in words else None
            named = [word for word in words if word in COMPOSE]
            assert named or service in COMPOSE, line
            if "--profile" in words:
                profile = words[words.index("--profile") + 1]
                assert profile in COMPOSE[named[0]]["profiles"]
