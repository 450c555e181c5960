"""Checkpoints of open_clip: OpenAI's RN50, RN101 and ViTs among them."""

from importlib.util import find_spec
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from crome.errors import InputError
from crome.fewshot.encoders.preprocessing import OwnTransform, Preprocessing
from crome.fewshot.encoders.protocol import (
    DTYPES,
    Frozen,
    fingerprint,
    former_fingerprint,
)


class OpenClipEncoder(Frozen):
    """A checkpoint of open_clip; pictures pass through its own transform.

    Args:
        name: ``MODEL/PRETRAINED``, as in ``RN50/openai``.
        device: The device to compute on.
        dtype: Precision of its weights; float32 by default.

    Raises:
        InputError: open_clip is not installed.
    """

    def __init__(
        self, name: str, device: torch.device | None = None, dtype: str | None = None
    ) -> None:
        if find_spec("open_clip") is None:
            raise InputError(f"the encoder open_clip:{name} needs `pip install open_clip_torch`.")
        import open_clip

        self.device = torch.device("cpu") if device is None else device
        self.dtype = dtype or "float32"
        architecture, _, pretrained = name.partition("/")
        self.model, _, transform = open_clip.create_model_and_transforms(
            architecture, pretrained=pretrained or "openai"
        )
        self.model = self.model.eval().to(DTYPES[self.dtype])
        self.tokenizer = open_clip.get_tokenizer(architecture)
        self.name = f"open_clip:{name}"
        settings = open_clip.get_model_preprocess_cfg(self.model)
        self.preprocessing = own_transform(transform, settings)
        self.logit_scale = float(self.model.logit_scale.detach().float().exp())
        self.fingerprint = fingerprint(self.name, self.preprocessing, (self.model,), self.dtype)
        former = former_preprocessing(settings)
        if former is not None and self.dtype == "float32":
            self.formerly = (former_fingerprint(self.name, former, (self.model,)),)
        self.model.to(self.device)

    def encode_images(self, pixels: Tensor) -> Tensor:
        """Joint embeddings, not normalised, (B, C)."""
        with self.exactly():
            return self.model.encode_image(pixels.to(self.device, DTYPES[self.dtype])).float()

    def _text_rows(self, texts: list[str]) -> Tensor:
        return self.model.encode_text(self.tokenizer(texts).to(self.device))


def own_transform(transform: Any, settings: dict[str, Any]) -> OwnTransform:
    """A transform of open_clip, with its settings as ``get_model_preprocess_cfg`` gives them."""
    size = settings["size"]
    height, width = (size, size) if isinstance(size, int) else size
    resample = Image.Resampling[str(settings.get("interpolation", "bicubic")).upper()]
    # A picture of the final size is neither resized nor cut by any of open_clip's resize modes.
    return OwnTransform(
        transform, transform, (width, height), resample, repr(sorted(settings.items()))
    )


def former_preprocessing(settings: dict[str, Any]) -> Preprocessing | None:
    """The settings as version 0.1 read them, where that was right; else None."""
    size = settings["size"]
    height, width = (size, size) if isinstance(size, int) else size
    usual = (
        settings.get("interpolation", "bicubic") == "bicubic"
        and settings.get("resize_mode", "shortest") == "shortest"
    )
    if not usual or height != width:
        return None
    return Preprocessing(height, True, tuple(settings["mean"]), tuple(settings["std"]))
