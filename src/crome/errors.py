"""The two ways a command can end badly, and the exit codes they map to."""


class InputError(ValueError):
    """Arguments or data are wrong: the message names the thing and the remedy (exit code 2)."""


class JobError(RuntimeError):
    """The arguments were fine and the job failed, as on a full disk or no network (exit code 1)."""
