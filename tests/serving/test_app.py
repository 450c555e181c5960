"""The official client of OpenAI against the server, and what the server adds to that API."""

import base64
import io
import json
import threading
import urllib.error
import urllib.request

import openai
import pytest
import torch

from crome.model.answering import answer
from crome.rows import Row
from crome.serving.http.gate import Keys
from crome.serving.service import Limits


def data_url(picture, kind="PNG"):
    file = io.BytesIO()
    picture.save(file, kind)
    return f"data:image/{kind.lower()};base64," + base64.b64encode(file.getvalue()).decode()


def message(question, *pictures):
    parts = [{"type": "image_url", "image_url": {"url": data_url(p)}} for p in pictures]
    return {"role": "user", "content": [*parts, {"type": "text", "text": question}]}


def client_of(server, key="none"):
    return openai.OpenAI(base_url=server.url + "/v1", api_key=key, max_retries=0, timeout=60)


def call(server, path, body=None, key=None, method=None, headers=None):
    """Status and JSON of a request."""
    data = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(server.url + path, data, method=method)
    request.add_header("Content-Type", "application/json")
    for name, value in (headers or {}).items():
        request.add_header(name, value)
    if key:
        request.add_header("Authorization", f"Bearer {key}")
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, json.loads(response.read() or b"null")
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def expected_answer(server, name, row, max_new_tokens=8):
    pair, key = server.pair, server.adapters.find(name).key
    return answer(
        pair.model, pair.processor, [row], max_new_tokens=max_new_tokens, adapter_names=[key]
    )[0]


def test_chat_with_the_official_client(serving, pictures):
    """Every model, whole and streamed, one turn and two: what `answer` says alone."""
    with serving() as server:
        client = client_of(server)
        assert [m.id for m in client.models.list()] == ["tiny", "red", "blue"]
        assert client.models.retrieve("red").metadata["metrics"] == {"accuracy": 0.5}
        said = set()
        for name in ("tiny", "red", "blue"):
            row = Row((pictures[0],), "What is the colour?", "", "")
            expected = expected_answer(server, name, row)
            asked = {"model": name, "max_tokens": 8}
            turn = [message(row.question, pictures[0])]
            whole = client.chat.completions.create(messages=turn, **asked)
            assert whole.choices[0].message.content == expected
            usage = whole.usage
            assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
            assert 0 < usage.completion_tokens <= 8
            stream = client.chat.completions.create(
                messages=turn, stream=True, stream_options={"include_usage": True}, **asked
            )
            chunks = list(stream)
            assert "".join(c.choices[0].delta.content or "" for c in chunks[:-1]) == expected
            assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
            assert chunks[-1].usage.completion_tokens == usage.completion_tokens
            assert chunks[-1].usage.prompt_tokens_details.cached_tokens > 0  # asked twice
            said.add(expected)

            second = Row((pictures[0],), "And now?", "", "", history=(("What is it?", "no"),))
            turns = [message("What is it?", pictures[0]), {"role": "assistant", "content": "no"},
                     {"role": "user", "content": "And now?"}]  # fmt: skip
            whole = client.chat.completions.create(messages=turns, **asked)
            assert whole.choices[0].message.content == expected_answer(server, name, second)
            said_last = whole.choices[0].message
            for back in (said_last, said_last.model_dump()):  # as it came
                client.chat.completions.create(messages=[*turns, back, turns[-1]], **asked)
        assert len(said) > 1


