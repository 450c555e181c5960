"""Any Hugging Face language model as the frozen tower: loaded, built, and given embeddings."""

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
    GenerationMixin,
    GgufConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

from crome.model.families import check_family, text_inside
from crome.model.families import new_cache as new_cache
from crome.model.head import head_rows as head_rows


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


def embed_words(model: Any, ids: Tensor) -> Tensor:
    """Ids → embeddings as the model itself reads them.

    An encoder's embeddings need not be those of its decoder. Some encoders (Pegasus, Marian) scale
    words on the way in, outside their embedding module, and leave embeddings that are given as they
    are.
    """
    if not model.config.is_encoder_decoder:
        embedded: Tensor = model.get_input_embeddings()(ids)
        return embedded
    encoder = model.get_encoder()
    words = encoder.get_input_embeddings()
    scale = 1.0 if hasattr(words, "embed_scale") else getattr(encoder, "embed_scale", 1.0)
    read: Tensor = words(ids) * scale
    return read


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
