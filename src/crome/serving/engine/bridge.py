"""What an engine does with the bridge besides prompts: adapters, and where the queries look."""

from pathlib import Path
from typing import Any

from torch import Tensor

from crome.adapter import CrossModalAdapter
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


def finite_adapter(model: Any, folder: Path) -> CrossModalAdapter:
    """The adapter in a folder.

    Raises:
        InputError: It belongs to another base, or holds numbers that are not finite, with which
            every answer would fail.
    """
    adapter: CrossModalAdapter = model.read_adapter(folder)
    for name, weight in adapter.state_dict().items():
        if not weight.isfinite().all():
            raise InputError(
                f"{folder}: {name} holds numbers that are not finite; train the adapter anew."
            )
    return adapter