def test_text_only_answers_are_the_bare_language_models(serving):
    """Whatever adapter is named: token by token what transformers' own `generate` gives."""
    with serving() as server:
        client, pair = client_of(server), server.pair
        ids = pair.processor.tokenizer("the large square is", return_tensors="pt")["input_ids"]
        settings = pair.processor.generation_kwargs | {"do_sample": False, "max_new_tokens": 8}
        bare = pair.model.language_model.generate(ids, **settings)[0, ids.shape[1] :]
        for name in ("tiny", "red"):
            said = client.completions.create(
                model=name, prompt="the large square is", max_tokens=8, logprobs=2
            ).choices[0]
            text = pair.processor.tokenizer.decode(bare, skip_special_tokens=True)
            assert said.text == text
            assert len(said.logprobs.tokens) == len(said.logprobs.token_logprobs)
            logits = pair.model.language_model(ids).logits[0, -1]
            # Float noise between one pass and two: 1e-6 here.
            assert said.logprobs.token_logprobs[0] == pytest.approx(
                float(logits.log_softmax(-1).max()), abs=1e-4
            )


def test_settings_of_an_answer(serving, pictures):
    with serving() as server:
        client = client_of(server)
        asked = {"model": "red", "messages": [message("What is the colour?", pictures[1])],
                 "max_tokens": 12}  # fmt: skip
        plain = client.chat.completions.create(**asked).choices[0].message.content
        # The answer ends before a stop string, which spans tokens.
        stop = plain[3:6]
        cut = client.chat.completions.create(stop=[stop], **asked).choices[0]
        assert cut.message.content == plain[: plain.index(stop)].rstrip()
        assert cut.finish_reason == "stop"
        # A seed repeats; choices of one request differ; temperature 0 is the likeliest.
        drawn = [
            [c.message.content for c in client.chat.completions.create(
                temperature=1.5, seed=7, n=3, **asked).choices] for _ in range(2)
        ]  # fmt: skip
        assert drawn[0] == drawn[1]
        assert len(set(drawn[0])) > 1
        narrow = client.chat.completions.create(temperature=2, top_p=1e-6, **asked)
        assert narrow.choices[0].message.content == plain
        logprobs = client.chat.completions.create(logprobs=True, top_logprobs=3, **asked)
        content = logprobs.choices[0].logprobs.content
        assert len(content) == logprobs.usage.completion_tokens
        assert all(len(t.top_logprobs) == 3 for t in content)
        assert all(t.logprob == max(a.logprob for a in t.top_logprobs) for t in content)
        system = {"role": "system", "content": "Answer <|end|> briefly."}
        steered = client.chat.completions.create(
            **asked | {"messages": [system, *asked["messages"]]}
        )
        assert steered.usage.prompt_tokens > logprobs.usage.prompt_tokens


def test_adapters_come_and_go(serving, pictures):
    with serving(keys=Keys(["alice", "bob"], "root")) as server:
        body = {"model": "new", "max_tokens": 8, "messages": [message("What?", pictures[0])]}
        assert call(server, "/v1/chat/completions", body, "alice")[0] == 404
        add = {"name": "new", "path": "blue"}
        assert call(server, "/v1/adapters", add, "alice")[0] == 403
        assert call(server, "/v1/adapters", add)[0] == 401
        status, told = call(server, "/v1/adapters", add, "root")
        assert (status, told["id"]) == (200, "new")
        assert call(server, "/v1/adapters", add, "root")[0] == 409
        answers = [
            call(server, "/v1/chat/completions", body | {"model": name}, "bob")[1]["choices"][0]
            for name in ("new", "blue", "red")
        ]
        assert answers[0] == answers[1]
        assert answers[0] != answers[2]
        # Another adapter under the same name does not meet the first one's cached prefixes.
        assert call(server, "/v1/adapters/new", key="root", method="DELETE")[0] == 200
        assert call(server, "/v1/adapters", add | {"path": "red"}, "root")[0] == 200
        again = call(server, "/v1/chat/completions", body, "bob")[1]["choices"][0]
        assert again == answers[2]
        assert call(server, "/v1/adapters/tiny", key="root", method="DELETE")[0] == 400
        for path in (
            "../x",
            "..",
            "/etc",
            "red/../..",
            "\x00",
            "a" * 5000,
            "a" * 4000,
            "red/nothing",
        ):
            status, told = call(server, "/v1/adapters", {"name": "x", "path": path}, "root")
            assert status == 400, path
            assert "etc" not in told["error"]["message"]
        for name in ("../x", "", "a/b", "tiny ", "x" * 65, ".x", "a\nb"):
            status, _ = call(server, "/v1/adapters", {"name": name, "path": "red"}, "root")
            assert status == 400, name
        assert len(server.pair.model.task_adapters) == 3


