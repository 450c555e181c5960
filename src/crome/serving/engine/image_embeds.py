"""Pictures of an attached model as the image embeddings that an unmodified vLLM takes.

Tower, projector and adapter run here, and vLLM serves the model as it is. It must be started with
`--enable-mm-embeds`. A conversation goes to its chat endpoint, in which each picture is a part

    {"type": "image_embeds", "image_embeds": {"image_embeds": …, "image_grid_thw": …}}

of base64 text of what `torch.save` writes, or the first of these texts alone for families whose
positions hang on nothing else. vLLM writes the chat template itself and returns the token ids of
the prompt, so that `check_prompt` can compare them with what the model was trained with.

Shapes: N tokens of a picture, d width of the language model, L additions to further layers.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from crome.attached.adapting import through
from crome.attached.collating import moved
from crome.attached.prompts import DATE, SWITCHES
from crome.errors import InputError
from crome.serving.engine.protocol import Prompt
from crome.serving.vllm import encode

BESIDE: dict[str, tuple[str, ...]] = {
    "internvl": (),
    "llava": (),
    "llava_next": (),
    "llava_onevision": (),
    "qwen2_vl": ("image_grid_thw",),
    "qwen2_5_vl": ("image_grid_thw",),
    "qwen3_vl": ("image_grid_thw",),
    "qwen3_vl_moe": ("image_grid_thw",),
}
"""Families that vLLM takes image embeddings of, and what it needs beside them."""
TEMPLATE = {**SWITCHES, "date_string": DATE.strftime("%d %b %Y")}
"""What templates are told, as in `crome.attached.prompts`."""


def check_family(model: Any, processor: Any) -> None:
    """Refuses a model of which vLLM takes no image embeddings, or no conversation.

    Raises:
        InputError: Naming the family.
    """
    kind = model.vlm.config.model_type
    if kind not in BESIDE:
        raise InputError(
            f"vLLM takes no image embeddings of {kind} models, only of {', '.join(BESIDE)}; leave "
            "--engine and --engine_url out, and `crome serve` runs this one itself."
        )
    if not processor.uses_chat_template:
        raise InputError(
            "vLLM takes pictures in conversations alone, and this model has no chat template; "
            "leave --engine and --engine_url out, and `crome serve` runs it itself."
        )


def chat(model: Any, prompt: Prompt) -> list[dict[str, Any]]:
    """The messages of a prompt for vLLM's chat endpoint, pictures as embeddings.

    Args:
        model: An `AttachedModel` of a family in `BESIDE`.
        prompt: With `messages`, and the tensors of one row in `batch`.

    Raises:
        InputError: A film or a sound, of which vLLM takes no embeddings on this way.
    """
    pictures = iter(embeddings(model, prompt))
    return [
        {"role": message["role"], "content": [part_of(p, pictures) for p in message["content"]]}
        for message in prompt.messages or ()
    ]


def part_of(part: Mapping[str, Any], pictures: Iterator[Mapping[str, Tensor]]) -> dict[str, Any]:
    """A part of a message on the wire."""
    if part["type"] == "text":
        return {"type": "text", "text": part["text"]}
    if part["type"] != "image":
        raise InputError(f"vLLM takes pictures and text from here, and no {part['type']}.")
    tensors = {name: encode(tensor) for name, tensor in next(pictures).items()}
    named = tensors if len(tensors) > 1 else tensors["image_embeds"]
    return {"type": "image_embeds", "image_embeds": named}


def embeddings(model: Any, prompt: Prompt) -> list[dict[str, Tensor]]:
    """What each picture of a prompt is for vLLM: `image_embeds` (N, d · (1 + L)) and its grid."""
    assert prompt.batch is not None
    (media,) = prompt.batch["media"]
    media = moved(media, model.place)
    (visual,) = through(model.encoder, model.get_adapter(prompt.adapter), [model.encode(media)])
    tokens = flat(model.encoder.tokens(visual["image"]))
    layers = visual["image"].deepstack_features or ()
    whole = torch.cat([tokens, *(flat(as_list(layer)) for layer in layers)], -1)
    sizes = picture_sizes(model, prompt, visual["image"])
    if sum(sizes) != len(whole):
        raise InputError(
            f"a prompt has {sum(sizes)} places for {len(whole)} tokens of its pictures; it was cut "
            "inside them, or the processor is not this model's."
        )
    beside = {name: media[name] for name in BESIDE[model.vlm.config.model_type]}
    return [
        {"image_embeds": piece, **{name: values[n] for name, values in beside.items()}}
        for n, piece in enumerate(whole.split(sizes))
    ]


def picture_sizes(model: Any, prompt: Prompt, output: Any) -> list[int]:
    """Tokens of each picture: of what the encoder gives one by one, or of runs in the prompt."""
    count = sum(p["type"] == "image" for m in prompt.messages or () for p in m["content"])
    pieces = output.pooler_output
    if len(pieces) == count and all(piece.ndim == 2 for piece in pieces):
        return [len(piece) for piece in pieces]
    here = [int(token in model.placeholders) for token in prompt.ids[0].tolist()]
    starts = [n for n, (a, b) in enumerate(zip([0, *here], here, strict=False)) if b > a]
    if len(starts) != count:
        raise InputError("the pictures of a prompt stand side by side and cannot be told apart.")
    return [run_length(here[start:]) for start in starts]


def run_length(values: Sequence[int]) -> int:
    """How many ones a list begins with."""
    return next((n for n, value in enumerate(values) if not value), len(values))


def flat(pieces: Sequence[Tensor]) -> Tensor:
    """(…, d) tensors as one (N, d)."""
    return torch.cat([piece.reshape(-1, piece.shape[-1]) for piece in pieces])


def as_list(layer: Any) -> list[Tensor]:
    """One layer's additions as a list."""
    return [layer] if isinstance(layer, Tensor) else list(layer)


def check_prompt(chunk: Any, ours: Tensor) -> str | None:
    """What differs between the prompt that vLLM read and the one that was meant; None if nothing.

    Args:
        chunk: Of the stream; the first one has the token ids of the prompt.
        ours: (1, T).
    """
    theirs, expected = getattr(chunk, "prompt_token_ids", None), ours[0].tolist()
    if theirs is None or list(theirs) == expected:
        return None
    pairs = enumerate(zip(theirs, expected, strict=False))
    place = next((n for n, (a, b) in pairs if a != b), min(len(theirs), len(expected)))
    return (
        f"the engine read another prompt than this model learnt with ({len(theirs)} and "
        f"{len(expected)} tokens, which differ from token {place} on); start it with the model's "
        "own chat template and --chat-template-content-format openai."
    )
