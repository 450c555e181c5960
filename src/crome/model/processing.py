"""`CromeProcessor`: images, questions and answers → the tensors `forward` and `generate` take.

The visual block is not made of placeholder tokens: the model splices it in at `visual_position`, so
a count mismatch between tokens and features cannot happen, and no vocabulary is ever resized.

Shapes: B rows, T text tokens, S instruction tokens of the Q-Former, I distinct images, K images a
row at most.
"""

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from PIL import Image
from torch import Tensor
from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer, BatchFeature

from crome.errors import InputError
from crome.images import View, load_image
from crome.model.configuration import CromeConfig
from crome.model.hub import tower_path, upload_folder
from crome.model.language import gguf_split
from crome.model.pretrained import Loading, locate_checkpoint, read_config
from crome.model.prompting import Conversations, History
from crome.model.wording import pad
from crome.rows import Row, require_media
from crome.storage import library_writes

logger = logging.getLogger(__name__)
Picture = Image.Image | str | Path | View | np.ndarray | Tensor
USUAL: dict[str, tuple[Any, ...]] = {
    "return_tensors": (None, "pt"),
    "padding": (None, True, "longest"),
    "padding_side": (None, "right"),
    "truncation": (None, True),
    "add_special_tokens": (None, False),
    "return_attention_mask": (None, True),
}
"""Keywords of transformers' processors, with the values that say what is done here anyway."""
MEANT = {"answer": "answers", "history": "histories", "system": "systems", "image": "images"}


