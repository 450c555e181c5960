"""Decoding on a GPU: rows in fixed places of memory, and a step that is recorded and replayed.

A decoding step is hundreds of short kernels, and a GPU runs them faster than a program starts them.
A recording (a CUDA graph) starts all of them at once, but only ever the same kernels on the same
addresses. So each row has a slot here: buffers for its keys and values, the place its next token is
written to, and a mask that hides what was not written. Rows come and go without a copy of others.

A step computes a power of two of slots, and places in steps of `PLACES`, so that few recordings
serve all batches. Slots without a row are computed in vain; nothing reads them.

Shapes: S slots, M places of a slot, B rows, N tokens, H heads, D width of a head, V vocabulary.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from threading import Lock
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from crome.errors import InputError
from crome.model.families import SCALED_BY_LENGTH, keeps_plainly, new_cache, rope_tables
from crome.model.kernels import NAME

logger = logging.getLogger(__name__)
PLACES = 128
"""Number of places that a slot has, and that a step sees, is a multiple of this."""
RECORDED_AFTER = 2
"""Steps of a size that are run before one is recorded: short answers need no recording."""
CLOSE = 0.05
"""Relative difference that rounding can make in logits; a recording beyond it is not used."""
HIDDEN = float("-inf")
Layers = Sequence[tuple[Tensor, Tensor]]
"""Keys and values of each layer, both (B, H, N, D)."""
Step = Callable[[], Tensor]
Decoding = Literal["auto", "plain", "recorded"]


class Slots:
    """Keys and values of rows in slots, and one decoding step for all of them.

    Args:
        model: A language model that `fits`.
        limit: Bytes that rows which come and go may take; a batch that needs more gets more.
    """

    def __init__(self, model: Any, limit: float = float("inf")) -> None:
        self.model = model
        self.limit = limit
        self.number = 0
        """S."""
        self.places = 0
        """M."""
        self._layers: list[tuple[Tensor, Tensor]] = []
        self._recordings: dict[tuple[int, int], Step | None] = {}
        self._runs: Counter[tuple[int, int]] = Counter()
        self._pool: Any = None
        self._mask = self._state = self._ids = torch.empty(0)

    def reserve(self, rows: int, places: int, like: Layers, kept: int = 0) -> None:
        """Makes room for rows with so many places each.

        Args:
            rows: B.
            places: Tokens of the longest row with its answer.
            like: Layers with the shapes and types of those that will be put here.
            kept: The first so many slots keep their rows.
        """
        places = -(-places // PLACES) * PLACES
        if rows <= self.number and places <= self.places:
            return
        token = sum(x.nbytes // (x.shape[0] * x.shape[2]) for pair in like for x in pair)
        most = max(rounded(rows), self.number), max(places, self.places)
        sizes = [most, (rounded(rows), places), (rows, places)]
        number, places = next((s for s in sizes if s[0] * s[1] * token <= self.limit), sizes[-1])
        self._recordings.clear()  # they know the old addresses
        self._runs.clear()
        old, self._layers = self._layers if kept else [], []
        # Tensors of inference mode could not be written to outside of it.
        with torch.inference_mode(False), torch.no_grad():
            device = like[0][0].device
            for layer, pair in enumerate(like):
                sides = [x.new_zeros(number, x.shape[1], places, x.shape[3]) for x in pair]
                if kept:
                    for side, before in zip(sides, old[layer], strict=True):
                        shared = min(places, before.shape[2])
                        side[:kept, :, :shared] = before[:kept, :, :shared]
                    old[layer] = sides[0], sides[1]  # the memory of the old ones is free now
                self._layers.append((sides[0], sides[1]))
            mask = torch.full((number, places), HIDDEN, dtype=like[0][0].dtype, device=device)
            state = torch.zeros(2, number, dtype=torch.long, device=device)
            if kept:
                shared = min(places, self.places)
                mask[:kept, :shared] = self._mask[:kept, :shared]
                state[:, :kept] = self._state[:, :kept]
            self._mask, self._state = mask, state
            self._ids = torch.zeros(number, dtype=torch.long, device=device)
        self.number, self.places = number, places

    def take(self, cache: DynamicCache, mask: Tensor, new_tokens: int) -> bool:
        """Moves the rows of a cache here, which is emptied; False where memory is too small.

        Args:
            cache: With B rows.
            mask: (B, N), 0 for padding.
            new_tokens: The most that a row will get.
        """
        layers: list[Any] = cache.layers
        known = [(layer.keys, layer.values) for layer in layers]
        try:
            self.reserve(mask.shape[0], mask.shape[1] + new_tokens, known)
        except torch.OutOfMemoryError:
            self.drop()
            return False
        self.put(known, mask.bool())
        layers.clear()
        return True

    def drop(self) -> None:
        """Gives all memory back."""
        self.number = self.places = 0
        self._layers, self._pool = [], None
        self._recordings.clear()
        self._runs.clear()
        self._mask = self._state = self._ids = torch.empty(0)

    def put(self, layers: Layers, seen: Tensor, first: int = 0) -> None:
        """Fills slots with rows.

        Args:
            layers: Of the rows.
            seen: (B, N) bool, False for padding; the next token is written behind all N.
            first: The slot of the first row.
        """
        rows, tokens = seen.shape
        own = slice(first, first + rows)
        for (keys, values), (new_keys, new_values) in zip(self._layers, layers, strict=True):
            keys[own, :, :tokens] = new_keys
            values[own, :, :tokens] = new_values
        seen = seen.to(self._mask.device)
        self._mask[own] = HIDDEN
        self._mask[own, :tokens].masked_fill_(seen, 0.0)
        self._state[0, own] = tokens
        self._state[1, own] = seen.sum(1)

    def move(self, source: int, target: int, tokens: int) -> None:
        """Copies a row of so many places from one slot to another."""
        for layer in self._layers:
            for side in layer:
                side[target, :, :tokens] = side[source, :, :tokens]
        self._mask[target] = self._mask[source]
        self._state[:, target] = self._state[:, source]

    def layers(self, slot: int, tokens: int) -> list[tuple[Tensor, Tensor]]:
        """Keys and values in the first places of a slot, a row of its own; views."""
        own = slice(slot, slot + 1)
        return [(keys[own, :, :tokens], values[own, :, :tokens]) for keys, values in self._layers]

    def step(self, ids: Tensor, longest: int) -> Tensor:
        """Feeds the rows of the first slots a token each.

        When it fails, it can be called again.

        Args:
            ids: (B,) on any device.
            longest: Places that the longest of the rows has filled.

        Returns:
            (B, V) logits of the next tokens, which the next step writes over.
        """
        rows = len(ids)
        self._ids[:rows] = ids
        size = min(rounded(rows), self.number), -(-(longest + 1) // PLACES) * PLACES
        logits = self._compute(size)[:rows]
        self._state[:, :rows] += 1
        return logits

    def _compute(self, size: tuple[int, int]) -> Tensor:
        if (recording := self._recordings.get(size)) is not None:
            return recording()
        logits = self._run(*size)
        self._runs[size] += 1
        records = RECORDERS.get(logits.device.type)
        if records and size not in self._recordings and self._runs[size] > RECORDED_AFTER:
            self._recordings[size] = self._recorded(records, size, logits)
        return logits

    def _recorded(self, records: Any, size: tuple[int, int], expected: Tensor) -> Step | None:
        """A recording of a step, once it has given the logits that were just computed."""
        expected = expected.clone()
        try:
            recording, self._pool = records(lambda: self._run(*size), self._pool)
            difference = (recording() - expected).float().abs().mean()
            if bool(difference <= CLOSE * expected.float().abs().mean()):
                return recording
            logger.warning("a recorded decoding step gives other logits; steps are run instead.")
        except Exception:
            logger.warning("a decoding step cannot be recorded; it is run instead.", exc_info=True)
        return None

    def _run(self, rows: int, places: int) -> Tensor:
        """(rows, V) logits of the first slots, of which the first places are seen."""
        ids, mask = self._ids[:rows], self._mask[:rows, :places]
        # A slot that a row has left may have its next place beyond those that are seen now.
        place = self._state[0, :rows, None].clamp(max=places - 1)
        mask.scatter_(1, place, 0.0)
        cache = DynamicCache()
        cache.layers = [
            SlotLayer(keys[:rows, :, :places], values[:rows, :, :places], place)
            for keys, values in self._layers
        ]
        logits: Tensor = self.model(
            inputs_embeds=self.model.get_input_embeddings()(ids)[:, None],
            attention_mask=mask[:, None, None],
            position_ids=self._state[1, :rows, None],
            past_key_values=cache,
            use_cache=True,
        ).logits
        return logits[:, -1]


class SlotLayer(DynamicLayer):
    """A layer of a cache whose rows write their next token each at its own place.

    Args:
        keys: (B, H, M, D).
        values: (B, H, M, D).
        place: (B, 1).
    """

    def __init__(self, keys: Tensor, values: Tensor, place: Tensor) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys, self.values = keys, values
        self._place = place[:, :, None, None]

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Adds (B, H, 1, D) keys and values; returns those of all places."""
        assert self.keys is not None
        assert self.values is not None
        for side, new in ((self.keys, key_states), (self.values, value_states)):
            side.scatter_(2, self._place.expand(-1, new.shape[1], 1, new.shape[3]), new)
        return self.keys, self.values


