"""Answers in a form: JSON that fits a schema, and OpenAI's newer responses."""

import json

import openai
import pytest

from crome.rows import Row

from .test_app import call, client_of, expected_answer, message

SCHEMA = {
    "type": "object",
    "properties": {"colour": {"enum": ["red", "green", "blue"]}, "n": {"type": "integer",
                   "minimum": 0, "maximum": 9}, "sure": {"type": "boolean"}},
    "required": ["colour", "n", "sure"], "additionalProperties": False,
}  # fmt: skip


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("temperature", [0, 1.5])
def test_an_answer_fits_its_schema(serving, pictures, stream, temperature):
    """Of a model with random weights, which says nothing of the kind by itself."""
    pytest.importorskip("llguidance", reason="needs the extra `json`")
    with serving() as server:
        client = client_of(server)
        asked = {
            "model": "red", "messages": [message("What is the colour?", pictures[0])],
            "max_tokens": 100, "temperature": temperature,
            "response_format": {"type": "json_schema",
                                "json_schema": {"name": "x", "schema": SCHEMA, "strict": True}},
        }  # fmt: skip
        if stream:
            chunks = client.chat.completions.create(**asked, stream=True)
            text = "".join(c.choices[0].delta.content or "" for c in chunks)
        else:
            choice = client.chat.completions.create(**asked, n=2).choices[1]
            assert choice.finish_reason == "stop"
            text = choice.message.content
        found = json.loads(text)
        assert set(found) == {"colour", "n", "sure"}
        assert found["colour"] in ("red", "green", "blue")
        assert 0 <= found["n"] <= 9
        # Free answers beside it are as they were.
        row = Row((pictures[0],), "What is the colour?", "", "")
        del asked["response_format"], asked["temperature"]
        free = client.chat.completions.create(**asked | {"max_tokens": 8})
        assert free.choices[0].message.content == expected_answer(server, "red", row)


def test_schemas_that_cannot_be_obeyed(serving):
    pytest.importorskip("llguidance", reason="needs the extra `json`")
    with serving() as server:
        body = {"model": "red", "messages": [message("x")], "max_tokens": 3}
        for schema in (
            {"type": "nonsense"}, {"$ref": "#/nothing"}, {"pattern": "(", "type": "string"},
            {"allOf": [{"type": "string"}, {"type": "integer"}]},
            {"enum": [f"value {i}" for i in range(5000)]},  # would take long to compile
        ):  # fmt: skip
            wanted = {"name": "x", "schema": schema}
            body["response_format"] = {"type": "json_schema", "json_schema": wanted}
            status, told = call(server, "/v1/chat/completions", body)
            assert (status, told["error"]["param"]) == (400, "response_format"), schema
        body["response_format"] = {"type": "json_object"}
        status, reply = call(server, "/v1/chat/completions", body)
        assert status == 200
        assert reply["choices"][0]["message"]["content"].startswith("{")


def test_without_the_package_a_form_is_refused(serving, monkeypatch):
    from crome.serving.engine import grammar

    monkeypatch.setattr(grammar, "find_spec", lambda name: None)
    with serving() as server:
        body = {"model": "red", "messages": [message("x")],
                "response_format": {"type": "json_object"}}  # fmt: skip
        status, told = call(server, "/v1/chat/completions", body)
        assert (status, told["error"]["param"]) == (400, "response_format")
        assert "crome[json]" in told["error"]["message"]


def test_responses_with_the_official_client(serving, pictures):
    """Whole and streamed, one turn and two, with a picture and without: what `answer` says."""
    with serving() as server:
        client = client_of(server)
        image = message("", pictures[0])["content"][0]["image_url"]["url"]
        row = Row((pictures[0],), "What is the colour?", "", "")
        expected = expected_answer(server, "red", row)
        turn = {"role": "user", "content": [
            {"type": "input_image", "image_url": image, "detail": "auto"},
            {"type": "input_text", "text": row.question}]}  # fmt: skip
        asked = {"model": "red", "input": [turn], "max_output_tokens": 8}
        whole = client.responses.create(**asked)
        assert whole.output_text == expected
        assert whole.usage.total_tokens == whole.usage.input_tokens + whole.usage.output_tokens
        events = list(client.responses.create(**asked, stream=True))
        assert [e.sequence_number for e in events] == list(range(len(events)))
        assert events[0].type == "response.created"
        assert events[-1].type in ("response.completed", "response.incomplete")
        assert events[-1].response.output_text == expected
        deltas = (e.delta for e in events if e.type == "response.output_text.delta")
        assert "".join(deltas) == expected
        with client.responses.stream(**asked) as stream:
            deltas = (e.delta for e in stream if e.type == "response.output_text.delta")
            assert "".join(deltas) == expected
        # What came is sent back with a further question.
        again = [turn, *whole.to_dict()["output"], {"role": "user", "content": "And now?"}]
        second = client.responses.create(**asked | {"input": again})
        later = Row((pictures[0],), "And now?", "", "", history=((row.question, expected),))
        assert second.output_text == expected_answer(server, "red", later)
        thought = [{"type": "reasoning", "id": "rs_1", "summary": []}]
        third = client.responses.create(**asked | {"input": [*again[:1], *thought, *again[1:]]})
        assert third.output_text == second.output_text
        plain = client.responses.create(
            model="tiny", input="What?", instructions="Be brief.", max_output_tokens=3
        )
        assert plain.usage.output_tokens <= 3
        with pytest.raises(openai.BadRequestError) as caught:
            client.responses.create(model="tiny", input="x", tools=[{"type": "web_search"}])
        assert caught.value.param == "tools"
        for wrong, param in (
            ({"previous_response_id": "resp_1"}, "previous_response_id"),
            ({"input": []}, "input"), ({"input": [{"role": "x"}]}, "input[0]"),
            ({"input": [turn | {"content": [{"type": "input_image", "image_url": "data:,"}]}],
              "instructions": "Be brief."}, "input[0].content[0].image_url"),
            ({"input": [{"type": "function_call_output", "output": "x"}]}, "input[0].type"),
            ({"max_output_tokens": 5000}, "max_output_tokens"), ({"input": " "}, "input"),
            ({"metadata": {"a": 1e300}}, "metadata.a"), ({"metadata": "x"}, "metadata"),
        ):  # fmt: skip
            status, told = call(server, "/v1/responses", {"model": "tiny", "input": "x"} | wrong)
            assert status == 400
            assert told["error"]["param"].startswith(param)
