"""The GPU's benchmark on a CPU: the same code at a toy size, case by case, with few packages."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
if not BENCHMARKS.is_dir():
    pytest.skip("benchmarks/ is not part of this installation", allow_module_level=True)
sys.path.insert(0, str(BENCHMARKS))

import gpu  # noqa: E402

ABSENT = ("datasets", "pyarrow", "cyclopts", "matplotlib")  # on a machine with a card


def run(*words: str) -> subprocess.CompletedProcess:
    """The command in a process of its own, from its folder, where some packages are absent."""
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({ABSENT!r})); "
        f"sys.argv = ['gpu.py', *{list(words)!r}]; import gpu; gpu.main()"
    )
    return subprocess.run(
        [sys.executable, "-c", code], cwd=BENCHMARKS, capture_output=True, text=True
    )


@pytest.mark.timeout(600)
def test_a_run_that_is_cut_goes_on_without_readers_of_data(tmp_path):
    file = tmp_path / "gpu.json"
    base = ("--tiny", "--json", str(file), "--markdown", str(tmp_path / "gpu.md"))
    first = run(*base, "--cases", "correct-fp32")
    assert first.returncode == 0, first.stderr
    found = json.loads(file.read_text())["cases"]
    assert all(row["exact"] <= row["limit"] for row in found["correct-fp32"])
    found["correct-fp32"][0]["what"] = "kept"
    whole = json.loads(file.read_text()) | {"cases": found}
    file.write_text(json.dumps(whole))
    rest = run(*base)
    assert rest.returncode == 0, rest.stderr
    cases = json.loads(file.read_text())["cases"]
    assert cases["correct-fp32"][0]["what"] == "kept"
    assert list(cases) == list(gpu.CASES)
    names = {row["what"] for row in cases["step"]}
    assert {"vs-stock", "vs-floor", "cached-vs-stock"} <= names
    for case in ("attach-2b", "attach-8b"):
        assert "vs-floor" in {row["what"] for row in cases[case]}
    assert cases["engine-8"][0]["ms_between_tokens_p99"] > 0
    (tests,) = cases["tests"]
    assert tests["ours"] == tests["baseline"] > 0
    assert "| adapters-64 | vs-one-adapter |" in (tmp_path / "gpu.md").read_text()


def test_a_contender_that_fails_costs_no_other_and_is_tried_again(tmp_path, monkeypatch):
    import gpu_cases

    def broken(self):
        raise RuntimeError("an operation failed on this card\nand more")

    file, words = tmp_path / "gpu.json", ["--tiny", "--cases", "attach-2b", "--json"]
    with monkeypatch.context() as patched:
        patched.setattr(gpu_cases.VlmBench, "floor", broken)
        with pytest.raises(SystemExit, match="failed: attach-2b"):
            gpu.main([*words, str(file)])
    (rows,) = json.loads(file.read_text())["cases"].values()
    assert all(row["ours"] > 0 for row in rows)
    failed = {row["what"]: row.get("failed") for row in rows}
    reason = "RuntimeError: an operation failed on this card"
    assert (failed["vs-floor"], failed["cached-vs-floor"]) == (reason, reason)
    assert set(failed.values()) == {reason, None}
    gpu.main([*words, str(file)])
    (rows,) = json.loads(file.read_text())["cases"].values()
    assert not any("failed" in row for row in rows)
    assert gpu.failures([{"failed": "OutOfMemoryError: CUDA out of memory."}]) == []


def test_it_names_what_a_machine_lacks(monkeypatch):
    """As requirements that pip takes: what is absent, and what is older than the project wants."""
    assert not set(gpu.lacking()) - set(gpu.WANTED)
    versions = {"transformers": "5.17.0", "torch": "2.11.0+cu130"}

    def version(name):
        if name == "jinja2":
            raise gpu.PackageNotFoundError(name)
        return versions.get(name, "99")

    monkeypatch.setattr(gpu, "version", version)
    lines = gpu.lacking()
    assert [line.split(">")[0].split("<")[0] for line in lines] == ["transformers", "jinja2"]


def test_without_a_card_it_says_so():
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a card")
    assert "--tiny runs the same code" in run("--json", "x.json").stderr
