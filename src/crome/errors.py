"""The two ways a command can end badly, and the exit codes they map to."""


class InputError(ValueError):
    """Arguments or data are wrong: the message names the thing and the remedy (exit code 2)."""


class JobError(RuntimeError):
    """The arguments were fine and the job failed, as on a full disk or no network (exit code 1)."""


def positive(**numbers: float | None) -> None:
    """Refuses numbers that are not above zero, by the names they are given under; None passes.

    Raises:
        InputError: With the first of them.
    """
    for name, number in numbers.items():
        if number is not None and not number > 0:
            raise InputError(f"{name} is {number}; expected a number above 0.")


def not_negative(**numbers: float) -> None:
    """Refuses numbers below zero, by the names they are given under.

    Raises:
        InputError: With the first of them.
    """
    for name, number in numbers.items():
        if not number >= 0:
            raise InputError(f"{name} is {number}; expected 0 or more.")
