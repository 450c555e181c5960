"""Bodies: what is taken, what is refused, and which field an error names."""

import json
import time

import pytest

from crome.serving.errors import ApiError
from crome.serving.http.body import parse
from crome.serving.schema import ChatRequest, CompletionRequest

TURN = {"role": "user", "content": "x"}


def chat(**fields):
    return parse(ChatRequest, json.dumps({"model": "m", "messages": [TURN]} | fields).encode())


def error_of(model=ChatRequest, **fields):
    with pytest.raises(ApiError) as caught:
        parse(model, json.dumps({"model": "m"} | fields).encode())
    assert caught.value.status == 400
    return caught.value.body["error"]


def turn(**fields):
    return {"messages": [TURN, TURN | fields]}


def part(*parts):
    return {"messages": [TURN, {"role": "user", "content": list(parts)}]}


IMAGE = {"type": "image_url", "image_url": {"url": "data:,"}}


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"stop": ["a"] * 5}, "stop", "at most 4"),
        ({"stop": ["a", 5]}, "stop[1]", "valid string"),
        ({"stop": "y" * 501}, "stop", "at most 500"),
        (part(*[{"type": "text", "text": "x"}] * 65), "messages[1].content", "at most 64"),
        (part({"type": "text"}), "messages[1].content[0].text", "required"),
        (part({"type": "text", "text": 5}), "messages[1].content[0].text", "valid string"),
        (part({"type": "text", "text": "x"}, {"type": "sound"}), "messages[1].content[1]",
         "'image_url', 'input_image', 'input_audio', 'audio_url', 'refusal'"),
        (part({"type": "text", "text": {"value": "x"}}), "messages[1].content[0].text",
         "valid string"),
        (turn(content={"type": "text", "text": "x"}), "messages[1].content", "valid"),
        (part(IMAGE | {"image_url": {"url": 5}}), "messages[1].content[0].image_url.url",
         "valid string"),
        (part(IMAGE | {"image_url": {"url": "data:,", "detail": "low"}}),
         "messages[1].content[0].image_url.detail", "does not offer"),
        (part({"type": "image_url", "image_url": {"url": "data:,", "size": 1}}),
         "messages[1].content[0].image_url.size", "no such field"),
        (turn(content=5), "messages[1].content", "valid"),
        (turn(role="root"), "messages[1].role", "'system'"),
        (turn(tool_calls=[{"id": "x"}]), "messages[1].tool_calls", "does not offer"),
        (turn(nonsense=1), "messages[1].nonsense", "no such field"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "required"),
        ({"messages": []}, "messages", "at least 1"),
        ({"messages": "x"}, "messages", "valid list"),
        ({"messages": [TURN], "temprature": 1}, "temprature", "no such field"),
        ({"messages": [TURN], "tools": [{"type": "function"}]}, "tools", "tool_choice"),
        ({"messages": [TURN], "tool_choice": "required"}, "tool_choice", "calls no tools"),
        ({"messages": [TURN], "top_logprobs": 2}, "top_logprobs", "`logprobs`"),
        ({"messages": [TURN], "stream_options": {"include_usage": True}}, "stream_options",
         "`stream`"),
        ({"messages": [TURN], "stream_options": {"usage": 1}, "stream": True},
         "stream_options.usage", "no such field"),
        ({"messages": [TURN], "logit_bias": {"5": 1}}, "logit_bias", "does not offer"),
        ({"messages": [TURN], "n": "2"}, "n", "valid integer"),
        ({"messages": [TURN], "n": 9}, "n", "less than or equal to 8"),
        ({"messages": [TURN], "response_format": {"type": "xml"}}, "response_format.type",
         "'json_object'"),
    ],
)  # fmt: skip
def test_an_error_names_the_field_and_its_fault(fields, param, words):
    error = error_of(**({"messages": [TURN]} | fields))
    assert error["param"] == param
    assert words in error["message"]
    assert error["type"] == "invalid_request_error"
    assert error["code"]


def test_errors_of_completions():
    assert error_of(CompletionRequest, prompt=["x"] * 9)["param"] == "prompt"
    assert "at most 8" in error_of(CompletionRequest, prompt=["x"] * 9)["message"]
    assert error_of(CompletionRequest, prompt=["x", 5])["param"] == "prompt[1]"
    assert error_of(CompletionRequest)["param"] == "prompt"
    assert error_of(CompletionRequest, prompt="x", n=2, best_of=3)["param"] == "best_of"
    assert parse(CompletionRequest, b'{"model": "m", "prompt": "x", "n": 2, "best_of": 2}').n == 2
    assert error_of(CompletionRequest, prompt="x", echo=True)["code"] == "unsupported_parameter"


NEUTRAL = {
    "stream": None, "stream_options": None, "temperature": None, "max_tokens": None, "n": None,
    "stop": None, "tools": None, "tool_choice": "none", "top_k": -1, "repetition_penalty": 1.0,
    "min_p": 0, "frequency_penalty": 0, "presence_penalty": 0.0, "logit_bias": {}, "seed": None,
    "response_format": {"type": "text"}, "logprobs": False, "top_logprobs": None, "user": None,
    "functions": [], "function_call": "none", "parallel_tool_calls": True, "modalities": ["text"],
    "audio": None, "prediction": None, "store": False, "metadata": {"a": "b"}, "best_of": 1,
    "service_tier": "auto", "reasoning_effort": None, "web_search_options": None, "echo": False,
    "length_penalty": 1.0, "use_beam_search": False, "stop_token_ids": [], "min_tokens": 0,
    "skip_special_tokens": True, "ignore_eos": False, "chat_template_kwargs": {},
    "add_generation_prompt": True, "top_p": 0, "nobody_knows_it": None,
}  # fmt: skip


@pytest.mark.parametrize("name", NEUTRAL)
def test_values_that_change_nothing_are_taken(name):
    chat(**{name: NEUTRAL[name]})


def test_all_of_them_together_and_null_inside():
    chat(**NEUTRAL)
    chat(stream=True, stream_options={"include_usage": None})
    chat(tools=[{"type": "function"}], tool_choice="none")


def test_a_schema_keeps_its_nulls():
    schema = {"properties": {"a": {"const": None, "default": None}}}
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": None}}
    assert chat(response_format=wanted).response_format.json_schema.schema_ == schema


def test_a_byte_order_mark_is_passed_over():
    body = b'\xef\xbb\xbf{"model": "m", "messages": [{"role": "user", "content": "x"}]}'
    assert parse(ChatRequest, body).model == "m"


def test_hostile_bodies_cost_little():
    """Tens of megabytes of keys, values, depth or digits are refused in a moment."""
    bodies = [
        b'{"a":[' + b"1," * 15_000_000 + b"1]}",
        b"{" + b",".join(b'"k%d":1' % i for i in range(1_500_000)) + b"}",
        b'{"messages":[' + b",".join([b'{"role":"user","content":[' + b'{"x":1},' * 60
                                     + b'{"x":1}]}'] * 20_000) + b"]}",
        b"[" * 30_000_000, b'{"a":' * 6_000_000, b'{"n":' + b"9" * 20_000_000 + b"}",
        b'{"model":"' + b"x" * 30_000_000 + b'"}', b'{"model":"' + b"\\u00e9" * 5_000_000 + b'"}',
    ]  # fmt: skip
    for body in bodies:
        began = time.process_time()
        with pytest.raises(ApiError) as caught:
            parse(ChatRequest, body)
        assert caught.value.status == 400
        assert time.process_time() - began < 1, body[:20]
