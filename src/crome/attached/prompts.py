"""A model's own chat template: what it makes of a conversation, and where an answer ends.

What a template may change from one day or call to the next is fixed here and recorded in every
adapter file: the thinking switch is off and the date is always the same one.
"""

import hashlib
import re
from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

from jinja2 import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

from crome.errors import InputError
from crome.model.dates import dated, default_template, written
from crome.rows import message

Message = dict[str, Any]

DATE = datetime(2024, 7, 26)
PROBE, REPLY = "what colour is it", "it is blue"
ANSWERS = ("yes", "7", "A red square.", "No")
THINKING = re.compile(r"[<\[◁](?:\w+:)?think(?:ing)?[>\]▷]", re.IGNORECASE)
"""What opens a block of thoughts; a stroke before the word closes it."""
CLOSED = re.compile(r"[<\[◁]/(?:\w+:)?think(?:ing)?[>\]▷]", re.IGNORECASE)
THOUGHT = re.compile(rf"\s*({THINKING.pattern}\s*{CLOSED.pattern}\s*)?", re.IGNORECASE)
SWITCHES: dict[str, Any] = {"enable_thinking": False, "thinking": False}
"""How templates are told to leave no time for thoughts: Qwen3's name and DeepSeek's."""


class Ending(NamedTuple):
    """What stands around an answer in a template.

    Attributes:
        lead: White space in front of it.
        end: The first token behind it, as text; empty for none.
    """

    lead: str
    end: str


