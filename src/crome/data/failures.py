"""Errors of loader processes and of memory, in one line that names the remedy."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from crome.errors import InputError, JobError

WORKER = re.compile(r"Caught \w+ in DataLoader worker")
REMEDY = (
    "lower --optimization.batch_size and raise --optimization.gradient_accumulation_steps as much, "
    "or see what `crome plan` advises"
)


@contextmanager
def in_one_line(remedy: str = REMEDY) -> Iterator[None]:
    """Turns failures of loader processes and of memory into errors of this package.

    Args:
        remedy: What helps where memory ran out.

    Raises:
        InputError: A row cannot be used, as a loader process found out.
        JobError: Memory ran out, or a loader process was killed.
    """
    try:
        yield
    except InputError as error:
        raise InputError(reason(error)) from error
    except JobError as error:
        raise JobError(reason(error)) from error
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise JobError(f"out of memory; {remedy}.") from error
    except RuntimeError as error:
        message = str(error)
        if "can't allocate memory" in message or "out of memory" in message:
            raise JobError(f"out of memory; {remedy}.") from error
        if "DataLoader worker" in message:
            raise JobError(
                "a loader process was killed, most likely for memory; give fewer --workers. The "
                "same command goes on from what it has saved."
            ) from error
        raise


def reason(error: Exception) -> str:
    """The message of an error, without the traceback of the loader process it comes from."""
    message = str(error)
    if not WORKER.search(message):
        return message
    return message.strip().splitlines()[-1].partition(": ")[2]
