"""`AttachedProcessor`: rows of pictures, questions and answers → what an attached model takes.

The model's own processor and chat template do the work. What is added is what training needs:
labels on the answer and its end alone, several rows of different media in one batch, and the text
of people kept apart from the template's special tokens.

Shapes: B rows, T tokens, I distinct sets of media, N options.
"""

import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import BatchFeature

from crome.attached.batches import is_beside
from crome.attached.collating import Batch, as_dicts, joined
from crome.attached.conversing import Conversing
from crome.attached.keeping import Keeper, Kept, is_numbers, outputs_of
from crome.attached.media import Loader, Media, giving, picks_frames, remembering
from crome.attached.positions import FORWARD
from crome.attached.prompts import ANSWERS, PROBE, Template
from crome.attached.rows import (
    NOTHING,
    History,
    check_row,
    described,
    first_line,
    media_of,
    media_of_rows,
    moved_place,
    new_row,
    uneven,
    without_torchvision,
)
from crome.errors import InputError
from crome.model.processing import refuse_others
from crome.model.wording import Wording
from crome.rows import Row, require_media

TEXT = ("input_ids", "attention_mask")
BLANK = Image.new("RGB", (1, 1))
logger = logging.getLogger(__name__)
BARE = {"PaliGemmaProcessor": "{media}{question}"}  # it adds the line break itself


