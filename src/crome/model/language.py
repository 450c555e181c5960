"""Any Hugging Face language model as the frozen tower, and its logits where answers are."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    DynamicCache,
    GenerationMixin,
    GgufConfig,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.cache_utils import DynamicLayer
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from crome.errors import InputError


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
    auto: Any = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    check_family(config, auto)
    model, found = auto.from_pretrained(folder, output_loading_info=True, **gguf, **kwargs)
    if missing := sorted(found["missing_keys"]):
        raise OSError(f"it lacks {missing[0]}")
    if text_inside(config):  # its own way of generating is for pictures of its own
        model.prepare_inputs_for_generation = MethodType(
            GenerationMixin.prepare_inputs_for_generation, model
        )
    return model.eval()


def text_inside(config: PreTrainedConfig) -> bool:
    """Whether a language model is part of one that sees, such as Gemma 3 from 4 B on."""
    return config.get_text_config() is not config and not config.is_encoder_decoder


UNFIT = {
    "rwkv": "does not mask padding",
    "minimax": "does not mask padding",
    "fsmt": "takes zeros in its input for padding",
    "prophetnet": "predicts several tokens at a time",
    "falcon_h1": "scales words, but not embeddings that are given",
}
"""Families that would answer wrongly, and why."""


def check_family(config: PreTrainedConfig, auto: Any) -> None:
    """Refuses language models that cannot work between embeddings and answers.

    Raises:
        InputError: With what it is that they do otherwise.
    """
    kind, text = config.model_type, config.get_text_config()
    reason = UNFIT.get(kind)
    if type(config) not in auto._model_mapping:
        if hasattr(config, "auto_map"):  # code of its own
            return
        reason = f"is not among those of {auto.__name__}"
    elif (
        kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES
        and not config.is_encoder_decoder
        and not getattr(config, "is_decoder", False)
    ):
        reason = "reads text in both directions"
    elif getattr(text, "hidden_size_per_layer_input", 0):
        reason = "reads token ids in every layer, and pictures have none"
    elif not text_inside(config):
        prepare = auto._model_mapping[type(config)].prepare_inputs_for_generation
        if "inputs_embeds" not in inspect.signature(prepare).parameters:
            reason = "cannot generate from embeddings"
    if reason:
        raise InputError(
            f"the language model {kind!r} {reason}; expected a causal language model or an "
            "encoder-decoder, such as Llama, Qwen3, Gemma 3, SmolLM or T5."
        )


def positions_tell(model: PreTrainedModel) -> bool:
    """Whether position ids and mask alone tell a decoder where a token stands.

    ALiBi's bias and GPT-Neo's local windows count places in the sequence, with padding and other
    questions' tokens between.
    """
    text = model.config.get_text_config()
    takes = "position_ids" in inspect.signature(model.get_decoder().forward).parameters
    by_place = getattr(text, "alibi", False) or "local" in getattr(text, "attention_layers", ())
    return takes and not by_place


def new_cache(model: PreTrainedModel) -> DynamicCache:
    """An empty cache of keys and values, as a decoder wants it."""
    return DynamicCache(config=model.config.get_text_config())


def keeps_plainly(model: PreTrainedModel) -> bool:
    """Whether keys and values just grow, and padding between them moves nothing.

    Sliding windows and recurrent states do not grow.
    """
    growing = all(type(layer) is DynamicLayer for layer in new_cache(model).layers)
    return growing and positions_tell(model)


def takes_any_mask(model: PreTrainedModel) -> bool:
    """Whether a decoder's attention takes a mask of any form, and any positions."""
    return positions_tell(model) and model.config.get_text_config()._attn_implementation in (
        "eager",
        "sdpa",
    )


def embed_words(model: Any, ids: Tensor) -> Tensor:
    """Ids → embeddings as the model itself reads them.

    Some encoders (Pegasus, Marian) scale words on the way in, outside their embedding module, and
    leave embeddings that are given as they are.
    """
    words = model.get_input_embeddings()
    embedded: Tensor = words(ids)
    if model.config.is_encoder_decoder and not hasattr(words, "embed_scale"):
        return embedded * getattr(model.get_encoder(), "embed_scale", 1.0)
    return embedded


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
