"""Where the queries of a bridge look in the picture of a prompt."""

from typing import Any

from torch import Tensor

from crome.errors import InputError
from crome.model.attention import query_attention
from crome.serving.engine.protocol import Prompt


def prompt_attention(model: Any, prompt: Prompt) -> Tensor:
    """(Q, h, w) where the queries look in the first picture of a prompt.

    Raises:
        InputError: This model has no queries, or the prompt shows no picture.
    """
    if prompt.pixel_values is None:
        raise InputError("there is no picture to look at.")
    return query_attention(model, prompt.pixel_values[:1], **prompt.instruction)
