"""The tests that are marked `gpu`, once more on a GPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]


@pytest.mark.timeout(900)
def test_the_marked_tests_pass_on_a_gpu():
    if not torch.cuda.is_available():
        pytest.skip("no GPU here; with one, this runs `pytest -m gpu --device cuda`")
    settings = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-m", "gpu", "--device", "cuda", "-q"],
        cwd=ROOT, env=settings, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:]


def test_without_a_gpu_the_option_says_so():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "tests/test_gpu.py", "--device", "cuda"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 4
    assert "PyTorch sees no GPU here" in done.stderr
