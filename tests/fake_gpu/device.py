"""A GPU that is none: its tensors say that they are there, and compute on the CPU.

PyTorch knows the device as `fakegpu`. An operation on its tensors and on others fails, as on a GPU
(but for scalars, and for places that another tensor is indexed with). What a program would have to
wait for is noted: fetched tensors, fetched numbers, and results whose size depends on values.
"""

from typing import Any

import torch
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import (
    _setup_privateuseone_for_python_backend as set_up,  # of PyTorch 2.10 and later
)

NAME = "fakegpu"
SIZED_BY_VALUES = ("nonzero", "masked_select", "_unique", "unique", "repeat_interleave.Tensor")
WAITS: list[str] = []
"""What a program waited for, in order."""


class Backend:
    """What PyTorch asks of a kind of device."""

    def is_available(self) -> bool:
        """There is one."""
        return True

    def is_initialized(self) -> bool:
        """At once."""
        return True

    def device_count(self) -> int:
        """One."""
        return 1

    def current_device(self) -> int:
        """The first."""
        return 0

    def get_rng_state(self, device: Any = None) -> torch.Tensor:
        """It draws nothing of its own."""
        return torch.empty(0)

    def set_rng_state(self, state: torch.Tensor, device: Any = None) -> None:
        """It draws nothing of its own."""

    def manual_seed_all(self, seed: int) -> None:
        """It draws nothing of its own."""

    def _is_in_bad_fork(self) -> bool:
        return False


set_up(NAME, Backend())
# Tensors with a Python class cannot be made in inference mode; this module is loaded first.
torch.inference_mode = lambda mode=True: torch.no_grad()  # type: ignore[assignment, misc]
DEVICE = torch.device(NAME, 0)


class OnGpu(torch.Tensor):
    """A tensor on the device.

    Args:
        inner: Its values, on the CPU.
    """

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> "OnGpu":
        made: OnGpu = torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(),
            dtype=inner.dtype, device=DEVICE,
        )  # fmt: skip
        made.inner = inner
        return made

    def __repr__(self) -> str:
        return f"OnGpu({tuple(self.shape)}, {self.dtype})"

    def tolist(self) -> Any:
        """Its values, in one transfer."""
        WAITS.append("fetch")
        return self.inner.tolist()

    def numpy(self, *, force: bool = False) -> Any:
        """Refused, as on a GPU."""
        raise TypeError(f"can't convert a tensor on {NAME} to numpy; copy it to the CPU first")

    __array__ = numpy

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Computes on the CPU."""
        return computed(func, args, kwargs or {})


def computed(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """The result of an operation, on the device where it belongs there."""
    name = func.__name__
    leaves = tree_leaves((args, kwargs))
    here = [x for x in leaves if isinstance(x, OnGpu)]
    copies = name.startswith(("_to_copy", "copy_"))
    on_host = [x for x in leaves if isinstance(x, torch.Tensor) and not isinstance(x, OnGpu)]
    strangers = [x for x in on_host if x.dim() and not name.startswith("index")]
    if here and strangers and not copies:
        raise RuntimeError(
            f"{name}: one tensor is on the CPU, {tuple(strangers[0].shape)}, others on {DEVICE}"
        )
    target = kwargs.get("device")
    goes = bool(here) if target is None else torch.device(target).type == NAME
    if copies and here and not ((goes and isinstance(args[0], OnGpu)) or (len(here) == 1 and goes)):
        WAITS.append("fetch")
        goes = False
    elif here and waits(name, args):
        WAITS.append(name)
    out = func(*tree_map(inside, args), **tree_map(inside, kwargs))
    if not goes:
        return out
    if name.split(".")[0].endswith("_") and not name.startswith("__"):
        return args[0]
    return kwargs["out"] if "out" in kwargs else tree_map(outside, out)


def waits(name: str, args: Any) -> bool:
    """Whether a program that asks for an operation waits for its result."""
    by_values = name.startswith("index") and any(
        isinstance(x, torch.Tensor) and x.dtype == torch.bool for x in tree_leaves(args[1:2])
    )
    return by_values or name.startswith(("_local_scalar_dense", "equal", *SIZED_BY_VALUES))


def inside(x: Any) -> Any:
    """What an operation of the CPU takes."""
    if isinstance(x, torch.device) and x.type == NAME:
        return torch.device("cpu")
    return x.inner if isinstance(x, OnGpu) else x


def outside(x: Any) -> Any:
    """A result, on the device."""
    return OnGpu(x) if isinstance(x, torch.Tensor) and not isinstance(x, OnGpu) else x


def _copied(source: Any, target: Any, non_blocking: bool = False) -> Any:
    if not isinstance(target, OnGpu):
        WAITS.append("fetch")
    inside(target).copy_(inside(source))
    return target


def _number(tensor: Any) -> Any:
    WAITS.append("_local_scalar_dense.default")
    return tensor.inner.item()


def _made_by(factory: Any) -> Any:
    """A factory of the device, from that of the CPU."""

    def make(*args: Any, **more: Any) -> OnGpu:
        own = {name: more[name] for name in ("dtype",) if more.get(name) is not None}
        return OnGpu(factory(*args, **own))

    return make


LIBRARY = torch.library.Library("aten", "IMPL")
for name, factory in {
    "empty.memory_format": torch.empty, "empty_strided": torch.empty_strided,
    "arange": torch.arange, "arange.start": torch.arange, "arange.start_step": torch.arange,
    "eye": torch.eye, "eye.m": torch.eye, "linspace": torch.linspace,
}.items():  # fmt: skip
    LIBRARY.impl(name, _made_by(factory), "PrivateUse1")
LIBRARY.impl("_local_scalar_dense", _number, "PrivateUse1")
LIBRARY.impl("_copy_from", _copied, "PrivateUse1")
LIBRARY.impl(
    "copy_", lambda target, source, non_blocking=False: _copied(source, target), "PrivateUse1"
)
