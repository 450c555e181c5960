"""What an engine takes and gives, and what it needs of a model.

Shapes: I distinct images, T text tokens, L prompt length with visual tokens.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from torch import Tensor, nn

from crome.errors import InputError
from crome.serving.engine.sampling import Sampling, Token

Finish = Literal["stop", "length", "error"]
Gauges = Mapping[str, tuple[str, Callable[[], float]]]
"""Name of a level → what it is, and how to read it."""


class DeadlineError(TimeoutError):
    """An answer was not finished in its time."""


class ClosedError(RuntimeError):
    """The engine takes no more requests."""


class RemovedError(LookupError):
    """The adapter is no longer there."""


class RoomError(InputError):
    """A prompt and its answer need more memory than the engine keeps for all of them."""


class EngineError(RuntimeError):
    """The engine behind this one refused a request or cannot be reached."""


@dataclass
class Prompt:
    """One prompt as tensors, and which pictures it shows.

    Attributes:
        ids: (1, T) text.
        visual_position: (1,) text tokens in front of the visual block.
        digests: A name for the content of each distinct picture.
        pixel_values: (I, 3, H, W); None without pictures.
        image_index: (1, K) pictures in order.
        instruction: Inputs of the Q-Former by name.
        adapter: Key of the adapter in `model.task_adapters`; None for the base's own.
        tenant: Whose request it is: tenants share nothing that is cached, so none can find out by
            a quicker answer what another has asked.
        length: L, known once it was read.
        reused: How many of those came from the cache of prefixes.
        batch: All tensors of the row, for an engine that runs a whole model.
        messages: The conversation as parts of text and media, for an engine that writes the chat
            template itself.
    """

    ids: Tensor
    visual_position: Tensor
    digests: tuple[str, ...] = ()
    pixel_values: Tensor | None = None
    image_index: Tensor | None = None
    instruction: dict[str, Tensor] = field(default_factory=dict)
    adapter: str | None = None
    tenant: str = ""
    length: int = 0
    reused: int = 0
    batch: Mapping[str, Any] | None = None
    messages: Sequence[Mapping[str, Any]] | None = None


@dataclass(frozen=True)
class Piece:
    """Part of an answer: new tokens and the text they made certain.

    Attributes:
        text: May be empty while a character or a stop string is undecided.
        tokens: Generated since the last piece.
        finish: Why the answer ended; None while it goes on.
        error: What went wrong, with `finish` "error".
    """

    text: str = ""
    tokens: tuple[Token, ...] = ()
    finish: Finish | None = None
    error: BaseException | None = None


@dataclass
class Request:
    """A prompt, how to continue it, and where its pieces go.

    Attributes:
        prompt: What is read.
        deliver: Called on a thread of the engine with each piece; must not block.
        max_new_tokens: Longest answer.
        sampling: How tokens are chosen.
        stop: Strings that end the answer.
        end_ids: Tokens that end the answer.
        strip: Whether outer space is left out.
        deadline: `time.monotonic()` at which the request is given up.
        grammar: Of the engine's `grammar`, for an answer that must have a form; None for free text.
    """

    prompt: Prompt
    deliver: Callable[[Piece], None]
    max_new_tokens: int = 32
    sampling: Sampling = field(default_factory=Sampling)
    stop: Sequence[str] = ()
    end_ids: Sequence[int] = ()
    strip: bool = True
    deadline: float = float("inf")
    grammar: Any = None
    cancelled: bool = False

    def cancel(self) -> None:
        """Stops the work at the next step; no further piece matters."""
        self.cancelled = True

    def wanted(self) -> bool:
        """Whether somebody still waits for the answer; ends the request when its time is up."""
        if not self.cancelled and time.monotonic() > self.deadline:
            self.fail(DeadlineError("the answer was not finished within the request's time limit."))
        return not self.cancelled

    def fail(self, error: BaseException) -> None:
        """Ends the answer with an error."""
        self.cancelled = True
        self.deliver(Piece(finish="error", error=error))


class Engine(Protocol):
    """Takes requests from any thread and delivers their pieces."""

    model: Any
    """With the language model's own settings, and the bridge in front of it."""
    max_batch: int
    """Answers worked on together."""
    max_length: int | None
    """Tokens of a prompt and its answer that the language model takes; None for no bound."""

    def start(self) -> None:
        """Begins to answer."""

    def submit(self, request: Request) -> None:
        """Queues a request; raises `ClosedError` when the engine is shutting down."""

    def close(self, timeout: float | None = None) -> None:
        """Answers what was taken, refuses anything new, and stops."""

    @property
    def alive(self) -> bool:
        """Whether requests are being answered."""

    @property
    def waiting(self) -> int:
        """Requests that nobody works on yet."""

    @property
    def running(self) -> int:
        """Requests that are being answered."""

    def length(self, prompt: Prompt) -> int:
        """Tokens of a prompt, as far as they are known before its pictures were read."""

    @property
    def sampling(self) -> Sampling:
        """How the model's own settings choose tokens."""

    def grammar(self, schema: dict[str, Any]) -> Any:
        """Prepares answers in JSON that fits a schema; raises `InputError` when it cannot."""

    def add_adapter(self, key: str, folder: Path) -> None:
        """Loads an adapter; raises `InputError` when it is unfit."""

    def remove_adapter(self, key: str) -> None:
        """Forgets an adapter once the requests that were taken before have no need of it."""

    def attention(self, prompt: Prompt) -> Tensor:
        """(Q, h, w) where the queries look in the first picture of a prompt."""

    def gauges(self) -> Gauges:
        """Levels for an operator's monitoring."""


class EngineModel(Protocol):
    """All that the local engine needs of a model."""

    config: Any
    """`text_config`; and `branches`, `visual_order`, `share_prefix`, by which the engine knows how
    many visual tokens the questions on a picture share."""
    language_model: Any
    """A decoder of transformers whose state is keys and values."""
    task_adapters: nn.ModuleDict
    """Adapters by key."""

    def get_input_embeddings(self) -> nn.Module:
        """The language model's word embeddings."""

    def visual_features(self, pixel_values: Tensor) -> Any:
        """Frozen features of pictures, which are kept."""

    @property
    def prompt_embeddings(self) -> Callable[..., tuple[Tensor, Tensor]]:
        """Prompts as the language model reads them.

        A function of `input_ids` and `attention_mask` (B, T), `visual_position` (B,), for pictures
        `features`, `image_index` (B, K) and the Q-Former's inputs, `adapter_names` and the `side`
        of the padding. It gives (B, L, d) embeddings and their mask (B, L).
        """

    def parameters(self) -> Iterator[nn.Parameter]:
        """All weights."""
