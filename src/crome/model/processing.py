"""`CromeProcessor`: images, questions and answers → the tensors `forward` and `generate` take.

The visual block is not made of placeholder tokens: the model splices it in at `visual_position`, so
a count mismatch between tokens and features cannot happen, and no vocabulary is ever resized.

Shapes: B rows, T text tokens, S instruction tokens of the Q-Former, I distinct images, K images a
row at most.
"""

import os
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from jinja2 import TemplateError
from PIL import Image
from torch import Tensor
from transformers import (
    AutoImageProcessor,
    AutoProcessor,
    AutoTokenizer,
    BatchFeature,
    ProcessorMixin,
)

from crome.errors import InputError
from crome.images import View, load_image
from crome.model.configuration import CromeConfig
from crome.model.hub import locate, tower_path
from crome.model.language import gguf_split
from crome.model.pretrained import read_config
from crome.rows import Row, require_media

Picture = Image.Image | str | Path | View
History = Sequence[tuple[str, str]]

# Never tokenised: they only mark a place in a rendered template and are split away again.
VISUAL, ANSWER = "\x00visual\x00", "\x00answer\x00"
BARE = ("", "{bos}{question}")


class Prompt(NamedTuple):
    """Text tokens of one row's question, and how many of them precede the visual block."""

    ids: list[int]
    visual_position: int


