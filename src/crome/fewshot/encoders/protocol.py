"""What the rest of the room needs of an encoder, and where and how precisely it computes."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor

from crome.errors import InputError
from crome.fewshot.encoders.preprocessing import Transform
from crome.fewshot.settings import check_device

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


class Encoder(Protocol):
    """A frozen image-text encoder.

    Attributes:
        name: What the user calls it.
        fingerprint: Changes whenever features would.
        logit_scale: Factor on its image-text cosine.
    """

    name: str
    fingerprint: str
    logit_scale: float

    @property
    def preprocessing(self) -> Transform:
        """What pictures go through."""

    def encode_images(self, pixels: Tensor) -> Tensor:
        """Raw feature rows (B, width) of pixel values (B, 3, height, width)."""

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Unit rows (n, C)."""


class Frozen:
    """What the encoders of this package share: their place, precision, and one copy of the weights.

    Attributes:
        device: Where they compute.
        dtype: Name of the precision in which they compute.
        formerly: Fingerprints of earlier versions whose features are the same.
    """

    device: torch.device
    dtype: str
    formerly: tuple[str, ...] = ()

    @contextmanager
    def exactly(self) -> Iterator[None]:
        """No gradients, and on CUDA no TF32: float32 is what it says."""
        with torch.inference_mode(), ExitStack() as stack:
            if self.device.type == "cuda":
                flags = torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
                stack.enter_context(flags)
            yield

    def __deepcopy__(self, memo: Any) -> "Frozen":
        return self  # frozen weights need no copies, such as one for each fold of a search


def choose_device(device: str | torch.device | None) -> torch.device:
    """A device by name; by default the first GPU of CUDA where there is one, else the CPU.

    Raises:
        InputError: This machine has no such device.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    check_device(str(device))
    return torch.device(device)


def check_dtype(dtype: str | None) -> str | None:
    """The name of a precision, or None.

    Raises:
        InputError: It is not one of ``DTYPES``.
    """
    name = str(dtype).removeprefix("torch.")
    if dtype is None or name in DTYPES:
        return None if dtype is None else name
    raise InputError(f"dtype is {dtype!r}; expected {', '.join(DTYPES)}.")
