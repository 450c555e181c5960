"""Prompts → the language model's keys and values for them, reusing what was computed before.

A prompt is read in stretches: its head, which others share; the patch tokens of its first picture,
which other questions on that picture share; and the rest. Long stretches are read in chunks, so
that running answers go on between them. Prompts that are there together are read side by side.

Two caches, both bounded by bytes: frozen visual features by tenant and picture, and the keys and
values of what is shared by tenant, head, picture and adapter.

Shapes: I distinct images, T text tokens, L prompt length with visual tokens, N tokens of a stretch,
d width of the language model, V vocabulary.
"""

from collections.abc import Hashable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache

from crome.errors import InputError
from crome.model.families import new_cache
from crome.model.language import head_rows
from crome.model.vision import VisualFeatures
from crome.serving.engine.caches import BoundedCache
from crome.serving.engine.layers import (
    Layers,
    layers_of,
    ones_of,
    own_copies,
    side_by_side,
    tokens_of,
)
from crome.serving.engine.protocol import EngineModel, Prompt, RemovedError
from crome.serving.engine.reading import Reading, Stretch

PLAIN = {"DynamicLayer", "DynamicSlidingWindowLayer"}
CHUNK = 512
"""Most tokens of a stretch that are read at once, also when no answer waits for its next token: a
client that leaves ends the work before long."""
MIB = 1 << 20