class CromeProcessor(ProcessorMixin):
    """Preprocessing of both towers and the Q-Former.

    Args:
        image_processor: Of the vision encoder.
        tokenizer: Of the language model.
        qformer_tokenizer: Of the Q-Former's instruction input; None for queries that see no text.
        prompt_format: See `CromeConfig`.
        system_prompt: See `CromeConfig`.
        max_question_tokens: See `CromeConfig`.
        max_answer_tokens: See `CromeConfig`.
        is_encoder_decoder: Whether answers go to a decoder of their own.
    """

    qformer_tokenizer: Any
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
        **kwargs: Any,
    ) -> None:
        self.prompt_format = prompt_format
        self.system_prompt = system_prompt
        self.max_question_tokens = max_question_tokens
        self.max_answer_tokens = max_answer_tokens
        self.is_encoder_decoder = is_encoder_decoder
        super().__init__(image_processor, tokenizer, qformer_tokenizer, chat_template=chat_template)

    def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
        """As in transformers, but the Q-Former's tokenizer may be absent."""
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
        tokenizer = AutoTokenizer.from_pretrained(folder, revision=config.language_revision, **gguf)
        images = AutoImageProcessor.from_pretrained(
            tower_path(config.vision_model_id), revision=config.vision_revision
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
        )

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any
    ) -> Self:
        """Loads the processor of a checkpoint: towers' parts from the towers, the rest from it."""
        folder = locate(pretrained_model_name_or_path, kwargs.get("revision"))
        config = read_config(folder, kwargs)
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
        self, save_directory: str | os.PathLike[str], push_to_hub: bool = False, **kwargs: Any
    ) -> None:
        """Writes the Q-Former's tokenizer; all else comes from `config.json` and the towers."""
        if self.qformer_tokenizer is not None:
            self.qformer_tokenizer.save_pretrained(Path(save_directory) / "qformer_tokenizer")

    def __call__(
        self,
        images: Picture | Sequence[Picture | Sequence[Picture] | None] | None = None,
        text: str | Sequence[str] | None = None,
        answers: Sequence[str] | None = None,
        histories: Sequence[History] | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Prepares a batch.

        Args:
            images: For each question an image, several, or None. Equal paths and identical objects
                are preprocessed once.
            text: The question, or a question for each row.
            answers: For training: the answer to each question.
            histories: Earlier (question, answer) turns of each row, shown before the question.
            kwargs: Ignored; transformers passes some.

        Returns:
            `input_ids`, `attention_mask` (B, T) padded on the right; `visual_position` (B,);
            with a Q-Former tokenizer `qformer_input_ids`, `qformer_attention_mask` (B, S); with
            images `pixel_values` (I, 3, H, W) and `image_index` (B, K); with answers `labels`.

        Raises:
            InputError: Numbers of images, questions and answers differ.
        """
        pictures, batch = self.encode_text(images, text, answers, histories)
        return BatchFeature(batch | self.encode_images(pictures))

    def encode(self, rows: Sequence[Row], answers: bool = False) -> BatchFeature:
        """Prepares rows, with labels from their answers where these are wanted.

        Raises:
            InputError: A row has videos or recordings.
        """
        require_media(rows, self.media)
        return self(**arguments(rows, answers))

    def encode_text(
        self,
        images: Picture | Sequence[Picture | Sequence[Picture] | None] | None = None,
        text: str | Sequence[str] | None = None,
        answers: Sequence[str] | None = None,
        histories: Sequence[History] | None = None,
    ) -> tuple[list[list[Picture]], dict[str, Tensor]]:
        """Prepares the text of a batch, as `__call__` does, and leaves its pictures as they are.

        Returns:
            The pictures of each row, and the tensors of `__call__` that need no pixels.
        """
        questions = [text] if isinstance(text, str) else list(text or [])
        pictures = self._pictures_per_row(images, len(questions))
        turns = list(histories or [()] * len(questions))
        if not questions or (answers is not None and len(answers) != len(questions)):
            raise InputError(
                f"{len(questions)} questions and {len(answers or [])} answers; a batch needs one "
                "answer for each question."
            )
        prompts = [
            self.prompt(question, bool(pictures[row]), turns[row])
            for row, question in enumerate(questions)
        ]
        return pictures, self._text_batch(prompts, answers) | self.instructions(questions)

    # ------------------------------------------------------------------ text

    def prompt(self, question: str, has_image: bool, history: History = ()) -> Prompt:
        """Token ids of one question in its template, and where the visual block goes."""
        # A cut to characters first keeps a question of many megabytes from being tokenised whole.
        question = self._cut(question.strip()[-20 * self.max_question_tokens :])
        before, after = self._render(question, history, has_image)
        head = self._ids(before)
        return Prompt(head + self._ids(after), len(head))

    def render(self, question: str, has_image: bool, history: History = ()) -> str:
        """The prompt as text, `<image>` where the visual block goes: for logs and predictions."""
        before, after = self._render(question.strip(), history, has_image)
        return before + ("<image>" if has_image else "") + after

    def _cut(self, question: str) -> str:
        """The last `max_question_tokens` of a question, truncated from the left as in LAVIS."""
        ids = self._ids(question)
        if len(ids) <= self.max_question_tokens:
            return question
        return str(self.tokenizer.decode(ids[-self.max_question_tokens :]))

    def reads_whole(self, question: str, answer: str = "") -> bool:
        """Whether a question and an answer are short enough not to be cut."""
        question = question.strip()
        limit = self.max_question_tokens
        if len(question) > 20 * limit or len(self._ids(question)) > limit:
            return False
        return len(self._ids(self.words(answer))) < self.max_answer_tokens

    def _render(self, question: str, history: History, has_image: bool) -> tuple[str, str]:
        """Text before and after the visual block; all of it before when there is none."""
        visual = VISUAL if has_image else ""
        question = self.words(question)
        history = [(self.words(q), self.words(a)) for q, a in history]
        if self.uses_chat_template:
            rendered = self._chat([*history, (question, None)], visual)
        else:
            pair = BARE if isinstance(self.prompt_format, str) else self.prompt_format
            earlier = "".join(f"{q}\n{a}\n" for q, a in history)
            bos = self.tokenizer.bos_token or ""
            before, after = (part.replace("{bos}", bos) for part in pair)
            rendered = before + visual + after.replace("{question}", earlier + question)
        before, _, after = rendered.partition(VISUAL)
        return before, after

    def words(self, text: str) -> str:
        """People's text with a space inside whatever would be read as a special token.

        Else a question could end its own turn and speak for the model.
        """
        text = text.replace("\x00", "")
        return self._special.sub(lambda found: f"{found[0][0]} {found[0][1:]}", text)

    @cached_property
    def _special(self) -> re.Pattern[str]:
        added = self.tokenizer.added_tokens_decoder.values()
        tokens = {token.content for token in added if token.special and len(token.content) > 1}
        longest_first = sorted(tokens, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    @property
    def uses_chat_template(self) -> bool:
        """Whether prompts follow the language model's own chat template."""
        return self.prompt_format == "chat" and bool(self.tokenizer.chat_template)

    def _chat(
        self, turns: Sequence[tuple[str, str | None]], visual: str, last: str | None = None
    ) -> str:
        messages = [] if self.system_prompt is None else [("system", self.system_prompt)]
        for question, answer in turns:
            messages.append(("user", visual + question))
            visual = ""  # the block stands in the first turn
            if answer is not None:
                messages.append(("assistant", answer))
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    [{"role": role, "content": content} for role, content in messages],
                    tokenize=False,
                    add_generation_prompt=turns[-1][1] is None,
                )
            )
        except TemplateError as error:  # Gemma 2's has no system role
            raise InputError(
                f"the language model's chat template refuses the conversation: {error}; leave "
                "system_prompt out, or set prompt_format to 'bare' or a pair of texts."
            ) from error

    @cached_property
    def end_ids(self) -> list[int]:
        """Tokens that end an answer: the turn's end in a chat template, EOS otherwise."""
        if self.uses_chat_template:
            rest = self._chat([("question", ANSWER)], "").partition(ANSWER)[2].lstrip()
            if ids := self._ids(rest):
                return ids[:1]
        return [] if self.tokenizer.eos_token_id is None else [self.tokenizer.eos_token_id]

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []

    def answer_ids(self, answer: str) -> list[int]:
        """Token ids of an answer with its end; a cut answer has no end, as it goes on."""
        ids = self._ids(self.words(answer))
        if len(ids) >= self.max_answer_tokens:
            return ids[: self.max_answer_tokens]
        return ids + self.end_ids

    def options(self, options: Sequence[Sequence[str]]) -> dict[str, Tensor]:
        """Candidate answers of each row, for `CromeForConditionalGeneration.option_losses`.

        Each is encoded as an answer is in training, with its end, so that "A" does not win
        against "A." for being shorter.

        Args:
            options: The candidates of each row; at least one each.

        Returns:
            `option_ids` (N, A) padded with -100, and `option_rows` (N,).

        Raises:
            InputError: A row without candidates.
        """
        if bare := [row for row, candidates in enumerate(options) if not candidates]:
            raise InputError(f"row {bare[0]} of the batch has no options; ranking needs some.")
        pairs = [(row, option) for row, candidates in enumerate(options) for option in candidates]
        return {
            "option_ids": pad([self.answer_ids(option) for _, option in pairs], -100),
            "option_rows": torch.tensor([row for row, _ in pairs]),
        }

    def _text_batch(
        self, prompts: Sequence[Prompt], answers: Sequence[str] | None
    ) -> dict[str, Tensor]:
        endings = (
            [[] for _ in prompts] if answers is None else [self.answer_ids(a) for a in answers]
        )
        rows = [prompt.ids for prompt in prompts]
        batch = {}
        if self.is_encoder_decoder:
            rows = [
                ids + ([] if self.tokenizer.eos_token_id is None else self.end_ids) for ids in rows
            ]
            if answers is not None:
                batch["labels"] = pad(endings, -100)
        elif answers is not None:
            batch["labels"] = pad(
                [[-100] * len(ids) + end for ids, end in zip(rows, endings, strict=True)], -100
            )
            rows = [ids + end for ids, end in zip(rows, endings, strict=True)]
        return batch | {
            "input_ids": pad(rows, self.pad_token_id),
            "attention_mask": pad([[1] * len(ids) for ids in rows], 0),
            "visual_position": torch.tensor([prompt.visual_position for prompt in prompts]),
        }

    @property
    def pad_token_id(self) -> int:
        """The tokenizer's pad id, or its EOS where it has none (padding is always masked)."""
        candidates = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id, 0)
        return next(i for i in candidates if i is not None)

    def instructions(self, questions: Sequence[str]) -> dict[str, Tensor]:
        """The Q-Former's input: `qformer_input_ids` and `qformer_attention_mask` (B, S)."""
        if self.qformer_tokenizer is None:
            return {}
        encoded = self.qformer_tokenizer(
            [q.strip()[-20 * self.max_question_tokens :] for q in questions],
            padding=True,
            padding_side="right",
            return_tensors="pt",
        )
        ids, mask = encoded["input_ids"], encoded["attention_mask"]
        if ids.shape[1] > self.max_question_tokens:  # from the left, keeping [CLS]
            ids, mask = self._keep_last(ids, mask)
        return {"qformer_input_ids": ids, "qformer_attention_mask": mask}

    def _keep_last(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        limit = self.max_question_tokens
        rows = [i[m.bool()].tolist() for i, m in zip(ids, mask, strict=True)]
        rows = [r if len(r) <= limit else r[:1] + r[1 - limit :] for r in rows]
        return pad(rows, self.qformer_tokenizer.pad_token_id), pad([[1] * len(r) for r in rows], 0)

    # ------------------------------------------------------------------ images

    @staticmethod
    def _pictures_per_row(images: Any, num_rows: int) -> list[list[Picture]]:
        if images is None:
            return [[] for _ in range(num_rows)]
        if isinstance(images, Picture):
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
                key = id(picture) if isinstance(picture, Image.Image) else str(picture)
                if key not in distinct:
                    distinct[key] = len(loaded)
                    loaded.append(picture)
                index[-1].append(distinct[key])
        if not loaded:
            return {}
        return {"pixel_values": self.pixel_values(loaded), "image_index": pad(index, -1)}

    def pixel_values(self, pictures: Sequence[Picture]) -> Tensor:
        """(I, 3, H, W) preprocessed images."""
        images = [load_image(picture) for picture in pictures]
        return self.image_processor(images, return_tensors="pt")["pixel_values"]

    # ------------------------------------------------------------------ back to text

    def batch_decode(self, ids: Tensor, **kwargs: Any) -> list[str]:
        """Generated ids → answers, without special tokens and outer space."""
        texts = self.tokenizer.batch_decode(ids, skip_special_tokens=True, **kwargs)
        return [text.strip() for text in texts]

    @property
    def generation_kwargs(self) -> dict[str, Any]:
        """End and pad ids for `generate`, from the tokenizer: configs on the hub disagree."""
        return {"eos_token_id": self.end_ids, "pad_token_id": self.pad_token_id}


def arguments(rows: Sequence[Row], answers: bool) -> dict[str, Any]:
    """What rows are called with: `images`, `text`, `histories`, and `answers` where wanted."""
    named: dict[str, Any] = {
        "images": [row.images for row in rows],
        "text": [row.question for row in rows],
        "histories": [row.history for row in rows],
    }
    return named | ({"answers": [row.answer for row in rows]} if answers else {})


def pad(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    """Rows of unequal length → (rows, longest), padded on the right."""
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[value] * (longest - len(row))] for row in rows], dtype=torch.long)


AutoProcessor.register(CromeConfig, CromeProcessor)
