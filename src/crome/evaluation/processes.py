"""Evaluation by several processes: `torchrun --nproc_per_node N -m crome evaluate …`.

Every process answers its share of the batches into a file of its own; the first merges them into
the predictions file, and alone scores and writes the report.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed as dist

from crome.errors import InputError, JobError

T = TypeVar("T")
PATIENCE = timedelta(days=7)  # one process may have far longer answers to give than another


@dataclass(frozen=True)
class Share:
    """This process's place among those that answer together.

    Attributes:
        rank: From 0.
        size: How many there are.
    """

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this process merges, scores and reports."""
        return self.rank == 0

    def wait(self) -> None:
        """Waits for all others to come to the same place."""
        if self.size > 1:
            dist.barrier()

    def from_first(self, compute: Callable[[], T]) -> T:
        """What the first process computes, or raises, in all of them.

        Raises:
            InputError: The first process failed with it.
            JobError: The first process failed with it.
        """
        if self.size == 1:
            return compute()
        outcome: list[Any] = [None, None]
        if self.first:
            try:
                outcome[0] = compute()
            except (InputError, JobError) as error:
                outcome[1] = error
        dist.broadcast_object_list(outcome, src=0)
        if outcome[1] is not None:
            raise outcome[1]
        return outcome[0]


ALONE = Share()


def share_of_this_process() -> Share:
    """The place that torchrun's variables give, in a group that is joined here if need be."""
    if not dist.is_available():
        return ALONE
    if not dist.is_initialized():
        if int(os.environ.get("WORLD_SIZE", "1")) < 2:
            return ALONE
        dist.init_process_group("gloo", timeout=PATIENCE)
    return Share(dist.get_rank(), dist.get_world_size())
