"""Weights in 4 bits, through which an adapter is to be trained."""

from torch import nn

PACKS = "support_avx512bf16_for_cpu"
"""Attribute of bitsandbytes' layers: whether a pass without gradients may repack their weights."""


def keep_differentiable(model: nn.Module) -> None:
    """Keeps the weights of 4-bit layers in the form through which gradients pass.

    On a CPU that multiplies bfloat16 itself, bitsandbytes repacks a layer's weights for good at the
    first pass without gradients, as that of a sample answer or of rows without pictures; what is
    computed from them afterwards has no gradient, and says nothing of it.

    Args:
        model: That is going to be trained through; other layers are left alone.
    """
    for module in model.modules():
        if not getattr(module, PACKS, False):
            continue
        setattr(module, PACKS, False)
        state = getattr(getattr(module, "weight", None), "quant_state", None)
        if getattr(state, "packing_format_for_cpu", False):
            module.state_dict()  # which brings packed weights back first
