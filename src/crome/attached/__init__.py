"""The adapter on a vision-language model people already have.

Read `encoding` (the way in), then `modeling`; `processing` and `prompts` make the batches.
"""

import inspect
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedModel
from transformers.activations import ACT2FN

from crome.adapter import ACTIVATION
from crome.attached.families import FILMS_AS_PICTURES, SUFFIX_TYPE, check_family
from crome.attached.modeling import AttachedModel
from crome.attached.processing import AttachedProcessor
from crome.errors import InputError, positive_whole, switches

__all__ = ["AttachedModel", "AttachedProcessor", "attach"]


def attach(
    vlm: PreTrainedModel,
    processor: Any,
    *,
    bottleneck: int = 256,
    branches: Sequence[str] | None = None,
    gated: bool = True,
    shared_up: bool = True,
    activation: str = ACTIVATION,
    system_prompt: str | None = None,
    max_question_tokens: int = 2048,
    max_answer_tokens: int = 1024,
) -> tuple[AttachedModel, AttachedProcessor]:
    """Puts the gated adapter right before the language model of a vision-language model.

    Args:
        vlm: A loaded model of transformers; frozen from now on, and otherwise left as it is.
        processor: Its processor.
        bottleneck: Inner width m of the adapter; the paper's is 256 at every size.
        branches: Modalities that get a branch (`image`, `video`, `audio`); all that the model has
            by default.
        gated: False drops the gate.
        shared_up: False gives every branch an up-projection of its own.
        activation: Activation of the gate.
        system_prompt: System message; None leaves it to the template.
        max_question_tokens: Longer questions lose their beginning.
        max_answer_tokens: Longer answers lose their end.

    Returns:
        The model, and a processor that is called like `CromeProcessor`.

    Raises:
        InputError: A setting means nothing, the family is not supported, the processor is another
            model's, or the chat template cannot be used.
    """
    check_model(vlm)
    if bottleneck is None:
        raise InputError("bottleneck is None; expected a whole number above 0.")
    positive_whole(
        bottleneck=bottleneck,
        max_question_tokens=max_question_tokens,
        max_answer_tokens=max_answer_tokens,
    )
    switches(gated=gated, shared_up=shared_up)
    if not isinstance(activation, str) or activation not in ACT2FN:
        raise InputError(
            f"activation is {activation!r}; expected a name such as silu, gelu or relu."
        )
    if branches is not None and (isinstance(branches, str) or not isinstance(branches, Sequence)):
        raise InputError(f"branches is {branches!r}; expected a list such as ['image'].")
    if not isinstance(system_prompt, str | None):
        raise InputError(f"system_prompt is {system_prompt!r}; expected a text.")
    check_family(vlm)
    check_pair(vlm, processor)
    ends = getattr(vlm.generation_config, "eos_token_id", None) if vlm.can_generate() else None
    prepared = AttachedProcessor(
        processor,
        (),
        system_prompt=system_prompt,
        end_ids=ends if isinstance(ends, list) else [] if ends is None else [ends],
        suffix_type=SUFFIX_TYPE.get(vlm.config.model_type, 0),
        max_question_tokens=max_question_tokens,
        max_answer_tokens=max_answer_tokens,
    )
    model = AttachedModel(
        vlm,
        bottleneck=bottleneck,
        branches=branches,
        gated=gated,
        shared_up=shared_up,
        activation=activation,
        prompts=prepared.template.record(),
    )
    prepared.inputs = inputs_of(model)
    branches = model.adapter_settings["branches"]
    films = vlm.config.model_type in FILMS_AS_PICTURES and "image" in branches
    prepared.media = (*branches, "video") if films else tuple(branches)
    return model, prepared


def check_model(vlm: Any) -> None:
    """Refuses what is no loaded model of transformers, or has something around it.

    Raises:
        InputError: With the remedy.
    """
    named, remedy = type(vlm).__name__, ""
    if hasattr(vlm, "peft_config") and hasattr(vlm, "merge_and_unload"):
        remedy = "it is wrapped by PEFT: give what its merge_and_unload() returns"
    elif hasattr(vlm, "_orig_mod"):
        remedy = "it is compiled: give the model itself, and compile afterwards"
    elif isinstance(vlm, AttachedModel):
        remedy = "it has an adapter: give its vlm, or load further adapters with load_adapter"
    elif not isinstance(vlm, PreTrainedModel):
        remedy = "give a loaded model (AutoModelForImageTextToText.from_pretrained)"
    elif hasattr(vlm, "get_image_features") and not vlm.can_generate():
        remedy = "it has no head for words: load it with AutoModelForImageTextToText"
    if remedy:
        raise InputError(f"no adapter can be attached to {named}: {remedy}.")


def inputs_of(model: AttachedModel) -> frozenset[str]:
    """Names of the tensors that a model and its encoders take."""
    names = set(inspect.signature(model.vlm.forward).parameters) | model.positions.inputs
    return frozenset(names.union(*model.encoder.inputs.values()) | {"input_ids"})


def check_pair(vlm: PreTrainedModel, processor: Any) -> None:
    """Refuses a processor whose token ids are not the model's.

    Raises:
        InputError: With what differs.
    """
    tokenizer = getattr(processor, "tokenizer", None)
    if tokenizer is None:
        raise InputError(
            f"{type(processor).__name__} has no tokenizer; give the model's own processor "
            "(AutoProcessor.from_pretrained of the same checkpoint)."
        )
    if getattr(processor, "patch_size", 1) is None:
        vision = getattr(vlm.config, "vision_config", None)
        raise InputError(
            f"{type(processor).__name__} does not say how many tokens a picture has, as older "
            "folders did not; set patch_size, num_additional_image_tokens and "
            "vision_feature_select_strategy on the processor and save it in the folder (the model "
            f"has patch_size {getattr(vision, 'patch_size', 'unknown')} and "
            f"{getattr(vlm.config, 'vision_feature_select_strategy', 'no')!r})."
        )
    embeddings: Any = vlm.get_input_embeddings()
    words = embeddings.weight.shape[0]
    theirs = getattr(processor, "image_token_id", None)
    config = vars(vlm.config)
    ours = config.get("image_token_id", config.get("image_token_index"))
    known = ours in tokenizer.get_added_vocab().values()
    if isinstance(theirs, int) and isinstance(ours, int) and theirs != ours and not known:
        raise InputError(
            f"{type(processor).__name__} writes pictures as token {theirs}, and to its tokenizer "
            f"{ours}, where {type(vlm).__name__} reads them, is a word; load model and processor "
            "from one checkpoint."
        )
    if len(tokenizer) > 2 * words:
        raise InputError(
            f"the tokenizer of {type(processor).__name__} has {len(tokenizer):,} tokens and "
            f"{type(vlm).__name__} {words:,}; load model and processor from one checkpoint."
        )
