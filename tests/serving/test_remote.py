"""The engine that forwards to a vLLM, against a stand-in that streams tokens."""

from contextlib import ExitStack

import pytest
import torch

from crome.errors import InputError
from crome.rows import Row
from crome.serving.engine.remote import RemoteEngine

from . import test_vllm
from .streaming import RefusedError, streaming
from .test_app import call, client_of, expected_answer, message

MORE = {"top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty",
        "return_token_ids", "return_tokens_as_token_ids", "logprobs"}  # fmt: skip

MODELS = [{"id": "llm", "object": "model", "created": 0, "owned_by": "vllm", "max_model_len": 99}]


class Streaming(test_vllm.StandIn):
    """vLLM's stream: a token an event, half a character held back until it is whole."""

    def events(self, body):
        if self.failing:
            raise RefusedError(*self.failing)
        (embeds,) = self.prompts({**body, "prompt": body["prompt"] or []})
        ids, sent, ends = [], "", body["stop_token_ids"]
        for left in range(body["max_tokens"])[::-1]:
            new = torch.tensor([ids], dtype=torch.long)
            words = self.language_model.get_input_embeddings()(new) if ids else embeds[:, :0]
            logits = self.language_model(inputs_embeds=torch.cat([embeds, words], 1)).logits[0, -1]
            logprobs = logits.log_softmax(-1)
            token = int(logits.argmax())
            ids.append(token)
            finish = "stop" if token in ends else "length" if not left else None
            text = self.tokenizer.decode(ids, skip_special_tokens=True)[len(sent) :]
            if text.endswith("\N{REPLACEMENT CHARACTER}") and not finish:
                text = ""  # the next token may complete the character
            sent += text
            choice = {"index": 0, "text": text, "finish_reason": finish, "token_ids": [token]}
            if body.get("logprobs") is not None:
                p = float(logprobs[token])
                choice["logprobs"] = {
                    "tokens": [f"token_id:{token}"], "token_logprobs": [p],
                    "top_logprobs": [{f"token_id:{token}": p}], "text_offset": [0],
                }  # fmt: skip
            yield {"id": "x", "object": "text_completion", "created": 0, "model": "llm",
                   "choices": [choice]}  # fmt: skip
            if finish:
                return


@pytest.fixture
def vllm(monkeypatch):
    """Starts a vLLM over a language model; returns its address and what it has seen."""
    monkeypatch.setattr(test_vllm, "FIELDS", test_vllm.FIELDS | MORE)

    def start(pair, **settings):
        stand_in = Streaming(pair.model.language_model, pair.processor.tokenizer, **settings)
        stand_in.bodies, stand_in.failing = [], None

        return running.enter_context(streaming(stand_in, MODELS)), stand_in

    with ExitStack() as running:
        yield start


def test_the_same_api_over_a_vllm(build, serving, vllm, pictures):
    """Adapters, streams, log-probabilities, text alone: what the local engine says."""
    pair = build()
    url, stand_in = vllm(pair)
    with serving(pair, make=RemoteEngine, engine={"url": url, "name": "llm"}) as server:
        client = client_of(server)
        for name in ("tiny", "red", "blue"):
            for row in (Row((pictures[0],), "What is the colour?", "", ""),
                        Row((), "How many triangles are there?", "", "")):  # fmt: skip
                expected = expected_answer(server, name, row)
                asked = {"model": name, "max_tokens": 8,
                         "messages": [message(row.question, *row.images)]}  # fmt: skip
                whole = client.chat.completions.create(**asked, logprobs=True)
                assert whole.choices[0].message.content == expected
                assert len(whole.choices[0].logprobs.content) == whole.usage.completion_tokens
                chunks = list(client.chat.completions.create(**asked, stream=True))
                assert "".join(c.choices[0].delta.content or "" for c in chunks) == expected
        assert ["prompt_embeds" in body for _, body in stand_in.bodies[:4]] == [True] * 2 + [
            False
        ] * 2
        assert stand_in.bodies[0][1]["stop_token_ids"] == pair.processor.end_ids
        status, seen = call(server, "/v1/attention", {
            "image_url": message("x", pictures[0])["content"][0]["image_url"]["url"],
            "question": "What?"})  # fmt: skip
        assert (status, len(seen["grid"])) == (200, 2)
        assert "crome_adapters" in server.service.metrics.text().decode()


def test_failures_of_the_vllm_are_told_as_such(build, serving, vllm, pictures):
    pair = build()
    url, stand_in = vllm(pair)
    with serving(pair, make=RemoteEngine, engine={"url": url, "name": "llm"}) as server:
        body = {"model": "tiny", "max_tokens": 3, "messages": [message("x", pictures[0])]}
        stand_in.failing = (400, "no such thing")
        status, told = call(server, "/v1/chat/completions", body)
        assert (status, told["error"]["code"]) == (502, "engine_failed")
        assert "no such thing" not in told["error"]["message"]
        stand_in.failing = None
        assert call(server, "/v1/chat/completions", body)[0] == 200
        status, told = call(server, "/v1/chat/completions", body | {"model": "nobody"})
        assert status == 404


def test_what_is_wrong_with_the_address_is_told_before_serving(build, vllm):
    pair = build()
    url, _ = vllm(pair)
    engine = RemoteEngine(pair.model, pair.processor, url, "llm")
    engine.connect()
    assert engine.max_length == 99
    with pytest.raises(InputError, match="--engine_model"):
        RemoteEngine(pair.model, pair.processor, url, "other").connect()
    with pytest.raises(InputError, match="Is it started"):
        RemoteEngine(pair.model, pair.processor, "http://127.0.0.1:9/v1", "llm").connect()
    with pytest.raises(InputError, match="engine_url"):
        RemoteEngine(pair.model, pair.processor, "localhost:8000", "llm")
