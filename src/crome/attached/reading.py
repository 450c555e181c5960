"""One pass of an attached model over whole rows: its logits, or the losses of labelled tokens.

Shapes: B rows, T tokens, A answer tokens, V vocabulary.
"""

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from crome.attached.apart import disturbed, logits_apart, losses_apart
from crome.attached.batches import Parts
from crome.attached.prefix import packed_call
from crome.model.families import forget_lengths
from crome.model.kernels import packed
from crome.model.losses import answer_losses, predicting_rows
from crome.model.modeling import CromeOutput


def logits(model: Any, parts: Parts, output_hidden_states: bool) -> CromeOutput:
    """(B, T, V) over whole rows."""
    ids, mask, shown, text = parts
    if disturbed(model, mask) and not output_hidden_states:
        return CromeOutput(logits=logits_apart(model, parts))
    wanted = {"output_hidden_states": True} if output_hidden_states else {}
    forget_lengths(model.language_model)
    with model.running():
        call = model.call(ids, mask, shown, text)
        output = model.vlm(**call, **wanted, use_cache=False, return_dict=True)
    return CromeOutput(logits=output.logits, hidden_states=getattr(output, "hidden_states", None))


def label_losses(model: Any, parts: Parts, labels: Tensor) -> tuple[Tensor | None, Tensor]:
    """Logits at the rows that predict a label, or None, and the losses (A,)."""
    ids, mask, shown, text = parts
    if disturbed(model, mask):
        return None, losses_apart(model, parts, labels)
    shown = model.encoded(shown)
    rows, targets = predicting_rows(labels)
    shared = packed_call(model, ids, mask, labels, shown, text)
    packing = None
    if shared is None:
        call = model.call(ids, mask, shown, text)
    else:
        place, packing, call = shared
        rows = place.flatten()[rows]
    forget_lengths(model.language_model)
    with packed(packing), model.running():
        return answers(model.vlm, rows, targets, call)


def answers(
    vlm: Any, rows: Tensor, targets: Tensor, call: dict[str, Any]
) -> tuple[Tensor | None, Tensor]:
    """Logits and losses at the rows that predict; all rows' where a model hides its head."""
    if vlm.get_output_embeddings() is not None:
        return answer_losses(vlm, rows, targets, use_cache=False, **call)
    found = vlm(**call, use_cache=False).logits.flatten(0, 1)[rows]
    return found, F.cross_entropy(found.float(), targets, reduction="none")
