"""Names of what is kept: of a model's folder, of a picture, and of a question on one."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from crome.errors import InputError
from crome.images import View, load_image
from crome.model.modeling import CromeForConditionalGeneration
from crome.model.pretrained import bridge_state
from crome.model.processing import CromeProcessor
from crome.model.tensors import fingerprint
from crome.storage import cache_folder

FORMAT = 1
QFORMER = ("query_tokens", "qformer.")


def default_folder() -> Path:
    """`crome/features` in the user's cache folder, or where CROME_FEATURES points."""
    if named := os.environ.get("CROME_FEATURES"):
        return Path(named)
    return cache_folder() / "features"


def identity(model: CromeForConditionalGeneration, processor: CromeProcessor) -> dict[str, Any]:
    """What the features of a picture depend on besides its bytes."""
    config = model.config
    return {
        "format": FORMAT,
        "encoder": str(config.vision_model_id),
        "fingerprint": fingerprint(model.vision_model.state_dict()),
        "dtype": str(next(model.vision_model.parameters()).dtype),
        "layers": [config.qformer_feature_layer, config.patch_feature_layer],
        "drop_prefix_tokens": config.drop_prefix_tokens,
        "normalize_features": config.normalize_features,
        "preprocessing": digest(processor.image_processor.to_dict()),
    }


def qformer_fingerprint(model: CromeForConditionalGeneration) -> str:
    """A fingerprint of the Q-Former and its queries."""
    state = bridge_state(model)
    return fingerprint({k: v for k, v in state.items() if k.startswith(QFORMER)})


def digest(identity: dict[str, Any]) -> str:
    """A short name for an identity or for settings."""
    text = json.dumps(identity, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def picture_key(picture: Any) -> str:
    """A picture's name: a hash of its file's bytes, or of its pixels, and the view's number.

    The pixels of an opened picture are hashed after its palette is applied, as an encoder sees
    them: equal indices with different palettes are different pictures.
    """
    if isinstance(picture, View):
        return f"{picture_key(picture.path)}/{picture.number}"
    if isinstance(picture, Image.Image):
        pixels = load_image(picture)
        return hashlib.sha256(f"{pixels.size}".encode() + pixels.tobytes()).hexdigest()
    return file_key(Path(picture))


@lru_cache(maxsize=1 << 20)
def file_key(path: Path) -> str:
    """A hash of a file, which is read once a process: a run notices no later change."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"no picture {path}: {error.strerror}.") from error


def question_keys(keys: Sequence[Sequence[str]], batch: dict[str, Tensor]) -> Iterator[str]:
    """A name for each block of a batch, in order: its picture and its row's instruction."""
    ids, mask = batch.get("qformer_input_ids"), batch.get("qformer_attention_mask")
    for row, pictures in enumerate(keys):
        words = b""
        if ids is not None and mask is not None and pictures:
            words = ids[row][mask[row].bool()].numpy().tobytes()
        for key in pictures:
            yield hashlib.sha256(key.encode() + b"/" + words).hexdigest()


def index_of(keys: Sequence[Sequence[str]], order: Mapping[str, int]) -> Tensor:
    """The number of each row's pictures in `order`: (rows, most pictures a row), -1 as padding."""
    width = max(map(len, keys))
    return torch.tensor(
        [[*map(order.__getitem__, row), *[-1] * (width - len(row))] for row in keys]
    )