def test_links_out_of_the_allowed_folder_are_not_followed(serving, save_adapters, tmp_path):
    with serving(keys=Keys([], "root")) as server:
        (tmp_path / "outside").mkdir()
        server.folders["red"].rename(tmp_path / "outside" / "red")
        (tmp_path / "adapters" / "link").symlink_to(tmp_path / "outside" / "red")
        status, _ = call(server, "/v1/adapters", {"name": "x", "path": "link"}, "root")
        assert status == 400


def test_attention_is_shares_of_the_picture(serving, pictures):
    with serving() as server:
        body = {"image_url": data_url(pictures[0]), "question": "What is the colour?"}
        status, told = call(server, "/v1/attention", body | {"per_query": True})
        assert status == 200
        grid, queries = torch.tensor(told["grid"]), torch.tensor(told["queries"])
        assert grid.shape == (2, 2)  # 28 pixels, patches of 14
        assert queries.shape == (3, 2, 2)
        assert float(grid.sum()) == pytest.approx(1, abs=1e-5)  # rounding of the JSON's floats
        assert torch.allclose(queries.mean(0), grid, atol=1e-6)
        other = body | {"question": "Is there a star?"}
        assert call(server, "/v1/attention", other)[1]["grid"] != told["grid"]  # it reads along


def test_answers_of_one_length_for_load_tests(serving):
    with serving() as server:
        server.pair.processor.end_ids.extend(range(len(server.pair.processor.tokenizer)))
        body = {"model": "red", "max_tokens": 7, "messages": [message("What?")]}
        ended = call(server, "/v1/chat/completions", body)[1]
        assert ended["usage"]["completion_tokens"] == 0
        whole = call(server, "/v1/chat/completions", body | {"ignore_eos": True})[1]
        assert whole["usage"]["completion_tokens"] == 7


def test_state_and_metrics(serving, pictures):
    with serving(keys=Keys(["alice"], "root")) as server:
        assert call(server, "/health") == (200, {"status": "ok"})
        assert call(server, "/ready") == (200, {"ready": True})
        body = {"model": "red", "max_tokens": 4, "messages": [message("What?", pictures[0])]}
        for _ in range(2):
            assert call(server, "/v1/chat/completions", body, "alice")[0] == 200
        assert call(server, "/v1/chat/completions", body, "mallory")[0] == 401

        def metrics(key=None):
            request = urllib.request.Request(server.url + "/metrics")
            if key:
                request.add_header("Authorization", f"Bearer {key}")
            text = urllib.request.urlopen(request).read().decode()
            lines = (x.rsplit(" ", 1) for x in text.splitlines() if not x.startswith("#"))
            return text, {k: float(v) for k, v in lines}

        for key in (None, "alice"):  # what is cached would tell what others have asked
            assert not any("cache" in name for name in metrics(key)[1])
        text, values = metrics("root")
        route = 'route="/v1/chat/completions"'
        assert values[f'crome_requests_total{{{route},status="200"}}'] == 2
        assert values['crome_requests_total{route="other",status="401"}'] == 1
        assert values["crome_generated_tokens_total"] > 0
        assert values["crome_prefix_cache_hits"] == 1
        assert values["crome_feature_cache_hits"] == 1
        assert values["crome_inter_token_seconds_count"] > 0
        assert values["crome_resident_memory_bytes"] > 1e7
        assert values["crome_adapters"] == 2
        assert "alice" not in text


