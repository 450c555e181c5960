"""Toy vision-language models from the sweep, built once."""

import sys
from functools import cache
from pathlib import Path

import pytest
import transformers

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="session")
def case():
    """A family's `Case` of the sweep."""
    if not BENCHMARKS.is_dir():
        pytest.skip("benchmarks/ is not part of this installation")
    sys.path.insert(0, str(BENCHMARKS))
    from families import Case

    transformers.logging.set_verbosity_error()
    return cache(Case)
