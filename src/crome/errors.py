"""The two ways a command can end badly, and the exit codes they map to."""

from math import inf


class InputError(ValueError):
    """Arguments or data are wrong: the message names the thing and the remedy (exit code 2)."""


class JobError(RuntimeError):
    """The arguments were fine and the job failed, as on a full disk or no network (exit code 1)."""


def positive(**numbers: float | None) -> None:
    """Refuses numbers that are not finite and above zero, by their names; None passes.

    Raises:
        InputError: With the first of them.
    """
    for name, number in numbers.items():
        if number is not None and not 0 < number < inf:
            raise InputError(f"{name} is {number}; expected a number above 0.")


def not_negative(**numbers: float) -> None:
    """Refuses numbers that are below zero or not finite, by their names.

    Raises:
        InputError: With the first of them.
    """
    for name, number in numbers.items():
        if not 0 <= number < inf:
            raise InputError(f"{name} is {number}; expected 0 or more.")
