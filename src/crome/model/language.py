"""Any Hugging Face language model as the frozen tower: loaded, built, and given embeddings.

Its head projects chosen positions only, whatever a model does around it. A hook stands before the
head once and for all, and asks the context of the call what to do: two threads that use one model
at a time do not meet each other's choice.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from threading import Lock
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    GenerationMixin,
    GgufConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

from crome.model.families import check_family, text_inside
from crome.model.families import new_cache as new_cache
from crome.model.tensors import require_sound

Change = Callable[[Tensor], Tensor]
"""From the hidden states that reach a head, (B, T, d) or (N, d), to those that it projects."""

_CHANGE: ContextVar[tuple[nn.Module, Change] | None] = ContextVar("crome_head_change", default=None)
_LOCK = Lock()


def _before_the_head(head: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
    if torch.compiler.is_compiling():
        return None
    chosen = _CHANGE.get()
    if chosen is None or chosen[0] is not head:
        return None
    return (chosen[1](inputs[0]), *inputs[1:])


@contextmanager
def head_input(language_model: PreTrainedModel, change: Change) -> Iterator[None]:
    """Has a model's head project other hidden states, in this thread, as long as the block lasts.

    Args:
        language_model: The model whose head is meant.
        change: Applied to what reaches the head.
    """
    head = language_model.get_output_embeddings()
    with _LOCK:
        if _before_the_head not in head._forward_pre_hooks.values():
            head.register_forward_pre_hook(_before_the_head)
    token = _CHANGE.set((head, change))
    try:
        yield
    finally:
        _CHANGE.reset(token)


@contextmanager
def head_rows(language_model: PreTrainedModel, rows: Tensor | None) -> Iterator[None]:
    """Makes the vocabulary projection run on chosen positions only, gathered into a 2-D tensor.

    Everything a model does around its head (scaling, soft-capping) stays in place, which is why
    the choice is made right before the head. A strided 3-D input would also leave the fast path of
    bf16 matrix products on the CPU, by two orders of magnitude.

    Args:
        language_model: The model whose head is meant.
        rows: Flat indices into (B · T) hidden states; None keeps all rows and only makes the
            input contiguous.
    """

    def gather(hidden: Tensor) -> Tensor:
        if rows is None:
            return hidden.contiguous()
        return hidden.reshape(-1, hidden.shape[-1])[rows.to(hidden.device)]

    with head_input(language_model, gather):
        yield


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
    trusted = kwargs.setdefault("trust_remote_code", False)
    config = AutoConfig.from_pretrained(
        folder, revision=kwargs.get("revision"), trust_remote_code=trusted, **gguf
    )
    if gguf:
        kwargs["quantization_config"] = GgufConfig(dequantize=True)
    auto: Any = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    check_family(config, auto)
    model, found = auto.from_pretrained(folder, output_loading_info=True, **gguf, **kwargs)
    require_sound(model, found["missing_keys"])
    if text_inside(config):  # its own way of generating is for pictures of its own
        model.prepare_inputs_for_generation = MethodType(
            GenerationMixin.prepare_inputs_for_generation, model
        )
    return model.eval()


def embed_words(model: Any, ids: Tensor) -> Tensor:
    """Ids → embeddings as the model itself reads them.

    An encoder's embeddings need not be those of its decoder. Some encoders (Pegasus, Marian) scale
    words on the way in, outside their embedding module, and leave embeddings that are given as they
    are.
    """
    if not model.config.is_encoder_decoder:
        return model.get_input_embeddings()(ids)
    encoder = model.get_encoder()
    words = encoder.get_input_embeddings()
    scale = 1.0 if hasattr(words, "embed_scale") else getattr(encoder, "embed_scale", 1.0)
    return words(ids) * scale


def decoder_inputs(model: Any, labels: Tensor) -> Tensor:
    """Labels shifted to the right behind the start token, as the model's own family does it."""
    if hasattr(model, "prepare_decoder_input_ids_from_labels"):
        return model.prepare_decoder_input_ids_from_labels(labels)
    config = model.config
    shifted = F.pad(labels[:, :-1], (1, 0), value=config.decoder_start_token_id)
    return shifted.masked_fill(shifted < 0, config.pad_token_id or 0)


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
