"""A prompt → the language model's keys and values for it, reusing what was computed before.

Two caches, both bounded by bytes: frozen visual features by picture, and the keys and values of an
image prefix (the prompt's head and the patch tokens) by picture, adapter, head and tenant.

Shapes: I distinct images, T text tokens, L prompt length with visual tokens, P patch tokens, H
heads, D head width, V vocabulary.
"""

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from transformers import DynamicCache

from crome.errors import InputError
from crome.model.language import head_rows
from crome.model.modeling import CromeForConditionalGeneration
from crome.model.vision import VisualFeatures

Layers = list[tuple[Tensor, Tensor]]
"""Keys and values of each layer, both (rows, H, tokens, D)."""
PLAIN = {"DynamicLayer", "DynamicSlidingWindowLayer"}
Value = TypeVar("Value")


class RemovedError(LookupError):
    """The adapter is no longer there."""


@dataclass
class Prompt:
    """One prompt as tensors, and which pictures it shows.

    Attributes:
        ids: (1, T) text.
        visual_position: (1,) text tokens in front of the visual block.
        digests: A name for the content of each distinct picture.
        pixel_values: (I, 3, H, W); None without pictures.
        image_index: (1, K) pictures in order.
        instruction: Inputs of the Q-Former by name.
        adapter: Key of the adapter in `model.task_adapters`; None for the base's own.
        tenant: Whose request it is: tenants share no prefixes, so none can time another's.
        length: L, known once it was read.
        reused: How many of those came from the cache of prefixes.
    """

    ids: Tensor
    visual_position: Tensor
    digests: tuple[str, ...] = ()
    pixel_values: Tensor | None = None
    image_index: Tensor | None = None
    instruction: dict[str, Tensor] = field(default_factory=dict)
    adapter: str | None = None
    tenant: str = ""
    length: int = 0
    reused: int = 0


