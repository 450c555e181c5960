"""What a vision-language model makes of pictures, films and sounds before its language model.

transformers encodes in two documented steps: `get_<modality>_features` runs a tower and its
projector, and `forward(mm_encoder_outputs=…)` puts the result in the place of the placeholders. In
between is where the adapter stands, and what is before it never changes, so that a feature cache
can keep it.

Shapes: N tokens of one picture, d width of the language model.
"""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils.generic import ModelOutput

from crome.errors import InputError

MODALITIES = ("image", "video", "audio")
MAIN_INPUTS = {
    "image": ("pixel_values", "pixel_values_images", "image_patches"),
    "video": ("pixel_values_videos",),
    "audio": ("input_features", "input_values", "audio_input_ids"),
}
"""Names under which families take the raw data of a modality."""
TOKENS = {"fuyu": "last_hidden_state", "granite4_vision": "deepstack_features"}
"""Where an encoder's output holds what the language model reads, if not in `pooler_output`; of
additions to several layers it is the first."""
PADDING_MARKED = ("gemma3n",)
"""Families whose encoder of recordings is told where padding is, and not where samples are."""


ONE_PLACE = ("glm4v", "glm4v_moe", "glm46v", "glm_ocr", "molmo2")
"""Families that write frames of videos with the placeholder of pictures, and in one pass put either
pictures or videos there: of a batch with both, all go in as pictures, in the order of rows."""


@dataclass
class Encoded(ModelOutput):
    """What the encoder of one modality gives for the pictures of one row, or of a batch.

    Attributes:
        pooler_output: The tokens that the language model reads: (I, N, d), (N, d), or a list with
            one (N, d) for each picture or tile, as the family has it; of recordings always a list.
        last_hidden_state: The same, for the few families that read it there.
        deepstack_features: What further layers of the language model add, for each of them.
        visual_indicator_features: Embeddings of Ovis's marks around a picture.
        qformer_outputs: Only for models that hand it on.
        vision_outputs: Only for models that hand it on.
        router_logits: Only for models that hand them on.
    """

    pooler_output: Any = None
    last_hidden_state: Any = None
    deepstack_features: Any = None
    visual_indicator_features: Any = None
    qformer_outputs: Any = None
    vision_outputs: Any = None
    router_logits: Any = None


Visual = dict[str, Encoded]
"""What the encoders give for one set of media, by modality."""
LAYERS = "deepstack_features"
KEPT = ("pooler_output", "last_hidden_state", "deepstack_features", "visual_indicator_features")


class Encoder:
    """The frozen encoders of a model, by modality.

    Args:
        vlm: A vision-language model of transformers.
    """

    def __init__(self, vlm: PreTrainedModel) -> None:
        kind = vlm.config.model_type
        self.tokens_in = TOKENS.get(kind, "pooler_output")
        self.padding_marked = kind in PADDING_MARKED
        self.one_place = kind in ONE_PLACE
        self.functions: dict[str, Any] = {}
        self.inputs: dict[str, frozenset[str]] = {}
        for modality in MODALITIES:
            function = feature_function(vlm, modality)
            if function is not None:
                self.functions[modality] = function
                self.inputs[modality] = frozenset(inspect.signature(function).parameters)

    def __call__(self, media: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Encoded]:
        """Runs the towers over the media of one row.

        Args:
            media: The processor's tensors for that row, and its lists of numbers.
            dtype: Floating point type of the towers.

        Returns:
            Modality → what its encoder gives, without gradients.
        """
        found = {}
        for modality, function in self.functions.items():
            if not any(name in media for name in MAIN_INPUTS[modality]):
                continue
            named = {k: v for k, v in media.items() if k in self.inputs[modality]}
            named = {k: typed(v, dtype) for k, v in named.items()}
            if self.padding_marked and modality == "audio":
                named["input_features_mask"] = ~named["input_features_mask"]
            with torch.no_grad(), processor_blamed(modality):
                output = function(**named, return_dict=True)
            found[modality] = heard(output) if modality == "audio" else self.reduced(output)
        return found

    def together(self, rows: Sequence[Visual]) -> dict[str, list[Encoded]]:
        """What the rows of a batch show, by the modality under which the model takes it."""
        by = {m: [row[m] for row in rows if m in row] for m in self.functions}
        by = {modality: found for modality, found in by.items() if found}
        if self.one_place and len(by) > 1:
            return {"image": [encoded for row in rows for encoded in row.values()]}
        return by

    def reduced(self, output: Any) -> Encoded:
        """An encoder's output without what the language model does not read."""
        kept = {name: getattr(output, name, None) for name in KEPT}
        if self.tokens_in != "last_hidden_state":
            kept["last_hidden_state"] = None
        if self.tokens_in != "pooler_output":
            kept["pooler_output"] = None
        return Encoded(**kept)

    def tokens(self, encoded: Encoded) -> list[Tensor]:
        """The tensors (…, d) of tokens in an encoder's output."""
        held = encoded[self.tokens_in]
        if self.tokens_in == LAYERS:
            held = held[0][1]
        return [held] if isinstance(held, Tensor) else list(held)

    def replaced(self, encoded: Encoded, tokens: Sequence[Tensor]) -> Encoded:
        """The output with other tokens in the same places."""
        held = encoded[self.tokens_in]
        if self.tokens_in == LAYERS:
            (layer, pieces), *rest = held
            new: Any = [(layer, like(pieces, tokens)), *rest]
        else:
            new = like(held, tokens)
        return Encoded(**{**encoded, self.tokens_in: new})


