"""Judges: one interface, and a client for OpenAI-compatible servers.

A judge is anything callable as `judge(messages, temperature=…, max_tokens=…) -> str` with a `name`.
What it says is read by the task; a reply without a verdict is asked for again, and a verdict that
never comes is missing. Nothing is ever scored in its place.
"""

import os
from typing import Any, Protocol

from crome.errors import InputError, JobError
from crome.evaluation.task import Messages

URL_VARIABLE = "CROME_JUDGE_URL"
KEY_VARIABLE = "CROME_JUDGE_KEY"
REFUSED_STATUS = frozenset({400, 413, 422})  # this one request: too long, or filtered
PASSING_STATUS = frozenset({408, 409, 429})  # and all from 500: the client waits and repeats
WORKERS = 8  # verdicts that are asked for at a time
THOUGHT_TOKENS = 4096  # room for models that think before they reply


class JudgeRefusedError(JobError):
    """The server answers, but not this request."""


class Judge(Protocol):
    """Answers chat messages with text."""

    name: str

    def __call__(self, messages: Messages, *, temperature: float, max_tokens: int) -> str:
        """Returns the reply.

        Raises:
            JobError: There is none.
        """


class ChatServer:
    """A judge behind any server that speaks the OpenAI chat protocol, through its own client.

    The base address (up to and including `/v1`) is taken from the environment variable
    CROME_JUDGE_URL, the key, where the server wants one, from CROME_JUDGE_KEY. A call that timed
    out, hit a rate limit or a server error is repeated by the client, which waits as long as the
    server asks.

    Args:
        model: The name the server knows the model by.
        retries: How often such a call is repeated.
        timeout: Timeout of one call, in seconds.

    Attributes:
        name: Name of the model.
        workers: How many verdicts may be asked for at a time.
        departures: What the server refused of the benchmark's settings, in words.

    Raises:
        InputError: CROME_JUDGE_URL is not set, or the client is not installed.
    """

    def __init__(self, model: str, *, retries: int = 6, timeout: float = 120.0) -> None:
        base = os.environ.get(URL_VARIABLE, "").rstrip("/")
        if not base.startswith(("http://", "https://")):
            raise InputError(
                f"{URL_VARIABLE} is {base!r}: set it to the base address of an OpenAI-compatible "
                f"server, such as http://localhost:8000/v1, and {KEY_VARIABLE} to its key."
            )
        try:
            import openai
        except ImportError as error:
            raise InputError("a judge needs the openai client: install crome[judge].") from error
        self._openai: Any = openai
        self._client: Any = openai.OpenAI(
            base_url=base,
            api_key=os.environ.get(KEY_VARIABLE) or "none",
            max_retries=retries,
            timeout=timeout,
        )
        self.name, self.workers = model, WORKERS
        self.departures: dict[str, str] = {}

    def __call__(self, messages: Messages, *, temperature: float, max_tokens: int) -> str:
        """Returns the reply's text.

        Raises:
            JobError: The server refused, stayed unreachable, or sent something else.
        """
        errors = self._openai
        for _ in range(3):  # once as the benchmark has it, and after each refused setting
            try:
                reply = self._client.chat.completions.create(
                    model=self.name, messages=messages, **self._limits(temperature, max_tokens)
                )
                return str(reply.choices[0].message.content or "")
            except errors.APIStatusError as error:
                if not self._departs(str(error), temperature):
                    raise self._failure(error.status_code, error.response.text[:200]) from None
            except errors.APIConnectionError as error:  # none, cut, or timed out
                cause, attempts = error.__cause__ or error, self._client.max_retries + 1
                raise JobError(
                    f"judge {self.name}: no reply in {attempts} attempts; {cause}"
                ) from None
            except (
                errors.OpenAIError,
                AttributeError,
                LookupError,
                TypeError,
                ValueError,
            ) as error:
                raise JobError(
                    f"judge {self.name}: the server sent no chat completion ({error})."
                ) from None
        raise JudgeRefusedError(f"judge {self.name}: it refuses every form of this request.")

    def _failure(self, status: int, text: str) -> JobError:
        """The error for a status that the client does not, or no longer, retry."""
        reason = f"HTTP {status}: {text}"
        if status in REFUSED_STATUS:
            return JudgeRefusedError(f"judge {self.name}: {reason}")
        if status in PASSING_STATUS or status >= 500:
            reason = f"no reply in {self._client.max_retries + 1} attempts; {reason}"
        return JobError(f"judge {self.name}: {reason}")

    def _limits(self, temperature: float, max_tokens: int) -> dict[str, Any]:
        limits: dict[str, Any] = {}
        if "temperature" not in self.departures:
            limits["temperature"] = temperature
        if "max_tokens" in self.departures:
            limits["max_completion_tokens"] = max_tokens + THOUGHT_TOKENS
        else:
            limits["max_tokens"] = max_tokens
        return limits

    def _departs(self, refusal: str, temperature: float) -> bool:
        """Notes a setting that newer models refuse; False where there is nothing new to note."""
        known = len(self.departures)
        if "max_tokens" in refusal:
            self.departures.setdefault(
                "max_tokens", f"{self.name} takes no max_tokens: max_completion_tokens, with room "
                f"for {THOUGHT_TOKENS:,} tokens of thought, stood in for it",
            )  # fmt: skip
        if "temperature" in refusal:
            self.departures.setdefault(
                "temperature", f"{self.name} takes no temperature {temperature:g}: it graded at "
                "its own default",
            )  # fmt: skip
        return len(self.departures) > known
