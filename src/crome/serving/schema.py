"""What clients may send: OpenAI's fields, each with its limits, and none that would be ignored.

A field that changes answers elsewhere and cannot be honoured here is refused unless it has its
neutral value; one that concerns only the service (`user`, `metadata`, …) is taken and not read.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

MAX_TEXT = 1_000_000  # characters of one field; longer ones are not worth a tokenizer's time


def _encodable(text: str) -> str:
    if any("\ud800" <= c <= "\udfff" for c in text):
        raise ValueError("half a surrogate pair; expected whole characters")
    return text


def _neutral(value: Any) -> Any:
    if value:
        raise ValueError("this server does not offer it; leave it out")
    return value


Text = Annotated[str, Field(max_length=MAX_TEXT), AfterValidator(_encodable)]
Name = Annotated[str, Field(max_length=200), AfterValidator(_encodable)]
Stop = Annotated[str, Field(max_length=500), AfterValidator(_encodable)]
Neutral = AfterValidator(_neutral)


class Body(BaseModel):
    """Unknown fields and wrong types are errors: a misspelt field or `"5"` must not pass."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class ImageUrl(Body):
    """A picture: `data:image/…;base64,…`, or http(s) where the server allows the host."""

    url: str
    detail: Literal["auto", "low", "high"] | None = None


class TextPart(Body):
    """Words of a message."""

    type: Literal["text"]
    text: Text


class ImagePart(Body):
    """A picture in a message."""

    type: Literal["image_url"]
    image_url: ImageUrl


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class Message(Body):
    """One turn."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[Part], Field(max_length=64)]
    name: Name | None = None
    # What else stands in an answer that a client sends back as it came.
    refusal: None = None
    annotations: None = None
    audio: None = None
    function_call: None = None
    tool_calls: None = None


class StreamOptions(Body):
    """What a stream says besides the answer."""

    include_usage: bool = False
    include_obfuscation: bool | None = None


class Generation(Body):
    """Fields of both completion endpoints."""

    model: Name
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    n: Annotated[int, Field(ge=1, le=8)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=4)] | None = None
    ignore_eos: bool = False  # vLLM's; load tests compare answers of one length
    user: Name | None = None
    frequency_penalty: Annotated[float, Neutral] | None = None
    presence_penalty: Annotated[float, Neutral] | None = None
    logit_bias: Annotated[dict[str, Any], Neutral] | None = None

    @model_validator(mode="after")
    def _streams(self) -> Self:
        if self.stream_options and not self.stream:
            raise ValueError("`stream_options` needs `stream`")
        return self

    @property
    def stops(self) -> list[str]:
        """The stop strings as a list."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []


class ResponseFormat(Body):
    """Free text is the only format."""

    type: Literal["text"]


class ChatRequest(Generation):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=256)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: ResponseFormat | None = None
    tools: Annotated[list[Any], Neutral] | None = None
    tool_choice: Literal["none", "auto"] | None = None
    modalities: list[Literal["text"]] | None = None
    store: bool | None = None
    metadata: dict[str, Any] | None = None
    service_tier: Name | None = None
    safety_identifier: Name | None = None
    prompt_cache_key: Name | None = None

    @model_validator(mode="after")
    def _reports(self) -> Self:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("`top_logprobs` needs `logprobs`")
        return self


class CompletionRequest(Generation):
    """`POST /v1/completions`: the bare language model goes on, without a chat template.

    `image_url` is an addition: the picture stands at the beginning of the prompt.
    """

    prompt: Text | Annotated[list[Text], Field(min_length=1, max_length=8)]
    image_url: str | None = None
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    echo: Annotated[bool, Neutral] | None = None
    suffix: Annotated[str, Neutral] | None = None
    best_of: Literal[1] | None = None


class AdapterRequest(Body):
    """`POST /v1/adapters`."""

    name: Name
    path: Annotated[str, Field(max_length=4096), AfterValidator(_encodable)]


class ClassifyRequest(Body):
    """`POST /v1/classify`."""

    model: Name
    images: Annotated[list[str], Field(min_length=1, max_length=64)]
    top: Annotated[int, Field(ge=1, le=1000)] = 5


class AttentionRequest(Body):
    """`POST /v1/attention`."""

    image_url: str
    question: Text
    model: Name | None = None
    per_query: bool = False
