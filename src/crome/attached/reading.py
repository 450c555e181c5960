"""One pass of an attached model over whole rows: its logits, or the losses of labelled tokens.

Shapes: B rows, T tokens, A answer tokens, V vocabulary, N options.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from crome.attached.apart import call_of, disturbed, logits_apart, losses_apart
from crome.attached.batches import Parts, options_behind
from crome.attached.collating import TYPES
from crome.attached.families import SUFFIX_TYPE
from crome.attached.prefix import packed_call
from crome.model.families import forget_lengths
from crome.model.kernels import packed
from crome.model.losses import IGNORED, answer_losses, predicting_rows
from crome.model.modeling import CromeOutput


def logits(model: Any, parts: Parts, output_hidden_states: bool) -> CromeOutput:
    """(B, T, V) over whole rows."""
    ids, mask, media_batch, text = parts
    if disturbed(model, mask) and not output_hidden_states:
        return CromeOutput(logits=logits_apart(model, parts))
    wanted = {"output_hidden_states": True} if output_hidden_states else {}
    forget_lengths(model.language_model)
    with model.running():
        call = model.call(ids, mask, media_batch, text)
        output = model.vlm(**call, **wanted, use_cache=False, return_dict=True)
    return CromeOutput(logits=output.logits, hidden_states=getattr(output, "hidden_states", None))


def label_losses(model: Any, parts: Parts, labels: Tensor) -> tuple[Tensor | None, Tensor]:
    """Logits at the rows that predict a label, or None, and the losses (A,)."""
    ids, mask, media_batch, text = parts
    if disturbed(model, mask):
        return None, losses_apart(model, parts, labels)
    media_batch = model.encoded(media_batch)
    rows, targets = predicting_rows(labels)
    shared = packed_call(model, ids, mask, labels, media_batch, text)
    packing = None
    if shared is None:
        call = model.call(ids, mask, media_batch, text)
    else:
        place, packing, call = shared
        rows = place.flatten()[rows]
    forget_lengths(model.language_model)
    with packed(packing), model.running():
        return answers(model.vlm, rows, targets, call)


def with_options(
    model: Any, parts: Parts, option_ids: Tensor, option_rows: Tensor
) -> dict[str, Any]:
    """Each option behind its prompt, as a batch that `forward` takes.

    Args:
        model: An `AttachedModel`.
        parts: The prompts.
        option_ids: (N, A), -100 behind each one's end.
        option_rows: (N,) the prompt of each.
    """
    media_batch = model.encoded(parts.media_batch)
    prompts = parts.ids[option_rows], parts.mask[option_rows]
    ids, mask, labels = options_behind(*prompts, option_ids)
    room = (0, option_ids.shape[1])
    text = {k: F.pad(v[option_rows], room) for k, v in parts.text.items()}
    if suffix := SUFFIX_TYPE.get(model.vlm.config.model_type):
        types = text.get(TYPES, torch.zeros_like(ids))
        text[TYPES] = types.masked_fill(labels != IGNORED, suffix)
    chosen = None if media_batch is None else media_batch.rows(option_rows)
    return {**call_of(Parts(ids, mask, chosen, text)), "labels": labels}


def answers(
    vlm: Any, rows: Tensor, targets: Tensor, call: dict[str, Any]
) -> tuple[Tensor | None, Tensor]:
    """Logits and losses at the rows that predict; all rows' where a model hides its head."""
    if vlm.get_output_embeddings() is not None:
        return answer_losses(vlm, rows, targets, use_cache=False, **call)
    found = vlm(**call, use_cache=False).logits.flatten(0, 1)[rows]
    return found, F.cross_entropy(found.float(), targets, reduction="none")
