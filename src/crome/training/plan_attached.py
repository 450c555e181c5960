"""A plan's terms for an adapter on a vision-language model of transformers.

Only the adapter and the language model behind it keep activations: towers and projectors run
without gradients. Three things are left out: the time of towers, which a cache takes out of a run;
what a family adds to deeper layers (DeepStack); and that quantisation makes towers smaller too.

Shapes: B rows, L tokens of a sequence, d width of the language model.
"""

import copy
import gc
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from transformers import AutoConfig, AutoModelForImageTextToText

from crome.attached import AttachedModel, AttachedProcessor, attach
from crome.attached.families import check_kind
from crome.checkpoints.holding import layers
from crome.checkpoints.vlm import base_name, base_of, config_of, is_vlm, load_processor
from crome.errors import InputError
from crome.model.hub import named, reach_hub
from crome.model.kernels import obeys_packing, packed
from crome.model.lengths import Room, too_long
from crome.model.losses import CHUNK_ELEMENTS
from crome.model.packing import Packing
from crome.model.stages import count
from crome.rows import Row
from crome.training.probe import (
    CPU,
    GRADIENTS,
    REPEATS,
    Cost,
    Rows,
    Sizes,
    counting,
    depth,
    now,
    shorten,
)

TOO_LONG = 5  # rows that are named as longer than the model reads
LOGITS = 4 + 4  # bytes that the loss keeps of a logit: in float32, and as log-probability


@dataclass(frozen=True)
class Shape:
    """What a plan reads of a configuration."""

    text_config: Any
    hidden_size: int


class Attached(NamedTuple):
    """An attached model as a plan needs it."""

    shape: Shape
    sizes: Sizes
    cost: Cost
    too_long: list[str]
    """Messages about rows that are longer than the model reads."""


def vlm_of(checkpoint: str) -> str | None:
    """The vision-language model that a checkpoint is, or is an adapter of; None for others."""
    if Path(checkpoint).is_dir() and (base := base_of(Path(checkpoint))):
        return base_name(Path(checkpoint), base)
    return checkpoint if is_vlm(checkpoint) else None


