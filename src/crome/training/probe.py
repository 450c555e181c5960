"""What a training step costs, measured on a model of full width and two depths.

Layers of a tower are alike, so a step of a deep one costs what that of a shallow one does and for
every further layer what one layer more adds. Weights do not matter for that and are not read.

Shapes: B rows, I images, T text tokens.
"""

import copy
import gc
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from crome.model.configuration import CromeConfig
from crome.model.losses import CHUNK_ELEMENTS
from crome.model.modeling import CromeForConditionalGeneration
from crome.model.stages import TOWERS, Stage, apply_stage

DEPTHS = ("num_hidden_layers", "num_layers", "num_decoder_layers")
CPU = torch.device("cpu")
GRADIENTS = 8  # bytes of a logit on the way back through the loss: its gradient before and behind
REPEATS = 2  # the faster counts: the first warms up


class Cost(NamedTuple):
    """The cost of one step on some rows."""

    seconds: float
    activations: float
    """Bytes kept from the forward pass for the backward pass, and those of the loss on the way."""
    features: float
    """Bytes of the frozen features of one picture, as a cache keeps them."""
    picture_tokens: int = 0
    """Tokens that the language model reads of one picture."""

    def plus(self, times: float, other: "Cost", less: "Cost") -> "Cost":
        """This cost plus `times` the difference of two others, in time and memory."""
        return self._replace(
            seconds=self.seconds + times * max(0.0, other.seconds - less.seconds),
            activations=self.activations + times * max(0.0, other.activations - less.activations),
        )


class Sizes(NamedTuple):
    """Numbers of parameters."""

    language: int
    matrices: int
    """Parameters of the language model that can be quantised or sharded."""
    vision: int
    bridge: int
    trained: int
    adapter: int


class Rows(NamedTuple):
    """What the rows of a batch are like."""

    number: int
    images: int
    question_tokens: int
    answer_tokens: int


def step_cost(
    config: CromeConfig,
    stage: Stage,
    rows: Rows,
    dtype: torch.dtype,
    attn_implementation: str | None = None,
    device: torch.device = CPU,
) -> Cost:
    """A step of the whole model on these rows, from steps of shallow ones.

    Args:
        config: At full size.
        stage: What trains.
        rows: Rows of the batch.
        dtype: Type of the towers.
        attn_implementation: Attention of the language model; None for its own choice.
        device: What computes the step.
    """
    config = copy.deepcopy(config)
    if attn_implementation is not None:
        config.text_config._attn_implementation = attn_implementation
    text, vision = depth(config.text_config), depth(config.vision_config)
    low = min(vision, max(1, -min(config.patch_feature_layer, config.qformer_feature_layer) - 1))
    base = measured(shallow(config, 1, low), stage, rows, dtype, device)
    cost = base
    if text > 1:
        deeper = measured(shallow(config, 2, low), stage, rows, dtype, device)
        cost = cost.plus(text - 1, deeper, base)
    if vision > low:
        deeper = measured(shallow(config, 1, low + 1), stage, rows, dtype, device)
        cost = cost.plus(vision - low, deeper, base)
    return cost


def depth(config: Any) -> int:
    """Layers of a tower that are alike; 1 for a convolutional one, which is taken whole."""
    return next((getattr(config, name) for name in DEPTHS if hasattr(config, name)), 1)


def shallow(config: CromeConfig, text: int, vision: int) -> CromeConfig:
    """A configuration with fewer layers in both towers."""
    changed = copy.deepcopy(config)
    shorten(changed.text_config, text)
    shorten(changed.vision_config, vision)
    return changed


def shorten(tower: Any, layers: int) -> None:
    """Gives a tower's configuration so many layers."""
    full = depth(tower)
    for name, value in tower.to_dict().items():
        if name in DEPTHS and isinstance(value, int):
            setattr(tower, name, layers)
        elif isinstance(value, list) and len(value) == full and full > 1:
            setattr(tower, name, value[:layers])  # kinds of layers, one by one


def measured(
    config: CromeConfig,
    stage: Stage,
    rows: Rows,
    dtype: torch.dtype,
    device: torch.device = CPU,
) -> Cost:
    """Time and kept bytes of a forward and backward pass."""
    model = without_weights(config, dtype, device)
    apply_stage(model, stage)
    model.train()
    batch = synthetic(config, rows, device)
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    best, kept = float("inf"), 0.0
    for _ in range(REPEATS):
        seen: dict[int, int] = {}
        started = now(device)
        with saved_tensors_hooks(counting(seen, parameters), lambda tensor: tensor):
            loss = model(**batch).loss
        loss.backward()
        best, kept = min(best, now(device) - started), float(sum(seen.values()))
        model.zero_grad()
    with torch.no_grad():
        found = model.visual_features(batch["pixel_values"][:1])
    same = found.queries.data_ptr() == found.patches.data_ptr()
    features = found.queries.nbytes + (0 if same else found.patches.nbytes)
    tokens = (config.num_query_tokens if "query" in config.branches else 0) + (
        found.patches.shape[1] if "patch" in config.branches else 0
    )
    head: Any = model.get_output_embeddings()
    words: int = head.weight.shape[0]
    answers = min(rows.number * rows.answer_tokens, max(1, CHUNK_ELEMENTS // words))
    del model, batch, loss, head
    gc.collect()
    return Cost(best, kept + GRADIENTS * answers * words, float(features), tokens)


def counting(seen: dict[int, int], excluded: set[int]) -> Callable[[Tensor], Tensor]:
    """A hook that notes the memory behind every tensor that autograd keeps, each once."""

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in excluded:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    return note


def now(device: torch.device) -> float:
    """Seconds, after the device has done what it was told.

    On the CPU those of this process's own work, as if nothing else ran on the machine.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return time.perf_counter()
    return time.process_time() / torch.get_num_threads()


def without_weights(
    config: CromeConfig, dtype: torch.dtype, device: torch.device
) -> CromeForConditionalGeneration:
    """A model with small constant weights, which compute as fast as any."""
    with torch.device("meta"):
        model = CromeForConditionalGeneration(config)
    for name in TOWERS:
        torch.nn.Module.to(getattr(model, name), dtype)
    model.to_empty(device=device)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.fill_(0.01 if tensor.is_floating_point() else 0)
    return model


def synthetic(config: CromeConfig, rows: Rows, device: torch.device) -> dict[str, Any]:
    """A batch of such rows: grey pictures, one token over and over."""
    side = getattr(config.vision_config, "image_size", 224)
    height, width = (side, side) if isinstance(side, int) else side
    answers = rows.answer_tokens
    length = rows.question_tokens + (0 if config.text_config.is_encoder_decoder else answers)
    ids = torch.ones(rows.number, length, dtype=torch.long, device=device)
    labels = torch.ones(rows.number, answers, dtype=torch.long, device=device)
    if not config.text_config.is_encoder_decoder:
        labels = torch.cat([torch.full_like(ids[:, answers:], -100), labels], 1)
    batch = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "visual_position": torch.zeros(rows.number, dtype=torch.long, device=device),
        "pixel_values": torch.zeros(rows.images, 3, height, width, device=device),
        "image_index": (torch.arange(rows.number, device=device) % rows.images)[:, None],
        "labels": labels,
    }
    if config.instruction_aware and "query" in config.branches:
        read = torch.ones(rows.number, rows.question_tokens, dtype=torch.long, device=device)
        batch |= {"qformer_input_ids": read, "qformer_attention_mask": torch.ones_like(read)}
    return batch