def heard(output: Any) -> Encoded:
    """The tokens of recordings without padding; one piece for all where a family has them so."""
    tokens = getattr(output, "pooler_output", None)
    tokens = output.last_hidden_state if tokens is None else tokens
    real = getattr(output, "attention_mask", None)
    if (padding := getattr(output, "audio_mel_mask", None)) is not None:
        real = ~padding
    if real is None:
        return Encoded(pooler_output=[tokens])
    pairs = zip(tokens, real.to(tokens.device), strict=True)
    return Encoded(pooler_output=[piece[kept] for piece, kept in pairs])


def typed(value: Any, dtype: torch.dtype) -> Any:
    """Numbers with a floating point in a tower's type; all else as it is."""
    floating = isinstance(value, Tensor) and value.is_floating_point()
    return value.to(dtype) if floating else value


@contextmanager
def processor_blamed(modality: str) -> Iterator[None]:
    """Says what is meant where an encoder cannot read the tensors that a processor made.

    Raises:
        InputError: In place of what the encoder trips over.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (ValueError, RuntimeError, TypeError, IndexError, AttributeError) as error:
        reason = str(error).strip().split("\n")[0][:160]
        raise InputError(
            f"the model's {modality} encoder cannot read what its processor prepared ({reason}); "
            "load model and processor from one checkpoint."
        ) from error


def like(held: Any, tokens: Sequence[Tensor]) -> Any:
    """Tokens in a container of the same kind."""
    return tokens[0] if isinstance(held, Tensor) else type(held)(tokens)


def feature_function(vlm: PreTrainedModel, modality: str) -> Any:
    """`get_<modality>_features` of a model, the inner one where the outer hides arguments."""
    name = f"get_{modality}_features"
    for owner in (getattr(vlm, "model", None), vlm.base_model, vlm):
        if (function := getattr(owner, name, None)) is not None:
            return function
    return None


def join(parts: Sequence[Encoded]) -> Encoded:
    """The outputs of several rows as one, in the order of rows.

    Raises:
        InputError: Rows differ in a way that one batch cannot hold.
    """
    if len(parts) == 1:
        return Encoded(**parts[0])  # transformers writes into what it is given
    joined = {}
    for name in parts[0]:
        values = [part[name] for part in parts]
        if name == "visual_indicator_features":
            joined[name] = values[0]  # the same for every picture
        elif name == "deepstack_features":
            joined[name] = [join_layer(layer) for layer in zip(*values, strict=True)]
        else:
            joined[name] = join_pieces(values)
    return Encoded(**joined)


def join_layer(layer: Sequence[Any]) -> Any:
    """One layer's additions of several rows; Granite writes (number of the layer, additions)."""
    if isinstance(layer[0], list | tuple) and isinstance(layer[0][0], int):
        return (layer[0][0], join_pieces([pieces for _, pieces in layer]))
    return join_pieces(layer)


def join_pieces(values: Sequence[Any]) -> Any:
    """Lists of tensors one after the other, or tensors along their first dimension."""
    if not isinstance(values[0], Tensor):
        return [piece for value in values for piece in value]
    if len({value.shape[1:] for value in values}) > 1:  # pictures of different sizes
        values = [value.reshape(-1, value.shape[-1]) for value in values]
    if len({value.shape[-1] for value in values}) > 1:
        raise InputError("the pictures of this batch differ in the width of their tokens.")
    return torch.cat(list(values))
