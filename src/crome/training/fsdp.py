"""A frozen language model in shares, for when it does not fit one device (FSDP2).

Only its layers are cut up. They have no gradients and no optimiser and are never saved, so nothing
else has to know: what trains stays whole on every device, under plain data parallelism, and
checkpoints are those of a run in one process.

A layer is gathered from all processes each time it runs, so all have to run it equally often,
forward and back, whatever their rows are.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import fully_shard

from crome.model.identity import tower_fingerprints
from crome.model.modeling import CromeForConditionalGeneration


def shard_language_model(model: CromeForConditionalGeneration) -> None:
    """Leaves every process its share of each layer; a layer is gathered while it computes.

    Args:
        model: With all of the language model; afterwards with a share of its layers.
    """
    model.tower_fingerprints = tower_fingerprints(model)  # a share alone could not tell
    model.language_model.register_forward_pre_hook(way_back, with_kwargs=True)
    for layer in layers(model.language_model):
        fully_shard(layer)


def way_back(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Makes a batch of text alone go back through the layers too, for nothing."""
    embeds = kwargs.get("inputs_embeds")
    if embeds is not None and torch.is_grad_enabled() and not embeds.requires_grad:
        kwargs["inputs_embeds"] = embeds.requires_grad_()
    return args, kwargs


def layers(module: nn.Module) -> Iterator[nn.Module]:
    """The layers of a language model: members of its outermost lists, an encoder's too."""
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield from child
        else:
            yield from layers(child)