def rounded(rows: int) -> int:
    """The least power of two that is not less."""
    return 1 << (rows - 1).bit_length()


# ---------------------------------------------------------------------- recording


def cuda_graph(step: Step, pool: Any) -> tuple[Step, Any]:
    """A step as a CUDA graph.

    Args:
        step: Works on tensors that stay where they are.
        pool: The memory of earlier recordings, of which one runs at a time; None for the first.

    Returns:
        The recording, and its memory.
    """
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
        logits = step()

    def replay() -> Tensor:
        graph.replay()
        return logits

    return replay, graph.pool()


RECORDERS: dict[str, Callable[[Step, Any], tuple[Step, Any]]] = {"cuda": cuda_graph}
"""By the type of a device: what records a step there."""


# ---------------------------------------------------------------------- which models

_FITS: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()
_SLOTS: WeakKeyDictionary[nn.Module, tuple[Slots, Lock]] = WeakKeyDictionary()
_LOCK = Lock()


def fits(model: Any) -> bool:
    """Whether a language model decodes in slots, tried once on a few tokens.

    It must keep plain keys and values, see what a mask lets it, and have no step of its own that
    asks the device for a number.
    """
    if model not in _FITS:
        config = model.config
        plain = (
            not config.is_encoder_decoder
            and getattr(model, "_can_compile_fullgraph", False)
            and getattr(model.get_decoder().config, "_attn_implementation", None) in (NAME, "sdpa")
            and not any(table["rope_type"] in SCALED_BY_LENGTH for table in rope_tables(config))
            and not hasattr(model, "hf_device_map")
            and not getattr(model, "is_quantized", False)
            and keeps_plainly(model)
        )
        _FITS[model] = plain and agrees(model)
    return _FITS[model]


