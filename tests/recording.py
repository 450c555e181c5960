"""A stand-in for a CUDA graph: the operations of a step, repeated on the same memory."""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal", "is_nonzero")
"""Parts of names of operations whose results a program waits for."""


class Waits(TorchDispatchMode):
    """Counts operations for which a program would wait for a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs the operation."""
        name = func.__name__
        boolean = name.startswith("index") and any(
            isinstance(x, torch.Tensor) and x.dtype == torch.bool for x in tree_leaves(args[1:2])
        )
        if boolean or any(name.startswith(part) for part in WAITS):
            self.names.append(name)
        return func(*args, **(kwargs or {}))


class Recorder(TorchDispatchMode):
    """Keeps every operation with its tensors, and refuses those that wait."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs the operation."""
        with Waits() as waits:
            result = func(*args, **(kwargs or {}))
        if waits.names:
            raise RuntimeError(f"{waits.names[0]} cannot be recorded")
        self.calls.append((func, args, kwargs or {}, result))
        return result


def recorded(step: Any, pool: Any) -> tuple[Any, Any]:
    """As `crome.model.slots.cuda_graph`: Python runs once; later the same operations run again."""
    with Recorder() as recorder:
        logits = step()

    def replay() -> torch.Tensor:
        for func, args, kwargs, result in recorder.calls:
            given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
            addresses = {x.untyped_storage().data_ptr() for x in given}
            again = func(*args, **kwargs)
            for old, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
                if isinstance(old, torch.Tensor):
                    if old.untyped_storage().data_ptr() not in addresses:  # else a view of one
                        old.copy_(new)
        return logits

    replay.calls = recorder.calls  # type: ignore[attr-defined]
    return replay, "pool"