class Template:
    """A chat template, or the bare prompt of a base model that has none.

    Args:
        processor: A processor of transformers.
        system_prompt: System message; None leaves it to the template.
        bare: Prompt of a model without a template; `{media}` and `{question}` are replaced.

    Raises:
        InputError: The template drops the system message, or opens a thinking block.
    """

    def __init__(
        self, processor: Any, system_prompt: str | None = None, bare: str = "{media}\n{question}\n"
    ) -> None:
        self.processor = processor
        self.system_prompt = system_prompt
        self.bare = bare
        text = template_text(processor)
        self.text = None if text is None else dated(text, DATE)
        self.recorded = bare if text is None else written(text, DATE)
        self.named = type(processor).__name__
        self.typed = self.text is not None and self._takes_lists()
        prompt = self.render(self._probe())
        self._check_prompt(prompt)
        self.ending = self._ending(prompt)

    def record(self) -> dict[str, Any]:
        """What an adapter trained with these prompts depends on; JSON."""
        return {
            "chat_template": hashlib.sha256(self.recorded.encode()).hexdigest()[:16],
            "system_prompt": self.system_prompt,
            "enable_thinking": False,
            "date": DATE.strftime("%Y-%m-%d"),
        }

    def render(self, messages: Sequence[Message]) -> str:
        """A conversation as text, ready for an answer where it ends with a question.

        Args:
            messages: As `Row.messages` gives them; the media themselves are not looked at.

        Raises:
            InputError: The template refuses the conversation.
        """
        if self.text is None:
            return self._render_bare(messages)
        try:
            return self._apply(
                [self._message(m["role"], m["content"]) for m in messages],
                messages[-1]["role"] != "assistant",
            )
        except InputError:
            raise
        except (TemplateError, TypeError, ValueError, KeyError) as error:
            raise InputError(
                f"the chat template of {self.named} refuses the conversation: {error}; leave out "
                "the system message or the earlier turns."
            ) from error

    # ------------------------------------------------------------------ parts

    def _probe(self) -> list[Message]:
        system = [] if self.system_prompt is None else [message("system", self.system_prompt)]
        return [*system, message("user", PROBE)]

    def _apply(self, messages: list[dict[str, Any]], open_end: bool) -> str:
        tokenizer = self.processor.tokenizer
        rendered: Any = render_jinja_template(
            conversations=[messages],
            chat_template=self.text,
            add_generation_prompt=open_end,
            **tokenizer.special_tokens_map,
            date_string=DATE.strftime("%d %b %Y"),
            **SWITCHES,
        )
        return str(rendered[0][0])

    def _message(self, role: str, parts: Sequence[dict[str, str]]) -> dict[str, Any]:
        if self.typed:
            bare = [{k: part[k] for k in ("type", "text") if k in part} for part in parts]
            return {"role": role, "content": bare}
        return {"role": role, "content": self._joined(parts)}

    def _joined(self, parts: Sequence[dict[str, str]]) -> str:
        return "".join(
            part["text"] if part["type"] == "text" else self.placeholder(part["type"])
            for part in parts
        )

    def placeholder(self, modality: str) -> str:
        """The token that stands for a picture, a film or a sound in the processor's text."""
        names = {"image": ("boi_token", "image_token"), "video": ("video_token",)}
        for name in names.get(modality, ("audio_token",)):
            if token := getattr(self.processor, name, None):
                return str(token)
        raise InputError(f"{self.named} has no token for {modality}; this model takes none.")

    def _render_bare(self, messages: Sequence[Message]) -> str:
        parts = [part for message in messages for part in message["content"]]
        media = "".join(self.placeholder(p["type"]) for p in parts if p["type"] != "text")
        texts = [
            "".join(part["text"] for part in message["content"] if part["type"] == "text")
            for message in messages
        ]
        reply = texts.pop() if messages[-1]["role"] == "assistant" else ""
        head, _, tail = self.bare.partition("{media}")
        filled = tail.replace("{question}", "\n".join(texts))
        return head + (media + filled if media else filled.lstrip("\n")) + reply

    def _takes_lists(self) -> bool:
        """Whether the template reads contents as lists of typed parts, not only as text."""
        content = [{"type": "text", "text": PROBE}]
        try:
            rendered = self._apply([{"role": "user", "content": content}], True)
        except (TemplateError, TypeError, ValueError, KeyError):
            return False
        return PROBE in rendered and "'type'" not in rendered and '"type"' not in rendered

    def _check_prompt(self, prompt: str) -> None:
        if self.system_prompt is not None and self.system_prompt.strip() not in prompt:
            raise InputError(
                f"the chat template of {self.named} drops the system message; put what it says "
                "into the questions, and leave system_prompt out."
            )
        opened = list(THINKING.finditer(prompt))
        if opened and not CLOSED.search(prompt, opened[-1].end()):
            raise InputError(
                f"the chat template of {self.named} opens a thinking block ({opened[-1][0]}) and "
                "cannot be told not to, and rows hold bare answers; take the model's Instruct "
                "variant."
            )

    def _ending(self, prompt: str) -> Ending:
        """How an answer is framed, from a conversation that has one.

        Raises:
            InputError: An answered conversation does not begin with the prompt.
        """
        whole = self.render([*self._probe(), message("assistant", REPLY)])
        before, _, rest = whole.partition(REPLY)
        if before.startswith(prompt):
            lead = before[len(prompt) :]
        else:
            same = shared_length(before, prompt)
            if before[same:].strip() or not THOUGHT.fullmatch(prompt[same:]):
                raise InputError(
                    f"the chat template of {self.named} writes an answered conversation otherwise "
                    f"than its prompt ({prompt[same : same + 30]!r} there, "
                    f"{before[same : same + 30]!r} here); give the processor a chat_template whose "
                    "generation prompt is what stands in front of an answer."
                )
            lead = ""
        if lead.strip():
            raise InputError(
                f"the chat template of {self.named} puts {lead.strip()[:30]!r} between the prompt "
                "and the answer; give the processor a chat_template that has it in the generation "
                "prompt."
            )
        return Ending(lead, rest.lstrip())


def shared_length(one: str, other: str) -> int:
    """Characters with which both begin."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


def template_text(processor: Any) -> str | None:
    """The chat template of a processor, or that of its tokenizer."""
    for owner in (processor, processor.tokenizer):
        if (template := default_template(getattr(owner, "chat_template", None))) is not None:
            return template
    return None
