"""What the verbs print: results on the output, warnings on the error stream, one line each."""

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from crome.fewshot.text import printable
from crome.intervals import wilson

Precision = Literal["float32", "bfloat16", "float16"]


def show(text: str) -> None:
    """Print a line."""
    print(printable(text))


def warn(text: str) -> None:
    """Print a warning on the error stream."""
    print(f"warning: {printable(text)}", file=sys.stderr)


@contextmanager
def warnings_as_lines() -> Iterator[None]:
    """Print what libraries warn of as lines, once each, without the place in the code."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        try:
            yield
        finally:
            messages = [str(w.message) for w in caught if issubclass(w.category, UserWarning)]
    for message in dict.fromkeys(messages):
        warn(message)


def describe_accuracy(right: int, n: int) -> str:
    """Accuracy in per cent with its 95 % interval, as in ``81.2 % (95 %: 74.0 to 86.8, n=143)``."""
    low, high = wilson(right, n)
    return f"{100 * right / n:.1f} % (95 %: {100 * low:.1f} to {100 * high:.1f}, n={n})"