class BoundedCache(Generic[Value]):
    """Least recently used values go first once their bytes are too many.

    Args:
        limit: Bytes kept at most.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.bytes = 0
        self.hits = 0
        self.misses = 0
        self._entries: OrderedDict[Hashable, tuple[Value, int]] = OrderedDict()

    def get(self, key: Hashable) -> Value | None:
        """The value, or None; either is counted."""
        if key not in self._entries:
            self.misses += 1
            return None
        self.hits += 1
        self._entries.move_to_end(key)
        return self._entries[key][0]

    def put(self, key: Hashable, value: Value, size: int) -> None:
        """Keeps a value of so many bytes, unless it is larger than the whole cache."""
        if size > self.limit or key in self._entries:
            return
        self._entries[key] = value, size
        self.bytes += size
        while self.bytes > self.limit:
            _, (_, dropped) = self._entries.popitem(last=False)
            self.bytes -= dropped


class Prefill:
    """Reads prompts.

    Args:
        model: In eval mode, with a decoder-only language model.
        feature_bytes: Of visual features kept.
        prefix_bytes: Of image prefixes kept.

    Raises:
        InputError: The language model cannot be decoded in a changing batch.
    """

    def __init__(
        self,
        model: CromeForConditionalGeneration,
        feature_bytes: int = 256 << 20,
        prefix_bytes: int = 512 << 20,
    ) -> None:
        if model.config.text_config.is_encoder_decoder or not _batches(model):
            raise InputError(
                f"{model.config.language_model_id} cannot be served: its state is not keys and "
                "values alone. `crome ask` and `crome evaluate` run it."
            )
        self.model = model
        self.features: BoundedCache[VisualFeatures] = BoundedCache(feature_bytes)
        self.prefixes: BoundedCache[Layers] = BoundedCache(prefix_bytes)

    def read(self, prompt: Prompt) -> tuple[Layers, Tensor]:
        """Runs the prompt.

        Always alone and in the same two parts, so that neither company nor a warm cache changes a
        bit of the outcome.

        Returns:
            Keys and values of one row, and the logits (V,) of the first new token.

        Raises:
            RemovedError: The adapter was removed.
        """
        if prompt.adapter is not None and prompt.adapter not in self.model.task_adapters:
            raise RemovedError("the model was removed while the request waited.")
        device = device_of(self.model)
        ids = prompt.ids.to(device)
        visual: dict[str, Any] = {} if prompt.pixel_values is None else self._visual(prompt, device)
        embeds, _ = self.model.prompt_embeddings(
            ids,
            torch.ones_like(ids),
            prompt.visual_position,
            **visual,
            adapter_names=[prompt.adapter],
        )  # (1, L, d)
        prompt.length = embeds.shape[1]
        shared = self._prefix_length(prompt, visual)
        cache = self._prefix(prompt, embeds[:, :shared]) if shared else DynamicCache()
        suffix = embeds[:, shared:]
        last = torch.tensor([suffix.shape[1] - 1], device=device)
        with head_rows(self.model.language_model, last):
            logits = self.model.language_model(
                inputs_embeds=suffix, past_key_values=cache, use_cache=True
            ).logits
        return layers_of(cache), logits.reshape(-1)

    def _visual(self, prompt: Prompt, device: torch.device) -> dict[str, Any]:
        """The arguments of a visual block, its features from the cache where they are known."""
        assert prompt.pixel_values is not None
        assert prompt.image_index is not None
        found: list[VisualFeatures] = []
        for digest, pixels in zip(prompt.digests, prompt.pixel_values, strict=True):
            features = self.features.get(digest)
            if features is None:
                features = self.model.visual_features(pixels[None].to(device))
                self.features.put(digest, features, sum(t.nbytes for t in features[:2]))
            found.append(features)
        return {
            "features": VisualFeatures(*map(torch.cat, zip(*(f[:2] for f in found), strict=True))),
            "image_index": prompt.image_index.to(device),
            **{name: tensor.to(device) for name, tensor in prompt.instruction.items()},
        }

    def _prefix_length(self, prompt: Prompt, visual: dict[str, Any]) -> int:
        """Tokens that all questions on a picture begin with: the head and the first patches."""
        config = self.model.config
        patches_first = "patch" in config.branches and config.visual_order == "patches_first"
        if not visual or not config.share_prefix or not patches_first:
            return 0
        features = visual["features"]
        assert isinstance(features, VisualFeatures)
        return int(prompt.visual_position[0]) + features.patches.shape[1]

    def _prefix(self, prompt: Prompt, embeds: Tensor) -> DynamicCache:
        head = tuple(prompt.ids[0, : int(prompt.visual_position[0])].tolist())
        assert prompt.image_index is not None
        first = prompt.digests[int(prompt.image_index[0, 0])]
        key = (prompt.tenant, prompt.adapter, first, head)
        layers = self.prefixes.get(key)
        if layers is None:
            cache = DynamicCache()
            self.model.language_model.get_decoder()(
                inputs_embeds=embeds, past_key_values=cache, use_cache=True
            )
            layers = layers_of(cache)
            self.prefixes.put(key, layers, sum(k.nbytes + v.nbytes for k, v in layers))
        else:
            prompt.reused = embeds.shape[1]
        return DynamicCache(layers)


def layers_of(cache: DynamicCache) -> Layers:
    """Keys and values of every layer."""
    layers: list[Any] = cache.layers
    return [(layer.keys, layer.values) for layer in layers]


def device_of(model: CromeForConditionalGeneration) -> torch.device:
    """Where the language model reads."""
    device = model.get_input_embeddings().weight.device
    assert isinstance(device, torch.device)
    return device


def _batches(model: CromeForConditionalGeneration) -> bool:
    """Whether a row's state is keys and values that other rows can be put beside.

    Sliding windows are: their layers are kept whole here, and the mask does the sliding.
    """
    kinds = {type(layer).__name__ for layer in model._new_cache().layers}
    return kinds <= PLAIN
