"""`crome ask`: one answer on the terminal, as it is generated."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn

from PIL.Image import Image
from transformers import TextStreamer

from crome.checkpoints.devices import device_named
from crome.checkpoints.loading import PLAINLY, Holding, adapter_for, load
from crome.data.forms import CAPTION
from crome.data.places import in_place, media_of
from crome.data.tags import take_out
from crome.errors import InputError, not_negative, positive
from crome.images import load_image
from crome.model.answering import answer
from crome.model.decoding import decode_fast
from crome.model.families import context_length
from crome.model.lengths import require_whole
from crome.rows import Medium, Row
from crome.sounds import check_sound


def ask(
    question: str,
    image: list[Path] | Path | None = None,
    checkpoint: str = "crome-tiny",
    adapter: Path | None = None,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    dtype: Literal["bfloat16", "float16", "float32", "auto"] = "bfloat16",
    attention: Literal["eager", "sdpa", "flash_attention_2", "auto"] = "auto",
    device: str = "auto",
    holding: Holding = PLAINLY,
    audio: list[Path] | Path | None = None,
) -> None:
    """Ask a question about an image or a recording, or about none, and stream the answer.

    Args:
        question: The question; where it has an `<image>` for each image, they stand there, and in
            front of it otherwise.
        image: An image file, or several as a list; without one the bare language model answers.
        checkpoint: A folder, a hub id, or a preset that has weights.
        adapter: Folder of a task adapter to use.
        max_new_tokens: Longest answer.
        temperature: 0 for the likeliest answer, more for variety.
        dtype: Type of the frozen towers.
        attention: Implementation inside the language model; see `crome train`.
        device: cpu, cuda, cuda:N or mps; by default a GPU of CUDA if there is one.
        holding: How a language model is held that is too large to be held plainly: quantised, or
            spread over the GPUs.
        audio: A file of a recording, or several as a list, for a model that hears.
    """
    if not question.strip():
        raise InputError("the question is empty.")
    positive(max_new_tokens=max_new_tokens)
    not_negative(temperature=temperature)
    device_named(device)
    holding.check_answering()
    files = [] if image is None else [image] if isinstance(image, Path) else image
    sounds = () if audio is None else (audio,) if isinstance(audio, Path) else tuple(audio)
    images = tuple(map(load_image, files))  # refuses bad files before the model takes its time
    for sound in sounds:
        check_sound(sound)
    if adapter is not None:
        adapter = adapter_for(checkpoint, adapter)
    model, processor = load(checkpoint, dtype, attention, holding, device)
    decode_fast(model, free_attention=attention == "auto")
    if adapter is not None:
        model.load_adapter(adapter)
    row = row_of(question, images, sounds)
    if not row.media:  # the limit is the Q-Former's, which is not asked
        processor.max_question_tokens = context_length(model.language_model.config) or 2**20
    require_whole(processor, [row])
    sampling: dict[str, Any] = (
        {"do_sample": True, "temperature": temperature} if temperature > 0 else {}
    )
    streamer = TextStreamer(processor.tokenizer, skip_prompt=False, skip_special_tokens=True)
    answer(
        model, processor, [row],
        max_new_tokens=max_new_tokens, streamer=streamer, **sampling,
    )  # fmt: skip


def row_of(question: str, images: tuple[Image, ...], sounds: tuple[Path, ...] = ()) -> Row:
    """A question with its media as a row, marks for them read as in rows of data.

    Raises:
        InputError: The question has other marks than there are media.
    """
    text, marks = take_out(question)
    if not (images or sounds) or not marks:
        return Row(images, question.strip(), "", "ask", audios=sounds)
    named: dict[Medium, Sequence[Any]] = {"image": images, "video": (), "audio": sounds}
    placed = in_place(named, [("the question", marks)], refuse)
    return Row(question=text or CAPTION, answer="", id="ask", **media_of(placed, 0))


def refuse(field: str, found: str, expected: str) -> NoReturn:
    """Raises an `InputError` about the marks in a question."""
    raise InputError(f"{field}: {found}; expected {expected}.")
