"""Decoder layers in fewer steps, over weights in the layout of the processor.

Shapes: B rows, T tokens, d width, H heads of queries, K heads of keys, D width of a head.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache

FAMILIES = ("LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer", "Qwen3DecoderLayer")
"""Layers that compute what `FusedLayer` does."""
ROWS = 8
"""Number of rows that the layout of weights is made for; other numbers work, too."""
CLOSE = 0.03
"""Relative difference that rounding to bfloat16 can make in the output of a layer."""


class Packed:
    """Linear layers side by side, their weights in oneDNN's layout.

    Args:
        linears: Layers in bfloat16 that take the same input.
    """

    def __init__(self, *linears: Any) -> None:
        weights = [linear.weight.detach() for linear in linears]
        weight = torch.cat(weights) if len(weights) > 1 else weights[0]
        biases = [linear.bias for linear in linears]
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight, ROWS)
        self._bias = None if biases[0] is None else torch.cat(biases).detach()

    def __call__(self, inputs: Tensor) -> Tensor:
        """(…, inputs) → (…, outputs of all)."""
        return torch.ops.mkldnn._linear_pointwise(inputs, self._weight, self._bias, "none", [], "")

    def add(self, inputs: Tensor, summand: Tensor) -> Tensor:
        """The product plus a tensor of its shape."""
        return torch.ops.mkldnn._linear_pointwise.binary(
            inputs, summand, self._weight, self._bias, "add"
        )


class Rotation:
    """The rotary embedding of a pass, prepared once for all layers."""

    def __init__(self) -> None:
        self._given: Any = None
        self._ready: tuple[Tensor, Tensor] = (torch.empty(0), torch.empty(0))

    def __call__(self, heads: Tensor, given: tuple[Tensor, Tensor]) -> Tensor:
        """Turns (B, T, heads, D) by cosines and sines, both (B or 1, T, D)."""
        if given is not self._given:
            cos, sin = given
            half = sin.shape[-1] // 2
            signed = torch.cat([-sin[..., :half], sin[..., half:]], -1)
            self._given, self._ready = given, (cos.unsqueeze(2), signed.unsqueeze(2))
        cos, sin = self._ready
        return torch.addcmul(heads * cos, heads.roll(heads.shape[-1] // 2, -1), sin)


class FusedLayer:
    """A layer of Llama's kind with fewer products, and with sums inside of products.

    Queries, keys and values come from one product, and both halves of the gate from another. Keys
    of grouped queries are not repeated, as transformers does wherever there is a mask: on a CPU
    PyTorch's kernel takes both.

    Args:
        layer: A layer of one of `FAMILIES`.
        rotation: The model's rotation.
    """

    def __init__(self, layer: Any, rotation: Rotation) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self._attention = attention
        self._act = mlp.act_fn
        self._rotation = rotation
        self._norms = layer.input_layernorm, layer.post_attention_layernorm
        self._head_norms = getattr(attention, "q_norm", None), getattr(attention, "k_norm", None)
        self._width = attention.head_dim
        self._queries = attention.q_proj.out_features // self._width
        self._turned = self._queries + attention.k_proj.out_features // self._width
        self._inner = mlp.gate_proj.out_features
        self.linears = (
            attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj,
            mlp.gate_proj, mlp.up_proj, mlp.down_proj,
        )  # fmt: skip
        self._heads = Packed(*self.linears[:3])
        self._out = Packed(attention.o_proj)
        self._gate = Packed(mlp.gate_proj, mlp.up_proj)
        self._down = Packed(mlp.down_proj)

    def __call__(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        position_embeddings: Any = None,
        **kwargs: Any,
    ) -> Tensor:
        """(B, T, d) → (B, T, d), as the layer's own `forward`."""
        shape = hidden_states.shape[:2]
        first, second = self._norms
        heads = self._heads(_norm(first, hidden_states)).view(*shape, -1, self._width)
        turned, values = heads[:, :, : self._turned], heads[:, :, self._turned :].transpose(1, 2)
        of_query, of_key = self._head_norms
        if of_query is not None and of_key is not None:
            parts = turned.split([self._queries, self._turned - self._queries], 2)
            turned = torch.cat([_norm(of_query, parts[0]), _norm(of_key, parts[1])], 2)
        turned = self._rotation(turned, position_embeddings).transpose(1, 2)
        queries, keys = turned[:, : self._queries], turned[:, self._queries :]
        if past_key_values is not None:
            keys, values = past_key_values.update(keys, values, self._attention.layer_idx)
        mixed = F.scaled_dot_product_attention(
            queries, keys, values, attention_mask,
            is_causal=attention_mask is None and shape[1] > 1,
            scale=self._attention.scaling, enable_gqa=True,
        )  # fmt: skip
        mixed = mixed.transpose(1, 2).reshape(*shape, -1)
        hidden_states = self._out.add(mixed, hidden_states)
        both = self._gate(_norm(second, hidden_states))
        inner = self._act(both[..., : self._inner]) * both[..., self._inner :]
        return self._down.add(inner, hidden_states)


def fuse(layer: Any, decoder: Any, rotation: Rotation) -> None:
    """Makes a layer run as a `FusedLayer` without its own weights, if it is fit for that.

    Args:
        layer: A layer of `decoder`.
        decoder: A decoder with PyTorch's fused kernel as its attention.
        rotation: The rotation that all its layers share.
    """
    fit = type(layer).__name__ in FAMILIES and decoder.config._attn_implementation == "sdpa"
    if not fit or any(type(m) is not nn.Linear for m in _projections(layer)):
        return
    fused = FusedLayer(layer, rotation)
    if _agrees(layer, fused, decoder):
        layer.forward = fused
        for linear in fused.linears:
            linear.weight = linear.bias = None


def _projections(layer: Any) -> list[Any]:
    inside = [*layer.self_attn.named_modules(), *layer.mlp.named_modules()]
    return [module for name, module in inside if name.endswith("_proj")]


def _agrees(layer: Any, fused: FusedLayer, decoder: Any) -> bool:
    """Whether both layers compute the same, for several tokens and for one that follows."""
    width = decoder.config.hidden_size
    generator = torch.Generator().manual_seed(0)
    caches = DynamicCache(), DynamicCache()
    for begin, end in ((0, 5), (5, 6)):
        hidden = torch.randn(1, end - begin, width, generator=generator).bfloat16()
        places = torch.arange(begin, end)[None]
        given: dict[str, Any] = {
            "position_ids": places, "position_embeddings": decoder.rotary_emb(hidden, places)
        }  # fmt: skip
        with torch.inference_mode():
            ours = fused(hidden, past_key_values=caches[0], **given) - hidden
            theirs = layer(hidden, past_key_values=caches[1], **given) - hidden
        if not (ours - theirs).norm() <= CLOSE * theirs.norm():
            return False
    return True


def _norm(norm: Any, inputs: Tensor) -> Tensor:
    """A layer's root mean square norm in one call."""
    return F.rms_norm(inputs, (inputs.shape[-1],), norm.weight, norm.variance_epsilon)
