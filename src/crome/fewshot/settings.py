"""Checks of the estimators' settings, in ``fit`` as scikit-learn asks; all raise InputError."""

import math
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from sklearn.utils import check_random_state

from crome.errors import InputError


def check_number(
    name: str, value: Any, low: float, high: float = math.inf, *, above: bool = False
) -> None:
    """Refuse what is not a finite number from ``low``, or above it, to ``high``."""
    number = isinstance(value, Real) and not isinstance(value, bool | np.bool_)
    if number and (low < value if above else low <= value) and value <= high and value < math.inf:
        return
    wanted = f"a finite number above {low:g}" if above else f"a finite number of {low:g} or more"
    if high < math.inf:
        wanted = f"a number from {low:g} to {high:g}" + (f", not {low:g}" if above else "")
    raise InputError(f"{name} is {value!r}; expected {wanted}.")


def check_whole(name: str, value: Any, low: int) -> None:
    """Refuse what is not a whole number of at least ``low``."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, Integral) or value < low:
        raise InputError(f"{name} is {value!r}; expected a whole number of {low} or more.")


def check_grid(name: str, values: Any, low: float = 0.0, *, above: bool = False) -> None:
    """Refuse what is not a flat, filled sequence of finite numbers from ``low``, or above it."""
    try:
        grid = np.asarray(values, dtype=float)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name} is {values!r}; expected a list of numbers.") from error
    if grid.ndim != 1:
        raise InputError(f"{name} is {values!r}; expected a list of numbers, such as [1.0].")
    if not grid.size:
        raise InputError(f"the number of {name} is 0; expected a list of at least one number.")
    for value in grid.tolist():
        check_number(f"a value of {name}", value, low, above=above)


def check_flag(name: str, value: Any) -> None:
    """Refuse what is neither true nor false."""
    if not isinstance(value, bool | np.bool_):
        raise InputError(f"{name} is {value!r}; expected True or False.")


def seed_from(random_state: Any) -> int:
    """A seed from whatever scikit-learn takes as a random state.

    A whole number is the seed itself, None gives a fresh one, and a ``RandomState`` is drawn from.
    """
    try:
        generator = check_random_state(random_state)
    except ValueError as error:
        raise InputError(
            f"random_state is {random_state!r}; expected a whole number from 0 to 4294967295, "
            "None or a RandomState."
        ) from error
    if isinstance(random_state, Integral):
        return int(random_state)
    return int(generator.randint(2**31 - 1))


def check_device(device: str) -> None:
    """Refuse a device that PyTorch does not know or this machine does not have."""
    try:
        torch.zeros(1, device=device).item()  # "meta" has no values
    except (RuntimeError, AssertionError, TypeError) as error:
        raise InputError(
            f"device is {device!r}, which cannot be used here ({str(error).splitlines()[0]}); "
            "expected cpu, cuda, cuda:N or mps."
        ) from error
