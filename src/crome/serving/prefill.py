"""Prompts → the language model's keys and values for them, reusing what was computed before.

A prompt is read in stretches: its head, which others share; the patch tokens of its first picture,
which other questions on that picture share; and the rest. Those of prompts that arrive together
are read side by side.

Two caches, both bounded by bytes: frozen visual features by picture, and the keys and values of
what is shared by tenant, head, picture and adapter.

Shapes: I distinct images, T text tokens, L prompt length with visual tokens, N tokens of a stretch,
d width of the language model, V vocabulary.
"""

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from crome.errors import InputError
from crome.model.language import head_rows, new_cache
from crome.model.modeling import CromeForConditionalGeneration
from crome.model.vision import VisualFeatures
from crome.serving.layers import Layers, layers_of, ones_of, side_by_side, tokens_of

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


@dataclass(frozen=True)
class Stretch:
    """Part of a prompt that is read in one go.

    Attributes:
        embeds: (1, N, d).
        key: Names it and all that stands before it; None for what no other prompt shares.
        before: Key of what stands before it; None for nothing.
    """

    embeds: Tensor
    key: Hashable = None
    before: Hashable = None


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
        prefix_bytes: Of shared stretches kept.

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
        self.block = 0
        """Visual tokens of one picture, known once one was read."""

    def length(self, prompt: Prompt) -> int:
        """L, as far as it is known before a picture was read."""
        shown = 0 if prompt.image_index is None else prompt.image_index.numel()
        return prompt.ids.shape[1] + shown * self.block

    def stretches(self, prompt: Prompt) -> list[Stretch]:
        """The parts of a prompt, in order.

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
        if prompt.image_index is not None:
            self.block = (prompt.length - ids.shape[1]) // prompt.image_index.numel()
        return self._cut(prompt, embeds, self._patches(visual))

    def read(self, prompts: Sequence[Sequence[Stretch]]) -> list[tuple[Layers, Tensor, int]]:
        """Runs prompts side by side.

        One that comes alone is read in the same stretches whether they are known or not, so a warm
        cache does not change a bit of the outcome; company changes its rounding.

        Args:
            prompts: From `stretches`.

        Returns:
            Of each prompt its keys and values, one row; the logits (V,) of the first new token; and
            how many of its tokens were known.
        """
        fronts = [self._front(prompt) for prompt in prompts]
        known = {key: layers for _, key, layers in fronts}
        for depth in range(2):  # the heads, then the pictures
            unread = {
                prompt[depth].key: prompt[depth]
                for prompt, (number, _, _) in zip(prompts, fronts, strict=True)
                if number <= depth < len(prompt) - 1
            }
            found = self._extend([(known[s.before], s.embeds) for s in unread.values()])
            for key, (layers, _) in zip(unread, found, strict=True):
                known[key] = layers
                self.prefixes.put(key, layers, sum(k.nbytes + v.nbytes for k, v in layers))
        read = self._extend([(known[prompt[-1].before], prompt[-1].embeds) for prompt in prompts])
        reused = [tokens_of(layers) for _, _, layers in fronts]
        return [(*row, number) for row, number in zip(read, reused, strict=True)]

    def _front(self, prompt: Sequence[Stretch]) -> tuple[int, Hashable, Layers]:
        """How many stretches are known, the key of the last of them, and its keys and values."""
        for number in range(len(prompt) - 1, 0, -1):
            key = prompt[number - 1].key
            if (layers := self.prefixes.get(key)) is not None:
                return number, key, layers
        return 0, None, []

    def _extend(self, rows: Sequence[tuple[Layers, Tensor]]) -> list[tuple[Layers, Tensor]]:
        """Reads (1, N, d) embeddings, each behind what is known of its row.

        Rows are padded on the left of what is known and on the right of what is new: the tokens of
        a row stay contiguous, and causality hides what follows them.

        Returns:
            Keys and values of each row, and the logits (V,) behind its last token.
        """
        if not rows:
            return []
        device = device_of(self.model)
        cache, mask = side_by_side([(past, ones_of(past)) for past, _ in rows])
        before = mask.shape[1]
        new = torch.tensor([embeds.shape[1] for _, embeds in rows])
        longest = int(new.max())
        mask = torch.cat([mask, (torch.arange(longest) < new[:, None]).long()], 1)
        with head_rows(self.model.language_model, torch.arange(len(rows)) * longest + new - 1):
            logits = self.model.language_model(
                inputs_embeds=torch.cat(
                    [F.pad(embeds, (0, 0, 0, longest - embeds.shape[1])) for _, embeds in rows]
                ),
                attention_mask=mask.to(device),
                position_ids=(mask.cumsum(1) - 1)[:, before:].to(device),
                past_key_values=cache,
                use_cache=True,
            ).logits.reshape(len(rows), -1)
        read = layers_of(cache)
        found = []
        for i, ((past, _), number) in enumerate(zip(rows, new.tolist(), strict=True)):
            own = slice(before - tokens_of(past), before + number)
            # Copies: a view kept in a cache would keep the whole batch.
            layers = [(k[i : i + 1, :, own].clone(), v[i : i + 1, :, own].clone()) for k, v in read]
            found.append((layers, logits[i]))
        return found

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

    def _patches(self, visual: dict[str, Any]) -> int:
        """Patch tokens of the first picture, if all questions on it begin with them."""
        config = self.model.config
        patches_first = "patch" in config.branches and config.visual_order == "patches_first"
        if not visual or not config.share_prefix or not patches_first:
            return 0
        features = visual["features"]
        assert isinstance(features, VisualFeatures)
        return features.patches.shape[1]

    def _cut(self, prompt: Prompt, embeds: Tensor, patches: int) -> list[Stretch]:
        """Cuts (1, L, d) embeddings behind the head and behind the first picture's patches."""
        head = int(prompt.visual_position[0]) % prompt.length  # no picture: all may be in front
        words = (prompt.tenant, tuple(prompt.ids[0, :head].tolist()))
        stretches: list[Stretch] = []
        known: Hashable = None
        if head:
            stretches.append(Stretch(embeds[:, :head], words))
            known = words
        if patches:
            assert prompt.image_index is not None
            picture = prompt.digests[int(prompt.image_index[0, 0])]
            key = (*words, prompt.adapter, picture)
            stretches.append(Stretch(embeds[:, head : head + patches], key, known))
            known = key
        return [*stretches, Stretch(embeds[:, head + patches :], before=known)]


def device_of(model: CromeForConditionalGeneration) -> torch.device:
    """Where the language model reads."""
    device = model.get_input_embeddings().weight.device
    assert isinstance(device, torch.device)
    return device


def _batches(model: CromeForConditionalGeneration) -> bool:
    """Whether a row's state is keys and values that other rows can be put beside.

    Sliding windows are: their layers are kept whole here, and the mask does the sliding.
    """
    kinds = {type(layer).__name__ for layer in new_cache(model.language_model).layers}
    return kinds <= PLAIN
