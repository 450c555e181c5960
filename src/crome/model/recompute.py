"""Activation checkpointing of a frozen language model.

transformers' own works in train mode only and does nothing, silently, in eval mode, which is where
a frozen tower stays. Its layers have no dropout there, so no random state has to be kept either.
"""

import functools

import torch
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from crome.errors import InputError
from crome.model.kernels import current_packing, packed
from crome.model.packing import Head


def checkpoint_activations(language_model: PreTrainedModel) -> None:
    """Keeps only the inputs of each layer for the backward pass, which runs it again.

    A pass that fills a key-value cache is left alone: running it twice would fill it twice. (A
    `Head` is read and not filled.)

    Args:
        language_model: Its layers are changed in place; a second call changes nothing.

    Raises:
        InputError: The model has no layers that transformers could checkpoint.
    """
    layers = [m for m in language_model.modules() if isinstance(m, GradientCheckpointingLayer)]
    if not layers:
        raise InputError(
            f"{type(language_model).__name__} has no layers that can be checkpointed; train "
            "without activation checkpointing."
        )
    for layer in layers:
        if "forward" not in vars(layer):
            layer.forward = functools.partial(run, layer.forward)


def run(forward, *args, **kwargs):  # type: ignore[no-untyped-def]  # any layer's signature
    """A layer's forward, checkpointed where a backward pass will come."""
    cache = kwargs.get("past_key_values")
    if not (cache is None or isinstance(cache, Head)) or not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    packing = current_packing()  # the way back begins where its block has ended

    def again(*args, **kwargs):  # type: ignore[no-untyped-def]
        with packed(packing):
            return forward(*args, **kwargs)

    return checkpoint(again, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)


def keep_activations(language_model: PreTrainedModel) -> None:
    """Undoes `checkpoint_activations`."""
    for layer in language_model.modules():
        if isinstance(layer, GradientCheckpointingLayer):
            vars(layer).pop("forward", None)