class CromeProcessor(Conversations):
    """Preprocessing of both towers and the Q-Former.

    Args:
        image_processor: Image processor of the vision encoder.
        tokenizer: Tokenizer of the language model.
        qformer_tokenizer: Tokenizer of the Q-Former's instructions; None for queries without text.
        prompt_format: See `CromeConfig`.
        system_prompt: See `CromeConfig`.
        max_question_tokens: See `CromeConfig`.
        max_answer_tokens: See `CromeConfig`.
        is_encoder_decoder: Whether answers go to a decoder of their own.
        prompt_date: See `CromeConfig`.
        enable_thinking: See `CromeConfig`.
        max_instruction_tokens: Positions of the Q-Former; None for no limit of its own.
    """

    media: tuple[str, ...] = ("image",)
    """What the model takes besides text."""

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        qformer_tokenizer: Any = None,
        prompt_format: str | Sequence[str] = "chat",
        system_prompt: str | None = None,
        max_question_tokens: int = 128,
        max_answer_tokens: int = 256,
        is_encoder_decoder: bool = False,
        chat_template: str | None = None,
        prompt_date: str | None = None,
        enable_thinking: bool | None = None,
        max_instruction_tokens: int | None = None,
        **kwargs: Any,
    ) -> None:
        self.prompt_format = prompt_format
        self.system_prompt = system_prompt
        self.max_question_tokens = max_question_tokens
        self.max_answer_tokens = max_answer_tokens
        self.is_encoder_decoder = is_encoder_decoder
        self.prompt_date = prompt_date
        self.enable_thinking = enable_thinking
        self.max_instruction_tokens = max_instruction_tokens
        super().__init__(image_processor, tokenizer, qformer_tokenizer, chat_template=chat_template)

    def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
        """Does what transformers does, but allows the Q-Former's tokenizer to be absent."""
        if argument is None and argument_name == "qformer_tokenizer":
            return None
        return super().check_argument_for_proper_class(argument_name, argument)

    @classmethod
    def from_config(cls, config: CromeConfig, qformer_tokenizer: Any = None) -> Self:
        """Builds the processor of two towers: their own preprocessing, joined.

        Args:
            config: Names the towers and the prompt layout.
            qformer_tokenizer: A BERT-like tokenizer whose ids fit `qformer_config.vocab_size`.
        """
        assert config.vision_model_id is not None
        assert config.language_model_id is not None
        folder, gguf = gguf_split(tower_path(config.language_model_id))
        tokenizer = AutoTokenizer.from_pretrained(
            folder, revision=config.language_revision, trust_remote_code=False, **gguf
        )
        images = AutoImageProcessor.from_pretrained(
            tower_path(config.vision_model_id),
            revision=config.vision_revision,
            trust_remote_code=False,
        )
        return cls(
            images,
            tokenizer,
            qformer_tokenizer,
            prompt_format=config.prompt_format,
            system_prompt=config.system_prompt,
            max_question_tokens=config.max_question_tokens,
            max_answer_tokens=config.max_answer_tokens,
            is_encoder_decoder=bool(config.text_config.is_encoder_decoder),
            prompt_date=config.prompt_date,
            enable_thinking=config.enable_thinking,
            max_instruction_tokens=config.qformer_config.max_position_embeddings,
        )

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any
    ) -> Self:
        """Loads the processor of a checkpoint: towers' parts from the towers, the rest from it.

        Args:
            pretrained_model_name_or_path: A folder, a hub id, or a preset that has weights.
            kwargs: Fields of `CromeConfig` to change, such as `max_question_tokens`; keywords of
                `CromeForConditionalGeneration.from_pretrained` that concern weights are left aside.

        Raises:
            InputError: The folder is no CROME checkpoint, or a keyword is neither.
        """
        loading = Loading.sort(kwargs.pop("dtype", "auto"), None, None, kwargs)
        folder = locate_checkpoint(pretrained_model_name_or_path, loading.revision, **loading.hub)
        config = read_config(folder, loading.fields, loading.base)
        own, tokenizer = folder / "qformer_tokenizer", None
        if own.is_dir():
            try:
                tokenizer = AutoTokenizer.from_pretrained(own)
            except (OSError, ValueError) as error:
                raise InputError(
                    f"{own} holds no whole tokenizer; copy the folder anew."
                ) from error
        elif config.instruction_aware and "query" in config.branches:
            raise InputError(
                f"{own} is missing, and the Q-Former of this checkpoint reads the question; copy "
                "the folder anew."
            )
        return cls.from_config(config, tokenizer)

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        push_to_hub: bool | str = False,
        **kwargs: Any,
    ) -> None:
        """Writes the Q-Former's tokenizer; all else comes from `config.json` and the towers.

        Args:
            save_directory: Folder, made if absent.
            push_to_hub: Whether to upload the folder too: True for a repository of the folder's
                name, or the repository's id.
            kwargs: Not read; transformers passes some.
        """
        if self.qformer_tokenizer is not None:
            place = Path(save_directory) / "qformer_tokenizer"
            with library_writes(place):
                self.qformer_tokenizer.save_pretrained(place)
        if push_to_hub:
            upload_folder(Path(save_directory), push_to_hub)

    def __call__(
        self,
        images: Picture | Sequence[Picture | Sequence[Picture] | None] | None = None,
        text: str | Sequence[str] | None = None,
        answers: Sequence[str] | None = None,
        histories: Sequence[History] | None = None,
        systems: Sequence[str | None] | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Prepares a batch.

        Args:
            images: For each question an image, several, or None: files, pictures, arrays or
                tensors of pixels. Equal paths and identical objects are preprocessed once.
            text: The question, or a question for each row.
            answers: For training: the answer to each question.
            histories: Earlier (question, answer) turns of each row, shown before the question.
            systems: A system message for each row, None in it for the processor's own.
            kwargs: What transformers passes, such as `return_tensors="pt"`, where it asks for what
                is done anyway.

        Returns:
            `input_ids`, `attention_mask` (B, T) padded on the right; `visual_position` (B,);
            with a Q-Former tokenizer `qformer_input_ids`, `qformer_attention_mask` (B, S); with
            images `pixel_values` (I, 3, H, W) and `image_index` (B, K); with answers `labels`.

        Raises:
            InputError: Numbers of images, questions and answers differ, or a keyword asks for what
                is not done here.
        """
        refuse_others(kwargs)
        pictures, batch = self.encode_text(images, text, answers, histories, systems)
        return BatchFeature(batch | self.encode_images(pictures))

    def encode(self, rows: Sequence[Row], answers: bool = False) -> BatchFeature:
        """Prepares rows, with labels from their answers where these are wanted.

        A question that is too long for the checkpoint loses its beginning, as in training, and a
        warning says so; training counts such rows at its start.

        Raises:
            InputError: A row has videos or recordings.
        """
        require_media(rows, self.media)
        if not answers:
            self.warn_of_cuts(rows)
        return self(**arguments(rows, answers))

    def warn_of_cuts(self, rows: Sequence[Row]) -> None:
        """Says which questions are longer than what the checkpoint reads."""
        for row in rows:
            if not self.reads_whole(row.question):
                logger.warning(
                    "The question of row %s is longer than the %d tokens that this checkpoint "
                    "reads: its beginning is left out (max_question_tokens).",
                    row.id,
                    self.max_question_tokens,
                )

    def encode_text(
        self,
        images: Picture | Sequence[Picture | Sequence[Picture] | None] | None = None,
        text: str | Sequence[str] | None = None,
        answers: Sequence[str] | None = None,
        histories: Sequence[History] | None = None,
        systems: Sequence[str | None] | None = None,
    ) -> tuple[list[list[Picture]], dict[str, Tensor]]:
        """Prepares the text of a batch, as `__call__` does, and leaves its pictures as they are.

        Returns:
            The pictures of each row, and the tensors of `__call__` that need no pixels.
        """
        questions = [text] if isinstance(text, str) else list(text or [])
        pictures = self._pictures_per_row(images, len(questions))
        turns = list(histories or [()] * len(questions))
        messages = list(systems or [None] * len(questions))
        for name, given in (("histories", turns), ("systems", messages)):
            if len(given) != len(questions):
                raise InputError(f"{len(given)} {name} for {len(questions)} questions; one a row.")
        if not questions or (answers is not None and len(answers) != len(questions)):
            raise InputError(
                f"{len(questions)} questions and {len(answers or [])} answers; a batch needs one "
                "answer for each question."
            )
        prompts = [
            self.prompt(question, bool(pictures[row]), turns[row], messages[row])
            for row, question in enumerate(questions)
        ]
        return pictures, self._text_batch(prompts, answers) | self.instructions(questions)

    # ------------------------------------------------------------------ images

    @staticmethod
    def _pictures_per_row(images: Any, num_rows: int) -> list[list[Picture]]:
        if images is None:
            return [[] for _ in range(num_rows)]
        if isinstance(images, Picture) and getattr(images, "ndim", 3) != 4:
            images = [images]
        if len(images) != num_rows:
            raise InputError(
                f"{len(images)} images for {num_rows} questions; give one entry a row."
            )
        return [
            [] if entry is None else [entry] if isinstance(entry, Picture) else list(entry)
            for entry in images
        ]

    def encode_images(self, pictures: Sequence[Sequence[Picture]]) -> dict[str, Tensor]:
        """Each distinct image once, and which of them every row shows."""
        distinct: dict[Any, int] = {}
        loaded: list[Picture] = []
        index: list[list[int]] = []
        for row in pictures:
            index.append([])
            for picture in row:
                named = isinstance(picture, str | Path | View)
                key = str(picture) if named else id(picture)
                if key not in distinct:
                    distinct[key] = len(loaded)
                    loaded.append(picture)
                index[-1].append(distinct[key])
        if not loaded:
            return {}
        return {"pixel_values": self.pixel_values(loaded), "image_index": pad(index, -1)}

    def pixel_values(self, pictures: Sequence[Picture]) -> Tensor:
        """(I, 3, H, W) preprocessed images."""
        images = [
            load_image(as_picture(p) if isinstance(p, np.ndarray | Tensor) else p) for p in pictures
        ]
        return self.image_processor(images, return_tensors="pt")["pixel_values"]


def arguments(rows: Sequence[Row], answers: bool) -> dict[str, Any]:
    """The arguments of the processor's call for rows, with `answers` or without."""
    named: dict[str, Any] = {
        "images": [row.images for row in rows],
        "text": [row.question for row in rows],
        "histories": [row.history for row in rows],
    }
    if any(row.system is not None for row in rows):
        named["systems"] = [row.system for row in rows]
    return named | ({"answers": [row.answer for row in rows]} if answers else {})


def as_picture(pixels: np.ndarray | Tensor) -> Image.Image:
    """Pixels as a picture: (H, W), (H, W, C) or (C, H, W), of 0 to 255 or as shares of 1.

    Raises:
        InputError: They are no picture.
    """
    if isinstance(pixels, Tensor):
        pixels = (pixels.float() if pixels.is_floating_point() else pixels).detach().cpu().numpy()
    array, whole = pixels, pixels.dtype.kind != "f"
    channels = (1, 3, 4)
    if array.ndim == 3 and array.shape[-1] not in channels and array.shape[0] in channels:
        array = np.moveaxis(array, 0, -1)
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[-1] not in channels):
        raise InputError(
            f"an image of shape {tuple(pixels.shape)}; expected (height, width, 3) or (3, height, "
            "width)."
        )
    highest = 255 if whole else 1
    if array.size == 0 or not (array.min() >= 0 and array.max() <= highest):
        raise InputError(
            f"an image with values outside 0 to {highest}: it is normalised already; give pixels "
            "as they are, or the model pixel_values."
        )
    array = (array if whole else array * 255).round().astype(np.uint8)
    return Image.fromarray(array[..., 0] if array.ndim == 3 and array.shape[-1] == 1 else array)


def refuse_others(keywords: dict[str, Any]) -> None:
    """Refuses keywords of a processor's call that would be ignored.

    Raises:
        InputError: The message names the first of them.
    """
    for name, value in keywords.items():
        if not any(value is usual or value == usual for usual in USUAL.get(name, ())):
            hint = f"did you mean {MEANT[name]}?" if name in MEANT else "leave it out."
            raise InputError(f"the processor cannot honour {name}={value!r}; {hint}")


AutoProcessor.register(CromeConfig, CromeProcessor)
