"""Dual encoders of Hugging Face: CLIP, SigLIP, and whatever has their two feature methods."""

import math
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from crome.errors import InputError
from crome.fewshot.encoders.bridge import BRIDGE
from crome.fewshot.encoders.preprocessing import OwnTransform, Preprocessing
from crome.fewshot.encoders.protocol import (
    DTYPES,
    Frozen,
    fingerprint,
    former_fingerprint,
)

LONGEST = 100_000  # tokens: what a tokenizer says that knows no limit is far above
PROBE = (96, 64)  # a picture of any size shows the size that the processor makes of it


class DualEncoder(Frozen):
    """A dual encoder of Hugging Face; pictures pass through its own processor.

    Args:
        name: Folder or hub id.
        device: The device to compute on.
        dtype: Precision of its weights; float32 by default.

    Raises:
        InputError: There is no such model, or it is no image-text encoder.
    """

    def __init__(
        self, name: str, device: torch.device | None = None, dtype: str | None = None
    ) -> None:
        from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

        self.device = torch.device("cpu") if device is None else device
        self.dtype = dtype or "float32"
        try:
            trusted: dict[str, Any] = {"trust_remote_code": False}  # nor is anybody asked
            model = AutoModel.from_pretrained(name, dtype=DTYPES[self.dtype], **trusted)
            self.model = model.eval()
            self.tokenizer = AutoTokenizer.from_pretrained(name, **trusted)
            processor = AutoImageProcessor.from_pretrained(name, backend="pil", **trusted)
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise InputError(
                f"cannot load the encoder {name!r}: {reason} Give a folder or hub id of an "
                f"image-text model, or {BRIDGE!r}, which needs neither."
            ) from error
        if not hasattr(self.model, "get_image_features"):
            raise InputError(
                f"{name!r} is a {type(self.model).__name__}, not an image-text encoder."
            )
        self.name = name
        self.preprocessing = own_transform(processor, name)
        self.text_length = text_length(self.model.config, self.tokenizer)
        padded = "siglip" in self.model.config.model_type and self.text_length
        self.padding = "max_length" if padded else True
        self.logit_scale = float(self.model.logit_scale.detach().float().exp())
        self.fingerprint = fingerprint(name, self.preprocessing, (self.model,), self.dtype)
        former = former_preprocessing(processor.to_dict())
        if former is not None and self.dtype == "float32":
            self.formerly = (former_fingerprint(name, former, (self.model,)),)
        self.model.to(self.device)

    def encode_images(self, pixels: Tensor) -> Tensor:
        """Joint embeddings, not normalised, (B, C)."""
        with self.exactly():
            pixels = pixels.to(self.device, DTYPES[self.dtype])
            return _pooled(self.model.get_image_features(pixel_values=pixels)).float()

    def _text_rows(self, texts: list[str]) -> Tensor:
        tokens = self.tokenizer(
            texts,
            padding=self.padding,
            truncation=self.text_length is not None,
            max_length=self.text_length,
            return_tensors="pt",
        )
        return _pooled(self.model.get_text_features(**tokens.to(self.device)))


def own_transform(processor: Any, name: str) -> OwnTransform:
    """A processor of Hugging Face as a transform of single pictures.

    Raises:
        InputError: It makes something other than one square or oblong picture of a picture.
    """

    def whole(image: Image.Image, **settings: Any) -> Tensor:
        made = processor(
            images=[image], return_tensors="pt", input_data_format="channels_last", **settings
        )
        values = made.get("pixel_values")
        if set(made) != {"pixel_values"} or values.shape[:2] != (1, 3) or values.ndim != 4:
            raise InputError(
                f"the image processor of {name!r} makes {', '.join(sorted(made))} of a picture; "
                "expected one picture of 3 channels. Encoders of patches are not supported."
            )
        return values[0]

    steps = {step: False for step in ("do_resize", "do_center_crop", "do_pad", "do_flip")}
    off = {step: value for step, value in steps.items() if hasattr(processor, step)}
    height, width = whole(Image.new("RGB", PROBE)).shape[1:]
    settings = {
        key: value
        for key, value in sorted(processor.to_dict().items())
        if "processor" not in key and not key.startswith("_")
    }
    resample = getattr(processor, "resample", None)
    return OwnTransform(
        whole,
        lambda image: whole(image, **off),
        (int(width), int(height)),
        Image.Resampling.BICUBIC if resample is None else Image.Resampling(int(resample)),
        repr(settings),
    )


def text_length(config: Any, tokenizer: Any) -> int | None:
    """The most tokens that a text model has positions for, and its tokenizer allows.

    Many tokenizers know no limit; the positions of the text model then decide.
    """
    text = getattr(config, "text_config", config)
    positions = getattr(text, "max_position_embeddings", None)
    if positions and "roberta" in getattr(text, "model_type", ""):
        positions -= (getattr(text, "pad_token_id", None) or 0) + 1  # its positions begin there
    limits = [n for n in (positions, tokenizer.model_max_length) if n and n < LONGEST]
    return int(min(limits)) if limits else None


def former_preprocessing(settings: dict[str, Any]) -> Preprocessing | None:
    """The settings as version 0.1 read them, where that was right; else None.

    It took every processor for bicubic, with values from 0 to 1, and one side.
    """
    size, crop = settings.get("size") or {}, bool(settings.get("do_center_crop"))
    side = (settings.get("crop_size") or {}).get("height") if crop else size.get("height")
    wanted = size.get("shortest_edge") if crop else size.get("width")
    usual = (
        settings.get("resample") == Image.Resampling.BICUBIC
        and settings.get("do_resize")
        and settings.get("do_rescale")
        and settings.get("do_normalize")
        and math.isclose(settings.get("rescale_factor") or 0, 1 / 255)
    )
    if not usual or side is None or side != wanted:
        return None
    return Preprocessing(side, crop, tuple(settings["image_mean"]), tuple(settings["image_std"]))


def _pooled(output: Any) -> Tensor:
    """The embedding itself; transformers 5 wraps it in an output object for some models."""
    return output if isinstance(output, Tensor) else output.pooler_output