class Prefill:
    """Reads prompts.

    Args:
        model: In eval mode, with a decoder-only language model.
        feature_bytes: Of visual features kept; None for a number that suits the model.
        prefix_bytes: Of shared stretches kept; None for a number that suits the model.

    Raises:
        InputError: The language model cannot be decoded in a changing batch.
    """

    def __init__(
        self,
        model: EngineModel,
        feature_bytes: int | None = None,
        prefix_bytes: int | None = None,
    ) -> None:
        if model.config.text_config.is_encoder_decoder or not _batches(model):
            raise InputError(
                f"{model.config.language_model_id} cannot be served: its state is not keys and "
                "values alone. `crome ask` and `crome evaluate` run it."
            )
        self.model = model
        self._suited = feature_bytes is None, prefix_bytes is None
        self.features: BoundedCache[VisualFeatures] = BoundedCache(feature_bytes or 256 * MIB)
        self.prefixes: BoundedCache[Layers] = BoundedCache(prefix_bytes or 512 * MIB)
        self.block = 0
        """Visual tokens of one picture, known once one was read."""
        self.token_bytes = 0
        """Keys and values of one token, known once one was read."""

    def length(self, prompt: Prompt) -> int:
        """L, as far as it is known before a picture was read."""
        pictures = 0 if prompt.image_index is None else prompt.image_index.numel()
        return prompt.ids.shape[1] + pictures * self.block

    def new_pictures(self, prompt: Prompt) -> int:
        """Pictures of a prompt whose features are not kept."""
        return sum((prompt.tenant, digest) not in self.features for digest in prompt.digests)

    # ------------------------------------------------------------------ from prompts to embeddings

    def begin(self, prompts: Sequence[Prompt]) -> list[Reading]:
        """Computes the embeddings of prompts, their pictures and questions side by side.

        Raises:
            RemovedError: An adapter was removed.
        """
        for prompt in prompts:
            if prompt.adapter is not None and prompt.adapter not in self.model.task_adapters:
                raise RemovedError("the model was removed while the request waited.")
        device = device_of(self.model)
        lengths = [prompt.ids.shape[1] for prompt in prompts]
        ids = _stack([prompt.ids[0] for prompt in prompts], 0).to(device)
        mask = _stack([torch.ones(n, dtype=torch.long) for n in lengths], 0).to(device)
        visual = self._visual(prompts, device)
        embeds, seen = self.model.prompt_embeddings(
            ids,
            mask,
            torch.cat([prompt.visual_position for prompt in prompts]),
            **visual,
            adapter_names=[prompt.adapter for prompt in prompts],
            side="right",
        )  # (B, L, d)
        readings = []
        for row, (prompt, length) in enumerate(zip(prompts, seen.sum(1).tolist(), strict=True)):
            prompt.length = length
            if prompt.image_index is not None:
                self.block = (length - lengths[row]) // prompt.image_index.numel()
            # A copy: a view kept in a reading would keep all prompts of the group.
            own = embeds[row : row + 1, :length].clone() if len(prompts) > 1 else embeds
            reading = Reading(self._cut(prompt, own, self._shared_tokens(prompt, visual)))
            self._skip_known(reading)
            readings.append(reading)
        return readings

    def _visual(self, prompts: Sequence[Prompt], device: torch.device) -> dict[str, Any]:
        """The arguments of visual blocks, their features from the cache where they are known."""
        if all(prompt.pixel_values is None for prompt in prompts):
            return {}
        places: dict[Hashable, int] = {}
        found: list[VisualFeatures | None] = []
        unknown: list[tuple[Hashable, Tensor]] = []
        index: list[Tensor] = []
        for prompt in prompts:
            own = []
            for number, digest in enumerate(prompt.digests):
                key = (prompt.tenant, digest)
                if key not in places:
                    places[key] = len(found)
                    found.append(self.features.get(key))
                    if found[-1] is None:
                        assert prompt.pixel_values is not None
                        unknown.append((key, prompt.pixel_values[number]))
                own.append(places[key])
            images = torch.zeros(0, dtype=torch.long)
            if prompt.image_index is not None:
                images = torch.tensor(own, dtype=torch.long)[prompt.image_index[0]]
            index.append(images)
        for known, features in zip(
            [key for key, _ in unknown], self._see([pixels for _, pixels in unknown]), strict=True
        ):
            found[places[known]] = features
            self.features.put(known, features, sum(t.nbytes for t in features[:2]))
        all_features = [features[:2] for features in found if features is not None]
        return {
            "features": VisualFeatures(*map(torch.cat, zip(*all_features, strict=True))),
            "image_index": _stack(index, -1).to(device),
            **self._instructions(prompts, device),
        }

    def _see(self, pictures: Sequence[Tensor]) -> Iterator[VisualFeatures]:
        """Frozen features of each picture; those of one size are encoded together."""
        if not pictures:
            return
        device = device_of(self.model)
        same = all(p.shape == pictures[0].shape for p in pictures)
        for group in [pictures] if same else [[p] for p in pictures]:
            features = self.model.visual_features(torch.stack(list(group)).to(device))
            for i in range(len(group)):
                # Copies, as views would keep the features of the whole group.
                yield VisualFeatures(*(t[i : i + 1].clone() for t in features[:2]))

    @staticmethod
    def _instructions(prompts: Sequence[Prompt], device: torch.device) -> dict[str, Tensor]:
        """What the Q-Former reads for each prompt, padded on the right."""
        names = {name for prompt in prompts for name in prompt.instruction}
        return {
            name: _stack([p.instruction[name][0] for p in prompts], 0).to(device) for name in names
        }

    def _shared_tokens(self, prompt: Prompt, visual: dict[str, Any]) -> int:
        """Patch tokens of the first picture, if all questions on it begin with them."""
        config = self.model.config
        patches_first = "patch" in config.branches and config.visual_order == "patches_first"
        if prompt.image_index is None or not config.share_prefix or not patches_first:
            return 0
        return int(visual["features"].patches.shape[1])

    def _cut(self, prompt: Prompt, embeds: Tensor, patches: int) -> list[Stretch]:
        """Cuts (1, L, d) embeddings behind the head and behind the first picture's patches."""
        head = int(prompt.visual_position[0]) % prompt.length  # no picture: all may be in front
        words = (prompt.tenant, tuple(prompt.ids[0, :head].tolist()))
        stretches = [Stretch(embeds[:, :head], words)] if head else []
        if patches:
            assert prompt.image_index is not None
            picture = prompt.digests[int(prompt.image_index[0, 0])]
            key = (*words, prompt.adapter, picture)
            stretches.append(Stretch(embeds[:, head : head + patches], key))
        return [*stretches, Stretch(embeds[:, head + patches :])]

    def _skip_known(self, reading: Reading) -> None:
        """Begins behind the longest known part of a prompt."""
        for number in range(len(reading.stretches) - 1, 0, -1):
            if (layers := self.prefixes.get(reading.stretches[number - 1].key)) is not None:
                reading.layers, reading.done = layers, number
                reading.reused = tokens_of(layers)
                return

    # ------------------------------------------------------------------ from embeddings to keys

    def advance(self, readings: Sequence[Reading], tokens: int) -> int:
        """Reads the next chunks of some prompts, the first of them at any rate.

        One that comes alone is read in the same chunks whether its beginning is known or not, so a
        warm cache does not change a bit of the outcome; company changes its rounding.

        Args:
            readings: Those that are not finished.
            tokens: Read at once at most, with padding.

        Returns:
            Tokens that were read, with padding.
        """
        # Of those that share the next stretch, the one that has read most of it leads.
        leaders: dict[Hashable, Reading] = {}
        for reading in readings:
            key = reading.key if reading.key is not None else id(reading)
            if key not in leaders or reading.offset > leaders[key].offset:
                leaders[key] = reading
        chosen: list[Reading] = []
        longest = 0
        for reading in leaders.values():
            longest = max(longest, min(reading.left, tokens, CHUNK))
            if chosen and longest * (len(chosen) + 1) > tokens:
                break
            chosen.append(reading)
        self._extend(chosen, min(tokens, CHUNK))
        for leader in chosen:
            if not leader.offset:  # it has come to the end of a stretch
                self._share(leader, readings)
        return longest * len(chosen)

    def _share(self, leader: Reading, readings: Sequence[Reading]) -> None:
        """Keeps the stretch that was just read, and passes it to whoever else begins with it."""
        layers, key = leader.layers, leader.stretches[leader.done - 1].key
        size = sum(k.nbytes + v.nbytes for k, v in layers)
        self.token_bytes = size // max(tokens_of(layers), 1)
        if key is None:
            return
        if leader.cache is not None:
            layers = own_copies(layers)
        self.prefixes.put(key, layers, size)
        for other in readings:
            if not other.finished and other.key == key:
                other.pass_to(layers)

    def _extend(self, readings: Sequence[Reading], tokens: int) -> None:
        """Reads the next tokens of prompts, each behind what is known of its row."""
        chunks = [r.stretches[r.done].embeds[:, r.offset : r.offset + tokens] for r in readings]
        if len(readings) == 1:
            cache, mask = readings[0].own_cache(), ones_of(readings[0].layers)
        else:
            cache, mask = side_by_side([(r.layers, ones_of(r.layers)) for r in readings])
        logits = self._read(cache, mask, chunks)
        read = layers_of(cache)
        for i, (reading, chunk) in enumerate(zip(readings, chunks, strict=True)):
            layers, number = read, chunk.shape[1]
            if len(readings) > 1:
                end = mask.shape[1] + number
                own = slice(mask.shape[1] - tokens_of(reading.layers), end)
                layers = own_copies([(k[i : i + 1, :, own], v[i : i + 1, :, own]) for k, v in read])
                reading.cache = None
            if number == reading.left:
                reading.pass_to(layers)
            else:
                reading.layers, reading.offset = layers, reading.offset + number
            reading.logits = logits[i]

    def _read(self, cache: DynamicCache, mask: Tensor, chunks: Sequence[Tensor]) -> Tensor:
        """Reads (1, N, d) embeddings of rows behind what a cache holds of them.

        Rows are padded on the left of what is known and on the right of what is new: the tokens of
        a row stay contiguous, and causality hides what follows them.

        Returns:
            Logits (B, V) behind the last token of each row.
        """
        device = device_of(self.model)
        before = mask.shape[1]
        new = torch.tensor([chunk.shape[1] for chunk in chunks])
        longest = int(new.max())
        mask = torch.cat([mask, (torch.arange(longest) < new[:, None]).long()], 1)
        language_model = self.model.language_model
        last = torch.arange(len(chunks)) * longest + new - 1
        with head_rows(language_model, last):
            logits: Tensor = language_model(
                inputs_embeds=torch.cat(
                    [F.pad(chunk, (0, 0, 0, longest - chunk.shape[1])) for chunk in chunks]
                ),
                attention_mask=mask.to(device),
                position_ids=(mask.cumsum(1) - 1)[:, before:].to(device),
                past_key_values=cache,
                use_cache=True,
            ).logits
        return logits.reshape(len(chunks), -1)

    def suit(self, memory: int) -> None:
        """Gives caches without a size of their own one that suits the model, once it is known.

        Args:
            memory: Bytes that are free for the server.
        """
        features, prefixes = self._suited
        picture = self.features.bytes // max(len(self.features), 1)
        if features:
            self.features.limit = max(256 * MIB, min(256 * picture, memory // 16))
        if prefixes:
            block = self.block * self.token_bytes
            self.prefixes.limit = max(512 * MIB, min(64 * block, memory // 8))


def device_of(model: EngineModel) -> torch.device:
    """Where the language model reads."""
    device = model.get_input_embeddings().weight.device
    assert isinstance(device, torch.device)
    return device


def _stack(rows: Sequence[Tensor], value: int) -> Tensor:
    """(n,) rows of different lengths → (rows, longest), padded on the right."""
    longest = max(len(row) for row in rows)
    return torch.stack([F.pad(row, (0, longest - len(row)), value=value) for row in rows])


def _batches(model: EngineModel) -> bool:
    """Whether a row's state is keys and values that other rows can be put beside.

    Sliding windows are: their layers are kept whole here, and the mask does the sliding.
    """
    kinds = {type(layer).__name__ for layer in new_cache(model.language_model).layers}
    return kinds <= PLAIN