def attached_plan(
    name: str,
    rows: Rows,
    data: Sequence[Row],
    dtype: torch.dtype,
    attention: str | None = None,
    settings: dict[str, Any] | None = None,
    device: torch.device = CPU,
) -> Attached:
    """Sizes of the model at full size, and the cost of a step on these rows.

    Args:
        name: A folder or a hub id of a vision-language model; of its weights nothing is read.
        rows: The sizes of a batch's rows.
        data: The rows of the data. Tokens of a picture are counted on the first that has one.
        dtype: Type of the frozen model.
        attention: Attention of the language model; None for its own choice.
        settings: Settings of `crome.attach`.
        device: What computes the step.

    Raises:
        InputError: The model cannot be built, or its family is not supported.
    """
    check_kind(str(config_of(name).get("model_type")))
    reach_hub()
    with named("vision-language model", name):
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
        config = getattr(config, "thinker_config", config)  # of a model that also talks
    processor = load_processor(name)
    model, prepared = attach(on_meta(config), processor, **(settings or {}))
    pictured = picture_tokens(model, prepared, data)
    text = config.get_text_config()
    if attention is not None:
        text._attn_implementation = attention
    base = measured(config, 1, model, rows, pictured, dtype, device)
    cost = base
    if depth(text) > 1:
        further = measured(config, 2, model, rows, pictured, dtype, device)
        cost = cost.plus(depth(text) - 1, further, base)
    answers = min(rows.number * rows.answer_tokens, max(1, CHUNK_ELEMENTS // text.vocab_size))
    logits = answers * text.vocab_size * (LOGITS + GRADIENTS)
    features = float(pictured * model.hidden_size * dtype.itemsize)
    cost = cost._replace(activations=cost.activations + logits, features=features)
    found = too_long(Room.measured(model, prepared), prepared, data)
    lengthy = list(islice(found, TOO_LONG))
    return Attached(Shape(text, model.hidden_size), sizes_of(model), cost, lengthy)


def on_meta(config: Any) -> Any:
    """The model without weights."""
    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(copy.deepcopy(config))


def sizes_of(model: AttachedModel) -> Sizes:
    """Numbers of parameters; what is quantised or shared out is of the language model's layers."""
    head, decoder = model.get_output_embeddings(), model.language_model
    language = {id(p): p.numel() for part in (decoder, head) for p in part.parameters()}
    inside = (m for layer in layers(decoder) for m in layer.modules() if isinstance(m, nn.Linear))
    adapter = count(model.adapter)
    return Sizes(
        language=sum(language.values()),
        matrices=sum(m.weight.numel() for m in inside),
        vision=count(model.vlm) - sum(language.values()),
        bridge=adapter,
        trained=adapter,
        adapter=adapter,
    )


def picture_tokens(model: AttachedModel, processor: AttachedProcessor, rows: Sequence[Row]) -> int:
    """Tokens that the first row with a picture, video or recording shows to the language model."""
    row = next((row for row in rows if row.media), None)
    if row is None:
        raise InputError("no row shows anything, and what trains sees nothing else.")
    ids = processor.encode([row])["input_ids"]
    return int(torch.isin(ids, torch.tensor(sorted(model.placeholders))).sum())


def measured(
    config: Any,
    text_layers: int,
    model: AttachedModel,
    rows: Rows,
    pictured: int,
    dtype: torch.dtype,
    device: torch.device,
) -> Cost:
    """Time and kept bytes of adapter and language model, forward and back.

    Rows on the same picture stand behind one copy of it where the family allows that.
    """
    changed = copy.deepcopy(config)
    shorten(changed.get_text_config(), text_layers)
    vlm = on_meta(changed)
    alone = rows.number == 1 or not (model.shares_prefix and obeys_packing(vlm))
    decoder = vlm.get_decoder().to(dtype).to_empty(device=device)
    with torch.device("meta"):
        adapter = model.new_adapter()
    adapter = adapter.to_empty(device=device)
    with torch.no_grad():
        for tensor in (*decoder.parameters(), *decoder.buffers(), *adapter.parameters()):
            tensor.fill_(0.01 if tensor.is_floating_point() else 0)
    decoder.requires_grad_(False).eval()
    behind, width = rows.question_tokens + rows.answer_tokens, model.hidden_size
    packing, call = None, {}
    sequences, length = (rows.number, behind) if alone else (1, rows.number * behind)
    if not alone:
        prefix, questions = torch.ones(1, pictured), torch.ones(rows.number, behind)
        owners = torch.zeros(rows.number, dtype=torch.long)
        packing = Packing.plan(prefix.bool(), questions.bool(), owners).to(device)
        call = {
            "attention_mask": packing.no_mask(dtype),
            "position_ids": packing.positions[None],
        }
    branch = model.adapter_settings["branches"][0]
    tokens = torch.zeros(sequences, pictured, width, device=device)
    words = torch.zeros(sequences, length, width, device=device, dtype=dtype)
    parameters = {
        p.untyped_storage().data_ptr() for m in (decoder, adapter) for p in m.parameters()
    }
    best, kept = float("inf"), 0.0
    for _ in range(REPEATS):
        seen: dict[int, int] = {}
        started = now(device)
        with saved_tensors_hooks(counting(seen, parameters), lambda tensor: tensor):
            adapted = adapter({branch: tokens})[branch].to(dtype)
            embeds = torch.cat([adapted, words], 1)
            with packed(packing):
                output = decoder(inputs_embeds=embeds, use_cache=False, **call)
            hidden = output.last_hidden_state
        hidden.sum().backward()
        best, kept = min(best, now(device) - started), float(sum(seen.values()))
    del vlm, decoder, adapter, output, hidden
    gc.collect()
    return Cost(best, kept, 0.0)
