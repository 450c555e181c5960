"""What a model of this package returns.

Shapes: B rows, L tokens of a row with its visual ones, A answer tokens, V vocabulary, d width of
the language model.
"""

from dataclasses import dataclass

from torch import Tensor
from transformers.utils.generic import ModelOutput


@dataclass
class CromeOutput(ModelOutput):
    """What `forward` returns.

    Attributes:
        loss: Cross-entropy over answer tokens, mean or sum / `num_items_in_batch`.
        logits: (A, V) at the positions that predict an answer token when labels were given, None
            where they are so many that losses are computed in chunks (`crome.model.losses`);
            otherwise (B, L, V) over the whole sequence, visual tokens included.
        token_losses: (A,) cross-entropy of each answer token, in row order.
        hidden_states: Of each layer of the language model, (B, L, d), where they were asked for.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    token_losses: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
