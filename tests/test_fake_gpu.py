"""What can be said of a GPU without one: `tests/fake_gpu/checks.py` in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from torch.utils import backend_registration

ROOT = Path(__file__).parents[1]


@pytest.mark.timeout(600)
def test_nothing_is_on_another_device_and_no_wait_grows_with_rows():
    if not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"):
        pytest.skip("this PyTorch has no devices that are written in Python")
    settings = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "tests.fake_gpu.device", "tests/fake_gpu/checks.py",
         "-q", "-p", "no:cacheprovider"],
        cwd=ROOT, env=settings, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:]
