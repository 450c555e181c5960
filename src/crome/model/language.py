"""Any Hugging Face language model as the frozen tower, and its logits where answers are."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    GgufConfig,
    PreTrainedConfig,
    PreTrainedModel,
)


def gguf_split(name: str) -> tuple[str, dict[str, str]]:
    """Splits a name that ends in `.gguf` into its folder (or hub id) and the loader's keyword."""
    if not name.endswith(".gguf"):
        return name, {}
    path = Path(name)
    return str(path.parent), {"gguf_file": path.name}


def load_language_model(name: str, **kwargs: Any) -> PreTrainedModel:
    """Loads a decoder-only or encoder-decoder language model, GGUF files included.

    GGUF weights are unpacked: packed ones would run in fp32 kernels and cannot be trained through.

    Args:
        name: Hub id, folder, or a path that ends in `.gguf`.
        kwargs: Passed to `from_pretrained` (`dtype`, `revision`, `quantization_config`, …).

    Returns:
        The model in eval mode.
    """
    folder, gguf = gguf_split(name)
    config = AutoConfig.from_pretrained(folder, revision=kwargs.get("revision"), **gguf)
    if gguf:
        kwargs["quantization_config"] = GgufConfig(dequantize=True)
    auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    return auto.from_pretrained(folder, **gguf, **kwargs).eval()


def build_language_model(config: PreTrainedConfig) -> PreTrainedModel:
    """Builds a language model from its config alone, with random (or meta) weights.

    Flan-T5's head is a matrix of its own, which transformers keeps only as
    `scale_decoder_outputs=False` and otherwise ties; it is untied here, as in the checkpoints.
    """
    if not config.is_encoder_decoder:
        return AutoModelForCausalLM.from_config(config).eval()
    model = AutoModelForSeq2SeqLM.from_config(config)
    if getattr(config, "scale_decoder_outputs", True) is False:
        model.lm_head.weight = nn.Parameter(torch.empty_like(model.lm_head.weight))
        nn.init.normal_(model.lm_head.weight, std=0.05)
    return model.eval()


@contextmanager
def head_rows(language_model: PreTrainedModel, rows: Tensor | None) -> Iterator[None]:
    """Makes the vocabulary projection run on chosen positions only, gathered into a 2-D tensor.

    Everything a model does around its head (scaling, soft-capping) stays in place, which is why
    the choice is made at the head's door. A strided 3-D input would also leave the fast path of
    bf16 matrix products on the CPU, by two orders of magnitude.

    Args:
        language_model: The model whose head is meant.
        rows: Flat indices into (B · T) hidden states; None keeps all rows and only makes the
            input contiguous.
    """

    def gather(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden = inputs[0]
        if rows is None:
            return (hidden.contiguous(), *inputs[1:])
        chosen = hidden.reshape(-1, hidden.shape[-1])[rows.to(hidden.device)]
        return (chosen, *inputs[1:])

    handle = language_model.get_output_embeddings().register_forward_pre_hook(gather)
    try:
        yield
    finally:
        handle.remove()
