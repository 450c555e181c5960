"""The two ways a command can end badly, and the exit codes they map to."""

from math import inf
from numbers import Integral, Real


class InputError(ValueError):
    """Arguments or data are wrong: the message names the thing and the remedy (exit code 2)."""


class JobError(RuntimeError):
    """The arguments were fine and the job failed, as on a full disk or no network (exit code 1)."""


def positive(**numbers: float | None) -> None:
    """Refuses numbers that are not finite and above zero, by their names; None passes.

    Raises:
        InputError: The message names the first of them.
    """
    for name, number in numbers.items():
        if number is not None and not (_is_real(number) and 0 < number < inf):
            raise InputError(f"{name} is {number!r}; expected a number above 0.")


def positive_whole(**numbers: int | None) -> None:
    """Refuses what is not a whole number above zero, by its name; None passes.

    Raises:
        InputError: The message names the first of them.
    """
    for name, number in numbers.items():
        whole = _is_real(number) and isinstance(number, Integral) and number > 0
        if number is not None and not whole:
            raise InputError(f"{name} is {number!r}; expected a whole number above 0.")


def switches(**flags: bool) -> None:
    """Refuses what is neither true nor false, by its name.

    Raises:
        InputError: The message names the first of them.
    """
    for name, flag in flags.items():
        if not isinstance(flag, bool):
            raise InputError(f"{name} is {flag!r}; expected true or false.")


def not_negative(**numbers: float) -> None:
    """Refuses numbers that are below zero or not finite, by their names.

    Raises:
        InputError: The message names the first of them.
    """
    for name, number in numbers.items():
        if not (_is_real(number) and 0 <= number < inf):
            raise InputError(f"{name} is {number!r}; expected 0 or more.")


def _is_real(number: object) -> bool:
    return isinstance(number, Real) and not isinstance(number, bool)
