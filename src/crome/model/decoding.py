"""How a language model decodes fast on a CPU: weights in the layout of the processor, fewer steps.

A decoding step multiplies every weight matrix by the few rows of a batch, so its time is that of
reading the weights. In bfloat16, oneDNN brings a plain matrix into its own layout at each product;
here that is done once. Layers of common families also run in fewer, larger operations. Reading the
weights empties the processor's caches, which makes every small operation between two products slow.
"""

import logging
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from crome.model.fused import Packed, Rotation, fuse
from crome.model.tensors import fingerprint

logger = logging.getLogger(__name__)
PROBE_BYTES = 64 << 20
"""Weights that a trial reads: more than most caches hold, so that memory is measured."""
PROBE_ROWS = (1, 8)
REPETITIONS = 6


def decode_fast(model: Any, free_attention: bool = False) -> bool:
    """Prepares a model on a CPU for answering; elsewhere, and in float32, it is left alone.

    Answers change by bfloat16's rounding. The model can neither be trained nor saved afterwards:
    its weights exist in the new layout only, so that memory does not grow.

    Args:
        model: Any `VisionLanguageModel`, in eval mode.
        free_attention: Whether its attention may be changed to the fused kernel, which reads
            prompts and decodes faster, but has a slow backward pass in bfloat16.

    Returns:
        Whether weights were brought into the new layout, as they are if that is faster here.
    """
    language_model = model.language_model
    embedding = model.get_input_embeddings().weight
    if embedding.device.type != "cpu" or embedding.dtype not in (torch.bfloat16, torch.float16):
        return False
    if free_attention and getattr(language_model, "_supports_sdpa", False):
        language_model.set_attn_implementation("sdpa")
    linears = _linears(language_model, model.get_output_embeddings())
    if language_model.config.is_encoder_decoder or not linears or not _offered():
        return False
    if not _calls_alone(language_model, linears) or not _faster(linears):
        return False
    # Adapters are checked against these fingerprints, which packed weights no longer give.
    language_model.crome_fingerprint = fingerprint(language_model.state_dict())
    model.base_identity()
    with torch.no_grad():
        decoder, rotation = language_model.get_decoder(), Rotation()
        for layer in getattr(decoder, "layers", ()):
            fuse(layer, decoder, rotation)
        for linear in linears:
            if linear.weight is not None:  # of a layer that was not fused
                linear.forward = Packed(linear)
                if linear.weight is not embedding:
                    linear.weight = linear.bias = None
    return True


def _offered() -> bool:
    """Whether this build of PyTorch and this processor multiply packed bfloat16."""
    mkldnn = torch.ops.mkldnn
    if not (torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled):
        return False
    return hasattr(mkldnn, "_linear_pointwise") and bool(mkldnn._is_mkldnn_bf16_supported())


def _linears(language_model: nn.Module, head: nn.Module) -> list[Any]:
    """Plain linear layers in bfloat16, the head among them."""
    modules = dict.fromkeys([*language_model.modules(), head])
    return [
        module for module in modules
        if type(module) is nn.Linear and module.weight.dtype == torch.bfloat16
    ]  # fmt: skip


@torch.no_grad()
def _calls_alone(language_model: Any, linears: Sequence[Any]) -> bool:
    """Whether a model only calls its linear layers; some models read their weights directly."""
    kept = [(linear, linear.weight, linear.bias) for linear in linears]
    width = language_model.get_input_embeddings().weight.shape[1]
    try:
        for linear, weight, bias in kept:
            linear.forward = partial(F.linear, weight=weight, bias=bias)
            linear.weight = linear.bias = None
        language_model(inputs_embeds=torch.ones(1, 2, width, dtype=torch.bfloat16))
    except Exception as error:
        logger.info("weights stay in their own layout: %s", error)
        return False
    finally:
        for linear, weight, bias in kept:
            linear.weight, linear.bias = weight, bias
            del linear.forward
    return True


@torch.no_grad()
def _faster(linears: Sequence[nn.Linear]) -> bool:
    """Whether packed weights are faster, for one row and for several, measured in turn."""
    tried: list[nn.Linear] = []
    for linear in linears:
        if sum(other.weight.nbytes for other in tried) < PROBE_BYTES:
            tried.append(linear)
    packed = [Packed(linear) for linear in tried]
    for rows in PROBE_ROWS:
        inputs = [torch.ones(rows, x.in_features, dtype=torch.bfloat16) for x in tried]
        best = [float("inf"), float("inf")]
        for _ in range(REPETITIONS):
            began = time.process_time()
            for linear, given in zip(tried, inputs, strict=True):
                F.linear(given, linear.weight, linear.bias)
            between = time.process_time()
            for product, given in zip(packed, inputs, strict=True):
                product(given)
            best = [min(best[0], between - began), min(best[1], time.process_time() - between)]
        if best[1] >= best[0]:
            return False
    return True
