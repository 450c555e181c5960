"""The text side of a prompt: the question in its template, what ends an answer, where it is cut.

A prompt is the same on every day and for every answer that is expected: where a chat template asks
for the date, it is given that of the checkpoint, and where it can leave the model time to think,
the checkpoint says whether it does.

Shapes: B rows, T text tokens, S instruction tokens of the Q-Former, N options, A tokens of one.
"""

import re
from collections.abc import Mapping, Sequence
from datetime import date
from functools import cached_property
from typing import Any, NamedTuple

import torch
from jinja2 import TemplateError
from torch import Tensor
from transformers import BatchFeature, ProcessorMixin

from crome.errors import InputError
from crome.model.dates import dated, default_template
from crome.model.wording import Wording, pad

History = Sequence[tuple[str, str]]

# Never tokenised: they only mark a place in a rendered template and are split away again.
VISUAL, ANSWER = "\x00visual\x00", "\x00answer\x00"
BARE = ("", "{bos}{question}")
THINKING = re.compile(r"<think>\s*$")


class Prompt(NamedTuple):
    """Text tokens of one row's question, and how many of them precede the visual block."""

    ids: list[int]
    visual_position: int


class Prompting(Wording, ProcessorMixin):
    """What a `CromeProcessor` does with text; the settings are those of its `__init__`."""

    qformer_tokenizer: Any
    prompt_format: str | Sequence[str]
    system_prompt: str | None
    prompt_date: str | None
    enable_thinking: bool | None
    max_instruction_tokens: int | None
    is_encoder_decoder: bool

    def prompt(
        self, question: str, has_image: bool, history: History = (), system: str | None = None
    ) -> Prompt:
        """Token ids of one question in its template, and where the visual block goes.

        Args:
            question: Cut if it is too long.
            has_image: Whether there is a visual block.
            history: Earlier turns.
            system: Instead of the processor's own system message.
        """
        before, after = self._render(self.cut(question), history, has_image, system)
        head = self._ids(before)
        return Prompt(head + self._ids(after), len(head))

    def render(
        self, question: str, has_image: bool, history: History = (), system: str | None = None
    ) -> str:
        """The prompt as text, `<image>` where the visual block goes: for logs and predictions."""
        before, after = self._render(question.strip(), history, has_image, system)
        return before + ("<image>" if has_image else "") + after

    def _render(
        self, question: str, history: History, has_image: bool, system: str | None
    ) -> tuple[str, str]:
        """Text before and after the visual block; all of it before when there is none."""
        visual = VISUAL if has_image else ""
        question = self.words(question)
        history = [(self.words(q), self.words(a)) for q, a in history]
        if self.uses_chat_template:
            rendered = self._chat([*history, (question, None)], visual, system)
        else:
            pair = BARE if isinstance(self.prompt_format, str) else self.prompt_format
            earlier = "".join(f"{q}\n{a}\n" for q, a in history)
            bos = self.tokenizer.bos_token or ""
            before, after = (part.replace("{bos}", bos) for part in pair)
            rendered = before + visual + after.replace("{question}", earlier + question)
        before, _, after = rendered.partition(VISUAL)
        return before, after

    @property
    def uses_chat_template(self) -> bool:
        """Whether prompts follow the language model's own chat template."""
        return self.prompt_format == "chat" and bool(self.tokenizer.chat_template)

    def _chat(
        self, turns: Sequence[tuple[str, str | None]], visual: str, system: str | None = None
    ) -> str:
        system = self.system_prompt if system is None else system
        messages = [] if system is None else [("system", system)]
        for question, answer in turns:
            messages.append(("user", visual + question))
            visual = ""  # the block stands in the first turn
            if answer is not None:
                messages.append(("assistant", answer))
        asks = turns[-1][1] is None
        try:
            rendered = str(
                self.tokenizer.apply_chat_template(
                    [{"role": role, "content": content} for role, content in messages],
                    tokenize=False,
                    add_generation_prompt=asks,
                    **self.template_settings,
                )
            )
        except TemplateError as error:  # Gemma 2's has no system role
            raise InputError(
                f"the language model's chat template refuses the conversation: {error}; leave "
                "system_prompt out, or set prompt_format to 'bare' or a pair of texts."
            ) from error
        if asks and self.enable_thinking is False and (opened := THINKING.search(rendered)):
            rendered = rendered[: opened.start()] + "<think>\n\n</think>\n\n"  # it always begins
        return rendered

    @property
    def template_settings(self) -> dict[str, Any]:
        """Settings of a chat template: the checkpoint's day, and whether to leave time to think."""
        settings: dict[str, Any] = {}
        if self.enable_thinking is not None:
            settings["enable_thinking"] = self.enable_thinking
        template = default_template(self.tokenizer.chat_template)
        if self.prompt_date is not None and template is not None:
            settings["chat_template"] = dated(template, date.fromisoformat(self.prompt_date))
        return settings

    @cached_property
    def end_ids(self) -> list[int]:
        """Tokens that end an answer: the turn's end in a chat template, EOS otherwise."""
        if self.uses_chat_template:
            rest = self._chat([("question", ANSWER)], "").partition(ANSWER)[2].lstrip()
            if ids := self._ids(rest):
                return ids[:1]
        return [] if self.tokenizer.eos_token_id is None else [self.tokenizer.eos_token_id]

    def answer_ids(self, answer: str) -> list[int]:
        """Token ids of an answer with its end; a cut answer has no end, as it goes on."""
        ids = self._ids(self.words(answer))
        if len(ids) >= self.max_answer_tokens:
            return ids[: self.max_answer_tokens]
        return ids + self.end_ids

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
        if ids.shape[1] > self.instruction_limit:  # from the left, keeping [CLS]
            ids, mask = self._keep_last(ids, mask)
        return {"qformer_input_ids": ids, "qformer_attention_mask": mask}

    @property
    def instruction_limit(self) -> int:
        """Tokens of an instruction: as many as a question may have, and the Q-Former can place."""
        return min(
            self.max_question_tokens, self.max_instruction_tokens or self.max_question_tokens
        )

    def _keep_last(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        limit = self.instruction_limit
        rows = [i[m.bool()].tolist() for i, m in zip(ids, mask, strict=True)]
        rows = [r if len(r) <= limit else r[:1] + r[1 - limit :] for r in rows]
        return pad(rows, self.qformer_tokenizer.pad_token_id), pad([[1] * len(r) for r in rows], 0)


Message = Mapping[str, Any]


class Conversation(NamedTuple):
    """A conversation whose last question is to be answered."""

    images: list[Any]
    question: str
    history: list[tuple[str, str]]
    system: str | None


class Conversations(Prompting):
    """`apply_chat_template`, which pipelines of transformers call."""

    def apply_chat_template(  # type: ignore[override]
        self,
        conversation: Sequence[Message] | Sequence[Sequence[Message]],
        *,
        tokenize: bool = False,
        return_dict: bool = False,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        processor_kwargs: Mapping[str, Any] | None = None,
        **keywords: Any,
    ) -> str | list[str] | BatchFeature | Any:
        """Renders conversations, or prepares them as a batch.

        All images of a conversation stand in front of its first question.

        Args:
            conversation: Messages with `role` and `content` (text, or a list of parts), or several
                conversations.
            tokenize: Whether to prepare tensors instead of text.
            return_dict: With `tokenize`: whether to return all tensors, or `input_ids` alone.
            add_generation_prompt: Must be true: prompts end where the answer begins.
            continue_final_message: Must be false.
            processor_kwargs: Further keywords of the processor's call.
            keywords: The same.

        Raises:
            InputError: A conversation does not end with a question, or has other media.
        """
        one, several = conversations(conversation, continue_final_message, add_generation_prompt)
        read = [read_conversation(messages) for messages in several]
        if not tokenize:
            texts = [self.render(c.question, bool(c.images), c.history, c.system) for c in read]
            return texts[0] if one else texts
        batch: BatchFeature = self(
            images=[c.images for c in read],
            text=[c.question for c in read],
            histories=[c.history for c in read],
            systems=[c.system for c in read],
            **{**(processor_kwargs or {}), **keywords},
        )
        return batch if return_dict else batch["input_ids"]


def conversations(
    given: Sequence[Any], continue_final_message: bool, add_generation_prompt: bool
) -> tuple[bool, Sequence[Sequence[Message]]]:
    """Whether one conversation was given, and all of them.

    Raises:
        InputError: A prompt is asked for that does not end where an answer begins.
    """
    if continue_final_message or not add_generation_prompt:
        raise InputError(
            "a prompt ends where the answer begins; leave continue_final_message and "
            "add_generation_prompt out, and end the conversation with a question."
        )
    one = bool(given) and isinstance(given[0], Mapping)
    return one, [given] if one else given


def read_conversation(messages: Sequence[Message]) -> Conversation:
    """Messages as a question with what stands before it.

    Raises:
        InputError: They are no alternation of questions and answers that ends with a question.
    """
    system: str | None = None
    turns: list[tuple[str, str]] = []
    images: list[Any] = []
    question: str | None = None
    for message in messages:
        role = message.get("role")
        text, shown = read_content(message.get("content"))
        if role == "system" and question is None and not turns:
            system = text if system is None else f"{system}\n{text}"
        elif role == "user" and question is None:
            question = text
            images += shown
        elif role == "assistant" and question is not None:
            turns.append((question, text))
            question = None
        else:
            raise InputError(
                f"a message of role {role!r} out of turn; expected a system message at most, then "
                "user and assistant by turns, and user at the end."
            )
    if question is None:
        raise InputError("the conversation ends without a question; end it with a user message.")
    return Conversation(images, question, turns, system)


def read_content(content: Any) -> tuple[str, list[Any]]:
    """The text and the images of a message.

    Raises:
        InputError: It has another medium, or an image that is not there.
    """
    if isinstance(content, str):
        return content, []
    texts: list[str] = []
    images: list[Any] = []
    for part in content or ():
        kind = part.get("type")
        if kind == "text":
            texts.append(str(part.get("text", "")))
        elif kind == "image":
            found = [part[k] for k in ("image", "path", "url") if part.get(k) is not None]
            if not found:
                raise InputError("an image without content; give its picture, path or url.")
            images.append(found[0])
        else:
            raise InputError(f"a part of type {kind!r}; expected text or image.")
    return "\n".join(texts), images