def choose(model: Any, decoding: Decoding) -> None:
    """Settles how a language model decodes.

    Args:
        model: A language model.
        decoding: "auto" for slots where they suit, "plain" for none, "recorded" for nothing else.

    Raises:
        InputError: Its steps are to be recorded, and cannot be.
    """
    if decoding == "plain":
        _FITS[model] = False
    elif decoding == "recorded" and not records(model):
        raise InputError(
            f"--decoding recorded: steps of {type(model).__name__} cannot be recorded on "
            f"{model.device.type}; give --decoding auto."
        )


def records(model: Any) -> bool:
    """Whether a language model decodes in slots where it is."""
    return model.device.type in RECORDERS and fits(model)


@torch.no_grad()
def agrees(model: Any) -> bool:
    """Whether a step in slots gives the logits of a step behind a growing cache."""
    words = model.get_input_embeddings()
    ids = torch.arange(5, device=words.weight.device)[None] % words.weight.shape[0]
    cache = new_cache(model)
    try:
        model(inputs_embeds=words(ids[:, :4]), past_key_values=cache, use_cache=True)
        slots = Slots(model)
        layers: list[Any] = cache.layers
        known = [(layer.keys, layer.values) for layer in layers]
        slots.reserve(1, 5, known)
        slots.put(known, torch.ones(1, 4, dtype=torch.bool))
        ours = slots._run(1, PLACES)
        theirs = model(
            inputs_embeds=words(ids[:, 4:] * 0), past_key_values=cache, use_cache=True
        ).logits[:, -1]
    except Exception:
        logger.info("%s does not decode in slots", type(model).__name__, exc_info=True)
        return False
    difference = (ours - theirs).float().abs().mean()
    return bool(difference <= CLOSE * theirs.float().abs().mean())


@contextmanager
def slots_of(model: Any) -> Iterator[Slots | None]:
    """The slots of a language model, for as long as the block lasts.

    None where a device of its kind has nothing to record with, the model does not fit, or another
    thread is using them.
    """
    if not records(model):
        yield None
        return
    with _LOCK:
        slots, lock = _SLOTS.setdefault(model, (Slots(model), Lock()))
    if not lock.acquire(blocking=False):
        yield None
        return
    try:
        yield slots
    finally:
        lock.release()