def test_stopping_finishes_answers_and_refuses_new_ones(serving, pictures):
    with serving(limits=Limits(max_new_tokens=150)) as server:
        body = {"model": "red", "messages": [message("What?", pictures[0])]}
        length, outcome = len(server.pair.processor.end_ids), []
        assert length
        server.pair.processor.end_ids.clear()  # answers then have their full length
        thread = threading.Thread(
            target=lambda: outcome.append(call(server, "/v1/chat/completions", body))
        )
        thread.start()
        while not server.service.engine.running:
            pass
        server.service.draining = True
        status, told = call(server, "/v1/chat/completions", body)
        assert (status, told["error"]["code"]) == (503, "shutting_down")
        assert call(server, "/ready")[0] == 503
        server.server.should_exit = True
        thread.join(60)
        assert outcome[0][0] == 200
        assert outcome[0][1]["usage"]["completion_tokens"] == 150


def test_lengths_are_honoured_or_refused(serving, pictures):
    """Beyond the server's own default, up to what the language model takes; never cut silently."""
    with serving(limits=Limits(max_new_tokens=5)) as server:
        client = client_of(server)
        server.pair.processor.end_ids.clear()
        turn = [message("What?", pictures[0])]

        def length(**asked):
            whole = client.chat.completions.create(model="red", messages=turn, **asked)
            return whole.usage.completion_tokens

        assert length() == 5
        assert length(max_tokens=30) == 30
        assert length(max_completion_tokens=7, max_tokens=30) == 7
        with pytest.raises(openai.BadRequestError, match="256 tokens together") as caught:
            length(max_tokens=250)
        assert caught.value.body["param"] == "max_tokens"
        assert caught.value.code == "context_length_exceeded"
        with pytest.raises(openai.BadRequestError) as caught:
            length(max_completion_tokens=250)
        assert caught.value.body["param"] == "max_completion_tokens"
        assert [m.max_model_len for m in client.models.list()] == [256] * 3


def test_choices_differ_unless_they_are_told_not_to(serving):
    with serving() as server:
        client = client_of(server)

        def texts(**asked):
            turn = [message("What is the colour?")]
            asked = {"model": "red", "max_tokens": 12, "n": 3, "messages": turn} | asked
            return [c.message.content for c in client.chat.completions.create(**asked).choices]

        assert len(set(texts())) > 1
        assert len(set(texts(temperature=0))) == 1
        likeliest = texts(n=1)
        assert texts(n=1, temperature=1.5, top_p=0) == likeliest
        for more in ({"top_k": 1}, {"min_p": 1.0}):
            assert texts(n=1, temperature=1.5, extra_body=more) == likeliest


def test_a_models_own_settings_are_obeyed_as_by_generate(serving, pictures):
    """Penalties and suppressed tokens of its `generation_config`, and a client's in their place."""
    with serving() as server:
        pass
    pair = server.pair
    config = pair.model.language_model.generation_config
    row = Row((pictures[0],), "What is the colour?", "", "")
    free = answer(pair.model, pair.processor, [row], max_new_tokens=12)[0]
    config.repetition_penalty, config.no_repeat_ngram_size = 1.8, 2
    config.suppress_tokens = pair.processor.tokenizer(free[:4])["input_ids"][:1]
    expected = answer(pair.model, pair.processor, [row], max_new_tokens=12)[0]
    assert expected != free
    with serving(pair) as server:
        client = client_of(server)
        asked = {"model": "tiny", "max_tokens": 12,
                 "messages": [message(row.question, pictures[0])]}  # fmt: skip
        whole = client.chat.completions.create(**asked)
        assert whole.choices[0].message.content == expected
        other = client.chat.completions.create(**asked, extra_body={"repetition_penalty": 1.0})
        assert other.choices[0].message.content != expected


