"""A frozen language model in shares, for when it does not fit one device (FSDP2).

Only its layers are cut up. They have no gradients and no optimiser and are never saved, so nothing
else has to know: what trains stays whole on every device, under plain data parallelism, and
checkpoints are those of a run in one process.

A layer is gathered from all processes each time it runs, so all have to run it equally often,
forward and back, whatever their rows are.
"""

from typing import Any

import torch
from torch import nn
from torch.distributed import get_world_size
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from crome.checkpoints.holding import layers as layers
from crome.model.bridge import tower_fingerprints
from crome.model.modeling import CromeForConditionalGeneration


def shard_language_model(model: Any) -> None:
    """Leaves every process its share of each layer; a layer is gathered while it computes.

    The layers come from host memory, where `crome.checkpoints.loading.to_device` leaves them, and
    go to the device one by one: it never holds more than the shares and one whole layer.

    Args:
        model: The whole model, of whose layers a shard is left.
    """
    if isinstance(model, CromeForConditionalGeneration):
        model.tower_fingerprints = tower_fingerprints(model)  # a share alone could not tell
    else:
        model.base_identity()  # is kept
    model.language_model.register_forward_pre_hook(way_back, with_kwargs=True)
    device = model.get_input_embeddings().weight.device
    mesh = init_device_mesh(device.type, (get_world_size(),))
    for layer in layers(model.language_model):
        fully_shard(layer, mesh=mesh)  # moves the layer to the device, and keeps a share of it


def way_back(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Makes a batch of text alone go back through the layers too, for nothing."""
    embeds = kwargs.get("inputs_embeds")
    if embeds is not None and torch.is_grad_enabled() and not embeds.requires_grad:
        kwargs["inputs_embeds"] = embeds.requires_grad_()
    return args, kwargs