class AttachedProcessor(Conversing, Wording):
    """A vision-language model's own processor, called as `CromeProcessor` is.

    Args:
        processor: Of transformers, of the same model.
        inputs: Names of the tensors that the model and its encoders take.
        media: What the model takes besides text: `image`, `video`, `audio`.
        system_prompt: System message; None leaves it to the template.
        end_ids: Further tokens that end an answer, from the model's generation settings.
        suffix_type: What `token_type_ids` are of an answer's tokens.
        max_question_tokens: Longer questions lose their beginning.
        max_answer_tokens: Longer answers lose their end.

    Raises:
        InputError: The chat template cannot be used; see `crome.attached.prompts`.
    """

    def __init__(
        self,
        processor: Any,
        inputs: Iterable[str],
        *,
        media: Iterable[str] = ("image",),
        system_prompt: str | None = None,
        end_ids: Iterable[int] = (),
        suffix_type: int = 0,
        max_question_tokens: int = 2048,
        max_answer_tokens: int = 1024,
    ) -> None:
        self.processor = processor
        self.tokenizer = processor.tokenizer
        settings = getattr(self.tokenizer, "init_kwargs", {})
        if settings.get("max_length", 0) is None:
            # A tokenizer that was saved while it padded is loaded with this; transformers would
            # hand it to the part for recordings in place of that part's own length.
            del settings["max_length"]
        self.image_processor = getattr(processor, "image_processor", None)
        self.inputs = frozenset(inputs)
        self.system_prompt = system_prompt
        self.max_question_tokens = max_question_tokens
        self.max_answer_tokens = max_answer_tokens
        kind = type(processor).__name__
        bare = {"bare": BARE[kind]} if kind in BARE else {}
        self.media = tuple(media)
        self.template = Template(processor, system_prompt, **bare)
        if self.template.text is None and kind not in BARE:
            logger.warning(
                "%s has no chat template, so a question stands in its prompt as %r; if the model "
                "was trained to chat, put its chat_template.jinja into the checkpoint's folder.",
                kind, self.template.recorded,
            )  # fmt: skip
        self.suffix_type = suffix_type
        self._more_ends = tuple(end_ids)
        self._check_prefix()

    # ------------------------------------------------------------------ batches

    def __call__(
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        answers: Sequence[str] | None = None,
        histories: Sequence[History] | None = None,
        systems: Sequence[str | None] | None = None,
        videos: Sequence[Sequence[Any]] | None = None,
        audio: Sequence[Sequence[Any]] | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Prepares a batch.

        Args:
            images: For each question a picture, several, or None: files, pictures, arrays or
                tensors of pixels.
            text: The question, or a question for each row; `<image>` in it says where a picture
                stands, otherwise pictures stand in front.
            answers: For training: the answer to each question.
            histories: Earlier (question, answer) turns of each row.
            systems: A system message for each row, None in it for the processor's own.
            videos: For each question its films: files, or lists of frames.
            audio: For each question its recordings: files, or samples at the model's sampling
                rate, in mono.
            kwargs: What transformers passes, such as `return_tensors="pt"`, where it asks for what
                is done anyway.

        Returns:
            `input_ids`, `attention_mask` and what else the model reads beside each token, (B, T)
            padded on the right; `media`, the tensors of each distinct set of media as a list, and
            `media_index` (B,), which of them a row shows, -1 for none; with answers `labels`.

        Raises:
            InputError: Numbers of rows differ, a row's media do not fit its text, or a keyword asks
                for what is not done here.
        """
        refuse_others(kwargs)
        questions = [text] if isinstance(text, str) else list(text or [])
        media = media_of_rows(images, videos, audio, len(questions))
        turns = list(histories or [()] * len(questions))
        messages = list(systems or [None] * len(questions))
        for what, given in (("histories", turns), ("systems", messages)):
            if len(given) != len(questions):
                raise InputError(f"{len(given)} {what} for {len(questions)} questions; one a row.")
        if not questions or (answers is not None and len(answers) != len(questions)):
            raise InputError(
                f"{len(questions)} questions and {len(answers or [])} answers; a batch needs one "
                "answer for each question."
            )
        rows = [
            new_row(number, *parts)
            for number, parts in enumerate(zip(questions, media, turns, messages, strict=True))
        ]
        return self._encode(rows, answers)

    def encode(
        self, rows: Sequence[Row], answers: bool = False, cache: Keeper | None = None
    ) -> BatchFeature:
        """Prepares rows with all that they show: pictures at their places, films, sounds, systems.

        Args:
            rows: At least one.
            answers: Whether labels are made of their answers.
            cache: Where features are kept: media that are there come without pixels.

        Returns:
            As `__call__`, with `features` of the sets of media where some are kept.

        Raises:
            InputError: A row has what this model does not take.
        """
        require_media(rows, self.media)
        return self._encode(rows, [row.answer for row in rows] if answers else None, cache)

    def _encode(
        self,
        rows: Sequence[Row],
        answers: Sequence[str] | None,
        cache: Keeper | None = None,
        dialogues: Sequence[list[dict[str, Any]]] | None = None,
    ) -> BatchFeature:
        loader, worker = Loader(), remembering(self.processor)
        sets: dict[Any, dict[str, Tensor]] = {}
        features: list[Any] = []
        texts, index = [], []
        for row, messages in zip(rows, dialogues or map(self.messages, rows), strict=True):
            media = media_of(messages)
            shows = any(media)
            kept = cache.find(media) if shows and cache is not None else None
            tokens, tensors = self._row(worker, loader, row, messages, media, kept)
            if shows and media.key() not in sets:
                sets[media.key()] = tensors
                features.append(None if kept is None else as_dicts(kept.features))
            index.append(list(sets).index(media.key()) if shows else -1)
            texts.append(tokens)
        endings = None if answers is None else [self.answer_ids(answer) for answer in answers]
        batch = joined(texts, endings, self.pad_token_id, self.suffix_type)
        if sets:
            batch |= {"media": list(sets.values()), "media_index": torch.tensor(index)}
        if any(one is not None for one in features):
            batch["features"] = features
        return Batch(batch)

    def media_of(self, row: Row) -> Media:
        """What a row shows, in the order in which its model reads it."""
        return media_of(self.messages(row))

    def prepare(self, row: Row) -> tuple[Media, dict[str, Tensor], dict[str, Any], Any, Any]:
        """A row's media for a cache to keep.

        Returns:
            The media, the model's tensors of them, what each sub-processor gave, the sizes of the
            pictures, and the lengths of the recordings.

        Raises:
            NotKept: What a sub-processor gave cannot be kept.
            InputError: The row has what this model does not take.
        """
        require_media([row], self.media)
        loader, worker = Loader(), remembering(self.processor)
        messages = self.messages(row)
        media = media_of(messages)
        _, tensors = self._row(worker, loader, row, messages, media)
        sizes = tuple(image.size for image in loader.images(media.images))
        lengths = tuple(len(loader.sound(one, self.sampling_rate)) for one in media.audio)
        return media, tensors, outputs_of(worker), sizes, lengths

    def _row(
        self,
        worker: Any,
        loader: Loader,
        row: Row,
        messages: Sequence[dict[str, Any]],
        media: Media,
        kept: Kept | None = None,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The tokens of one prompt, and the tensors of its media: the small ones where kept."""
        prompt = self.template.render(messages)
        system = None if row.system is None else self.words(row.system)
        check_row(row, media, type(self.processor).__name__, prompt, system)
        call: dict[str, Any] = {"text": [prompt], "return_tensors": "pt"}
        if "mm_token_type_ids" in self.inputs:
            call["return_mm_token_type_ids"] = True
        if media.images:
            call["images"] = [loader.images(media.images) if kept is None else kept.blanks()]
        if media.videos:
            call["videos"] = [[loader.video(video) for video in media.videos]]
            if picks_frames(worker) and not any(isinstance(v, str | Path) for v in media.videos):
                call["do_sample_frames"] = False  # the row has chosen them
        if media.audio:
            sounds = [loader.sound(one, self.sampling_rate) for one in media.audio if kept is None]
            call["audio"] = sounds if kept is None else kept.silences()
            call["audio_kwargs"] = {"sampling_rate": self.sampling_rate}
        if self._opens_itself(prompt):
            call["add_special_tokens"] = False
        try:
            if kept is None:
                return self._divided(self._called(worker, call, media))
            with giving(worker, kept.outputs):
                tokens, _ = self._divided(self._called(worker, call, media))
            return tokens, kept.tensors
        except InputError:
            raise
        except Exception as error:  # whatever a family's own code trips over
            raise InputError(
                f"row {row.id}: {type(self.processor).__name__} cannot prepare "
                f"{described(media)}: {first_line(error)}{uneven(call.get('videos'))}"
                f"{without_torchvision(error)}"
            ) from error

    def _called(self, worker: Any, call: dict[str, Any], media: Media) -> Any:
        """The processor's output; the few that refuse a list of lists, or text alone, get less."""
        try:
            return worker(**call)
        except ValueError as error:
            if not any(media):
                return self.tokenizer(**call)
            if "Nested images" in str(error):
                return worker(**{**call, "images": call["images"][0]})
            raise

    def _divided(self, batch: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """What stands beside each token, and what belongs to the media."""
        length = batch["input_ids"].shape[-1]
        tokens: dict[str, Tensor] = {}
        media: dict[str, Any] = {}
        for name, value in batch.items():
            if name not in self.inputs or not (isinstance(value, Tensor) or is_numbers(value)):
                continue
            beside = (name in TEXT or is_beside(name)) and isinstance(value, Tensor)
            if beside and value.shape[-1] == length:
                tokens[name] = value
            else:
                media[name] = value
        tokens.setdefault("attention_mask", torch.ones_like(tokens["input_ids"]))
        if (mask := media.get(FORWARD["audio_seqlens"])) is not None:
            media["audio_seqlens"] = mask.sum(-1)  # all that positions hang on
        return tokens, media

    # ------------------------------------------------------------------ text

    def messages(self, row: Row) -> list[dict[str, Any]]:
        """A row's conversation without its answer, special tokens in people's text taken apart."""
        question = self.cut(row.question)
        if (gone := len(row.question) - len(question)) and row.places:
            turn = len(row.history)
            row = replace(row, places=tuple(moved_place(p, turn, gone) for p in row.places))
        system = self.system_prompt if row.system is None else row.system
        row = replace(row, question=question, system=system)
        return [
            message | {"content": [self._safe(part) for part in message["content"]]}
            for message in row.messages()
        ]

    def _safe(self, part: dict[str, Any]) -> dict[str, Any]:
        return part | {"text": self.words(part["text"])} if part["type"] == "text" else part

    def render(self, question: str, has_image: bool, history: History = ()) -> str:
        """The prompt as text, placeholders not expanded: for logs and predictions."""
        media = Media(images=(BLANK,)) if has_image else NOTHING
        return self.template.render(self.messages(new_row(0, question, media, history)))

    def _opens_itself(self, prompt: str) -> bool:
        """Whether a prompt already begins with the token that the tokenizer would put there."""
        bos = self.tokenizer.bos_token
        return bool(bos) and prompt.startswith(bos)

    @cached_property
    def _probe(self) -> str:
        return self.template.render(self.messages(new_row(0, PROBE)))

    def answer_ids(self, answer: str) -> list[int]:
        """Token ids of an answer behind a prompt, with its end; a cut answer has none."""
        text = self.template.ending.lead + self.words(answer).strip()
        prompt = self._ids(self._probe)
        whole = self._ids(self._probe + text)
        # An answer whose first letters would join the prompt's last token stands for itself.
        ids = whole[len(prompt) :] if whole[: len(prompt)] == prompt else self._ids(text)
        if len(ids) >= self.max_answer_tokens:
            return ids[: self.max_answer_tokens]
        return ids + self.end_ids[:1]

    def _check_prefix(self) -> None:
        """Refuses a template whose prompt is tokenised otherwise when an answer follows."""
        prompt = self._ids(self._probe)
        for answer in ANSWERS:
            whole = self._ids(self._probe + self.template.ending.lead + answer)
            if whole[: len(prompt)] != prompt:
                raise InputError(
                    f"the chat template of {type(self.processor).__name__} ends its prompt inside "
                    f"a token: with the answer {answer!r} behind it, the prompt's ids change; end "
                    "the generation prompt with a special token or a line break."
                )

    @cached_property
    def end_ids(self) -> list[int]:
        """Tokens that end an answer, the template's own first."""
        ids = self._ids(self.template.ending.end)[:1]
        eos = self.tokenizer.eos_token_id
        ids += [] if eos is None else [eos]
        return list(dict.fromkeys([*ids, *self._more_ends]))

    @property
    def sampling_rate(self) -> int:
        """Samples a second that the model hears."""
        for name in ("feature_extractor", "audio_processor"):
            if rate := getattr(getattr(self.processor, name, None), "sampling_rate", None):
                return int(rate)
        return 16_000

    @property
    def uses_chat_template(self) -> bool:
        """Whether prompts follow a chat template."""
        return self.template.text is not None

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], push_to_hub: bool | str = False, **_: Any
    ) -> None:
        """Writes nothing: the base's own folder has the processor, the adapter file the prompts.

        Raises:
            InputError: It is to be uploaded.
        """
        if push_to_hub:
            raise InputError(
                "an attached processor has no files of its own to upload: the base has the "
                "processor, and model.save_adapter(folder, push_to_hub=...) uploads the adapter."
            )
