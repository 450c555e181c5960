"""What the rest of the room needs of an encoder: protocol, place, precision, fingerprint."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import normalize

from crome.errors import InputError
from crome.fewshot.encoders.preprocessing import Transform
from crome.fewshot.settings import check_device

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
TEXTS = 64  # encoded at a time


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
        """The transformation of pictures before the encoder."""

    def encode_images(self, pixels: Tensor) -> Tensor:
        """Raw feature rows (B, width) of pixel values (B, 3, height, width)."""

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Unit rows (n, C)."""


class Frozen:
    """What the encoders of this package share: their place, precision, and one copy of the weights.

    Attributes:
        device: The device that they compute on.
        dtype: Name of the precision in which they compute.
        formerly: Fingerprints of earlier versions whose features are the same.
    """

    device: torch.device
    dtype: str
    formerly: tuple[str, ...] = ()

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Unit rows (n, C)."""
        rows = []
        with self.exactly():
            for start in range(0, len(texts), TEXTS):
                rows.append(self._text_rows(list(texts[start : start + TEXTS])).float())
        return normalize(torch.cat(rows), dim=1)

    def _text_rows(self, texts: list[str]) -> Tensor:
        """Rows (n, C) of a few texts, of any length and precision."""
        raise NotImplementedError

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
    """A device by name; by default the first GPU of CUDA where there is one, else the CPU."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    check_device(str(device))
    return torch.device(device)


def check_dtype(dtype: str | None) -> str | None:
    """The name of one of ``DTYPES``, or None."""
    name = None if dtype is None else str(dtype).removeprefix("torch.")
    if name is not None and name not in DTYPES:
        raise InputError(f"dtype is {dtype!r}; expected {', '.join(DTYPES)}.")
    return name


def fingerprint(
    name: str, preprocessing: Any, models: tuple[torch.nn.Module, ...], dtype: str
) -> str:
    """Name an encoder by every value of its weights, its preprocessing's ``repr``, its precision.

    Of what the user calls it, only the last part is shown.
    """
    digest = hashlib.sha256(f"{preprocessing!r} {dtype}".encode())
    for model in models:
        for key, tensor in model.state_dict().items():
            digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
            values = tensor.detach().cpu().contiguous().reshape(-1)
            digest.update(values.view(torch.uint8).numpy().data)
    return f"{_readable(name)}-{digest.hexdigest()[:16]}"


def former_fingerprint(name: str, preprocessing: Any, models: tuple[torch.nn.Module, ...]) -> str:
    """The name that version 0.1 gave, by the first values of every tensor.

    Classifiers saved by it are accepted with an encoder that still has this name.
    """
    digest = hashlib.sha256(repr(preprocessing).encode())
    for model in models:
        for key, tensor in model.state_dict().items():
            digest.update(key.encode())
            digest.update(tensor.flatten()[:256].float().cpu().numpy().tobytes())
    return f"{_readable(name)}-{digest.hexdigest()[:12]}"


def _readable(name: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in Path(name).name)