def test_logprobs_of_half_characters(serving):
    """Bytes of all tokens together are the text, whatever characters they cut."""
    with serving() as server:
        client = client_of(server)
        forced = server.pair.processor.tokenizer(" né🙂 x", add_special_tokens=False)["input_ids"]
        forcing(server.pair, forced)
        chat = client.chat.completions.create(
            model="tiny", messages=[message("x")], logprobs=True, max_tokens=len(forced)
        ).choices[0]
        entries = chat.logprobs.content
        assert bytes(b for e in entries for b in e.bytes).decode() == " né🙂 x"
        assert len(entries) == len(forced)
        assert "bytes:\\xf0" in [e.token for e in entries]
        forcing(server.pair, forced)
        text = client.completions.create(
            model="tiny", prompt="x", logprobs=0, max_tokens=len(forced)
        ).choices[0]
        assert text.text == " né🙂 x"
        offsets = dict(zip(text.logprobs.tokens, text.logprobs.text_offset, strict=True))
        assert offsets["bytes:\\xf0"] == 3
        assert text.logprobs.text_offset == sorted(text.logprobs.text_offset)


def forcing(pair, ids):
    """Makes the language model say these tokens."""
    left, head = list(ids), pair.model.language_model.lm_head

    def force(_, __, output):
        output = torch.full_like(output, -5.0)
        output[..., left.pop(0) if left else 2] = 5.0
        return output

    head._forward_hooks.clear()
    head.register_forward_hook(force)


def test_errors_say_which_picture(serving, pictures):
    with serving() as server:
        good, bad = ({"type": "image_url", "image_url": {"url": url}}
                     for url in (data_url(pictures[0]), "data:image/png;base64,AAAA"))  # fmt: skip
        words = {"type": "text", "text": "x"}
        body = {"model": "tiny", "messages": [{"role": "user", "content": [good, words, bad]}]}
        status, told = call(server, "/v1/chat/completions", body)
        assert (status, told["error"]["param"]) == (400, "messages[0].content[2].image_url")
        assert "PNG" in told["error"]["message"]
        body = {"model": "tiny", "prompt": "x", "image_url": "data:x"}
        assert call(server, "/v1/completions", body)[1]["error"]["param"] == "image_url"
        body["image_url"] = data_url(pictures[0])
        long = call(server, "/v1/completions", body | {"prompt": "word " * 90})[1]["error"]
        assert (long["code"], long["param"]) == ("context_length_exceeded", "prompt")


def test_an_adapter_that_is_no_number_is_refused(serving, pictures):
    with serving(keys=Keys([], "root")) as server:
        file = server.folders["red"] / "adapter_model.safetensors"
        from safetensors.torch import load_file, save_file

        weights = load_file(file)
        weights[next(iter(weights))].view(-1)[3] = float("nan")
        save_file(weights, file)
        status, told = call(server, "/v1/adapters", {"name": "x", "path": "red"}, "root")
        assert status == 400
        assert "not finite" in told["error"]["message"]


def test_shapes_of_conversations_are_answered(serving, pictures):
    """Those of which `test_conversation.py` says what becomes of them, through the whole server."""
    with serving() as server:
        image = message("", pictures[0])["content"][:1]
        for turns in (
            [("system", "a"), ("system", "b"), ("user", "x")], [("user", "x"), ("user", "y")],
            [("assistant", "hello"), ("user", "x")], [("system", "Give a title.")],
            [("user", image)], [("user", "x"), ("assistant", "The")],
        ):  # fmt: skip
            body = {"model": "red", "max_tokens": 3,
                    "messages": [{"role": r, "content": c} for r, c in turns]}  # fmt: skip
            assert call(server, "/v1/chat/completions", body)[0] == 200, turns
        # What was begun stands at the end of the prompt.
        asked = {"model": "red", "max_tokens": 3, "messages": [message("What is the colour?")]}
        begun = asked["messages"] + [{"role": "assistant", "content": "The large"}]
        prompts = [
            call(server, "/v1/chat/completions", asked | {"messages": turns})[1]["usage"]
            for turns in (asked["messages"], begun)
        ]
        more = len(server.pair.processor.tokenizer("The large")["input_ids"])
        assert prompts[1]["prompt_tokens"] == prompts[0]["prompt_tokens"] + more
