"""What clients may send: OpenAI's fields, each with its limits, and none that would be ignored.

A field that changes answers elsewhere and cannot be honoured here is refused unless it has the
value that changes nothing. A field that concerns only the service (`user`, `metadata`, …) is taken
and not read. Fields that are null were left out before (see `body.py`).
"""

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

MAX_TEXT = 1_000_000  # characters of one field; longer ones are not worth a tokenizer's time


def _encodable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("half a surrogate pair; expected whole characters") from None
    return text


def neutral(*allowed: Any) -> AfterValidator:
    """Refuses all values but those that change nothing: the given ones, and whatever is empty."""

    def check(value: Any) -> Any:
        if value and value not in allowed:
            raise PydanticCustomError(
                "unsupported", "this server does not offer it; leave the field out."
            )
        return value

    return AfterValidator(check)


def wrong(field: str, message: str, kind: str = "invalid") -> PydanticCustomError:
    """An error of one field that only a look at several could find."""
    return PydanticCustomError(kind, message, {"field": field})


Text = Annotated[str, Field(max_length=MAX_TEXT), AfterValidator(_encodable)]
Name = Annotated[str, Field(max_length=200), AfterValidator(_encodable)]
Stop = Annotated[str, Field(max_length=500), AfterValidator(_encodable)]
Url = Annotated[str, Field(max_length=40 << 20), AfterValidator(_encodable)]
Count = Annotated[int, Field(ge=1)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
# The encoder reads every picture at its one resolution, so there is nothing to choose.
Detail = Annotated[Literal["auto", "low", "high", "original"], neutral("auto")]
Ignored = Any  # concerns the service or the client itself, and is not read


class Body(BaseModel):
    """Unknown fields and wrong types are errors: a misspelt field or `"5"` must not pass."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


# ---------------------------------------------------------------------- conversations


class ImageUrl(Body):
    """A picture: `data:image/…;base64,…`, or http(s) where the server allows the host."""

    url: Url
    detail: Detail = "auto"
    format: Ignored = None  # the type, which the picture itself tells


class TextPart(Body):
    """Words of a message; the newer API has names of its own for those of each side."""

    type: Literal["text", "input_text", "output_text"]
    text: Text
    cache_control: Ignored = None
    annotations: Ignored = None
    logprobs: Ignored = None


class RefusalPart(Body):
    """Words with which a model refused, sent back."""

    type: Literal["refusal"]
    refusal: Text


def _as_object(value: Any) -> Any:
    """An address alone, as the newer API and some clients have it, as an object."""
    return {"url": value} if isinstance(value, str) else value


class ImagePart(Body):
    """A picture in a message."""

    type: Literal["image_url", "input_image"]
    image_url: Annotated[ImageUrl, BeforeValidator(_as_object)]
    detail: Detail = "auto"
    cache_control: Ignored = None


class InputAudio(Body):
    """A recording as OpenAI's API has it: the base64 text of a file."""

    data: Url
    format: Ignored = None  # which the recording itself tells


class AudioPart(Body):
    """A recording in a message, for models that hear."""

    type: Literal["input_audio"]
    input_audio: InputAudio
    cache_control: Ignored = None


class AudioUrl(Body):
    """A recording: `data:audio/…;base64,…`, or http(s) where the server allows the host."""

    url: Url


class AudioUrlPart(Body):
    """A recording in a message, in the form that vLLM has beside OpenAI's."""

    type: Literal["audio_url"]
    audio_url: Annotated[AudioUrl, BeforeValidator(_as_object)]
    cache_control: Ignored = None


Part = Annotated[
    TextPart | ImagePart | AudioPart | AudioUrlPart | RefusalPart, Field(discriminator="type")
]
Parts = Annotated[list[Part], Field(max_length=64)]


class Message(Body):
    """One turn.

    An answer comes back as the client's library keeps it, with fields of its own that say nothing
    to the model.
    """

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Parts = ""
    name: Name | None = None
    refusal: Text | None = None
    tool_calls: Annotated[list[Any], neutral()] = []
    function_call: Annotated[Any, neutral()] = None
    audio: Annotated[Any, neutral()] = None
    annotations: Ignored = None
    parsed: Ignored = None
    provider_specific_fields: Ignored = None
    reasoning: Ignored = None
    reasoning_content: Ignored = None
    reasoning_details: Ignored = None
    thinking_blocks: Ignored = None
    images: Annotated[Any, neutral()] = None
    citations: Ignored = None
    metadata: Ignored = None
    id: Ignored = None
    cache_control: Ignored = None
    prefix: Ignored = None
    timestamp: Ignored = None

    @model_validator(mode="before")
    @classmethod
    def _without_empty_fields(cls, value: Any) -> Any:
        """Leaves out fields that say nothing: `"tool_calls": []` and whatever a library adds."""
        if not isinstance(value, dict):
            return value
        return {k: v for k, v in value.items() if k in cls.model_fields or v}

    @model_validator(mode="after")
    def _says(self) -> Self:
        if self.role != "assistant" and "content" not in self.model_fields_set:
            raise wrong("content", "this field is required.")
        return self


# ---------------------------------------------------------------------- generation


class StreamOptions(Body):
    """What a stream says besides the answer."""

    include_usage: bool = False
    include_obfuscation: Ignored = None
    continuous_usage_stats: Annotated[bool, neutral()] = False


class Generation(Body):
    """Fields of both completion endpoints: OpenAI's, and those that vLLM adds."""

    model: Name
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: Count | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    n: Annotated[int, Field(ge=1, le=8)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=4)] | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    # vLLM's
    top_k: Annotated[int, Field(ge=-1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = None
    min_tokens: Annotated[int, neutral()] = 0
    ignore_eos: bool = False  # load tests compare answers of one length
    stop_token_ids: Annotated[list[int], neutral()] = []
    include_stop_str_in_output: Annotated[bool, neutral()] = False
    skip_special_tokens: Annotated[bool, Field()] = True
    spaces_between_special_tokens: Ignored = None
    length_penalty: Annotated[float, neutral(1.0)] = 1.0
    use_beam_search: Annotated[bool, neutral()] = False
    best_of: Count = 1
    priority: Ignored = None
    request_id: Ignored = None
    # OpenAI's that are not offered, or concern only the service
    logit_bias: Annotated[dict[str, Any], neutral()] = {}
    user: Name | None = None

    @model_validator(mode="after")
    def _streams(self) -> Self:
        if self.stream_options and self.stream_options.include_usage and not self.stream:
            raise wrong("stream_options", "expected only together with `stream`.")
        if self.best_of not in (1, self.n or 1):
            raise wrong("best_of", "answers are not chosen among more here.", "unsupported")
        if not self.skip_special_tokens:
            raise wrong("skip_special_tokens", "special tokens are always left out here.")
        return self

    @property
    def stops(self) -> list[str]:
        """The stop strings as a list."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []


class JsonSchema(Body):
    """A schema that an answer must fit."""

    name: Name = "answer"
    description: Ignored = None
    schema_: Annotated[dict[str, Any], Field(alias="schema")] = {}
    strict: bool | None = None


class ResponseFormat(Body):
    """Free text, any JSON object, or JSON that fits a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _has_schema(self) -> Self:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise wrong("json_schema", "expected together with the type 'json_schema' only.")
        return self


NO_TOOLS = "this server calls no tools; leave the field out, or set `tool_choice` to 'none'."


class ChatRequest(Generation):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=256)]
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: ResponseFormat | None = None
    tools: list[Any] = []
    tool_choice: Any = None
    functions: Annotated[list[Any], neutral()] = []
    function_call: Annotated[Any, neutral("none", "auto")] = None
    parallel_tool_calls: Ignored = None
    modalities: list[Literal["text"]] = []
    audio: Annotated[Any, neutral()] = None
    prediction: Annotated[Any, neutral()] = None
    web_search_options: Annotated[Any, neutral()] = None
    reasoning_effort: Annotated[Any, neutral("none")] = None
    verbosity: Annotated[Any, neutral("medium")] = None
    chat_template_kwargs: Annotated[dict[str, Any], neutral()] = {}
    add_generation_prompt: Annotated[bool, Field()] = True
    echo: Annotated[bool, neutral()] = False
    store: Ignored = None
    metadata: Ignored = None
    service_tier: Ignored = None
    safety_identifier: Ignored = None
    prompt_cache_key: Ignored = None
    prompt_cache_retention: Ignored = None

    @model_validator(mode="after")
    def _reports(self) -> Self:
        if self.top_logprobs and not self.logprobs:
            raise wrong("top_logprobs", "expected only together with `logprobs`.")
        return self

    @model_validator(mode="after")
    def _calls_no_tools(self) -> Self:
        if self.tools and self.tool_choice != "none":
            raise wrong("tools", NO_TOOLS, "unsupported")
        if self.tool_choice not in (None, "none", "auto"):
            raise wrong("tool_choice", NO_TOOLS, "unsupported")
        return self


class CompletionRequest(Generation):
    """`POST /v1/completions`: the bare language model goes on, without a chat template.

    `image_url` is an addition: the picture stands at the beginning of the prompt.
    """

    prompt: Text | Annotated[list[Text], Field(min_length=1, max_length=8)]
    image_url: Url | None = None
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    echo: Annotated[bool, neutral()] = False
    suffix: Annotated[str, neutral()] = ""


# ---------------------------------------------------------------------- beside OpenAI's


class AdapterRequest(Body):
    """`POST /v1/adapters`."""

    name: Name
    path: Annotated[str, Field(max_length=4096), AfterValidator(_encodable)]


class FitForm(Body):
    """`POST /v1/classifiers`, a form: pictures, each with the name of its class."""

    name: Name
    labels: list[Name]
    images: list[bytes]
    method: Name | None = None


class ClassifyRequest(Body):
    """`POST /v1/classify`."""

    model: Name
    images: Annotated[list[Url], Field(min_length=1, max_length=64)]
    top: Annotated[int, Field(ge=1, le=1000)] = 5


class AttentionRequest(Body):
    """`POST /v1/attention`."""

    image_url: Url
    question: Text
    model: Name | None = None
    per_query: bool = False
