"""What a hostile or careless client may do: it gets an error in OpenAI's shape, others nothing."""

import http.client
import json
import socket
import threading
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crome.serving.http import run
from crome.serving.http.gate import Keys
from crome.serving.service import Limits

from .test_app import call, client_of, data_url, message, openai
from .test_pictures import HOSTILE, url_of

KINDS = {"invalid_request_error", "authentication_error", "permission_error", "rate_limit_error",
         "server_error"}  # fmt: skip


def refused(outcome, status):
    """Whether a response is an error in the shape that clients read."""
    error = outcome[1]["error"]
    return (
        outcome[0] == status
        and set(error) == {"message", "type", "param", "code"}
        and error["type"] in KINDS
        and 0 < len(error["message"]) < 2000
    )


def words(text, **more):
    turn = {"role": "user", "content": text}
    return {"model": "tiny", "max_tokens": 2, "messages": [turn]} | more


BAD = {
    "no model": {"messages": [{"role": "user", "content": "x"}]},
    "no messages": {"model": "tiny"},
    "empty messages": words("x", messages=[]),
    "empty text": words(" "),
    "nothing but space": words("x", messages=[{"role": "user", "content": "x"},
                                              {"role": "user", "content": " "},
                                              {"role": "assistant", "content": None}][1:]),
    "a tool's turn": words("x", messages=[{"role": "tool", "content": "x", "tool_call_id": "1"}]),
    "a user without words": words("x", messages=[{"role": "user"}]),
    "much penalty": words("x", frequency_penalty=3),
    "one resolution": words([
        {"type": "image_url", "image_url": {"url": "data:,", "detail": "low"}}]),
    "many keys": words("x", metadata={str(i): 1 for i in range(30_000)}),
    "many marks": b'{"a":[' + b"1," * 4_000_000 + b"1]}",
    "unknown role": words("x", messages=[{"role": "root", "content": "x"}]),
    "unknown field": words("x", temprature=1),
    "tools": words("x", tools=[{"type": "function"}]),
    "next to no penalty": words("x", repetition_penalty=1e-320),
    "negative": words("x", max_tokens=-1),
    "much": words("x", max_tokens=10**9),
    "huge number": words("x", max_tokens=10**400),
    "hot": words("x", temperature=3),
    "text for a number": words("x", temperature="warm"),
    "many": words("x", n=9),
    "seed": words("x", seed=2**70),
    "stops": words("x", stop=["a"] * 5),
    "long stop": words("x", stop="y" * 900_000),
    "true for a number": words("x", max_tokens=True),
    "digits for a number": words("x", n="2"),
    "1 for true": words("x", stream=1),
    "bias": words("x", logit_bias={"5": 1}),
    "alternatives of nothing": words("x", top_logprobs=2),
    "options of no stream": words("x", stream_options={"include_usage": True}),
    "surrogate in a name": words("x", **{"\ud800": 1}),
    "surrogate in a type": words([{"type": "\ud800", "text": "x"}]),
    "deep in what is not read": (
        json.dumps(words("x"))[:-1] + ', "metadata": ' + '{"a":' * 9000 + "1" + "}" * 9001
    ).encode(),
    "long": words("word " * 3000),
    "very long": words("x" * 900_000),
    "too long a field": words("x" * 1_100_000),
    "surrogate": words("\ud800"),
    "part": words([{"type": "audio", "x": 1}]),
    "image in an answer": words("x", messages=[
        {"role": "user", "content": "x"}, message("x") | {"role": "assistant", "content": [
            {"type": "image_url", "image_url": {"url": url_of(b"")}}]},
        {"role": "user", "content": "x"}]),
    "many images": words([{"type": "image_url", "image_url": {"url": "data:,"}}] * 60),
    "address inside": words([{"type": "image_url", "image_url": {"url": "http://127.0.0.1/"}},
                             {"type": "text", "text": "x"}]),
    "file": words([{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}},
                   {"type": "text", "text": "x"}]),
    **{f"image, {name}": words([{"type": "image_url", "image_url": {"url": url_of(data)}},
                                {"type": "text", "text": "x"}]) for name, data in HOSTILE.items()},
    "a list": [1, 2],
    "null": None,
    "deep": b"[" * 100_000,
    "deep object": b'{"a":' * 100_000,
    "half": b'{"model": "ti',
    "not text": b"\xff\xfe\x00",
    "nan": b'{"model": "tiny", "temperature": NaN, "messages": [{"role":"user","content":"x"}]}',
    "empty": b"",
}  # fmt: skip


def test_bad_requests_get_a_4xx_and_the_server_goes_on(serving, pictures):
    with serving() as server:
        good = words("What?") | {"messages": [message("What?", pictures[0])]}
        before = call(server, "/v1/chat/completions", good)
        assert before[0] == 200
        for name, body in BAD.items():
            body = b"null" if body is None else body
            assert refused(call(server, "/v1/chat/completions", body), 400), name
        told = call(server, "/v1/chat/completions", words("x", model="../../etc/passwd"))
        assert refused(told, 404)
        for path, body in {
            "/v1/completions": {"model": "tiny", "prompt": ""},
            "/v1/attention": {"image_url": data_url(pictures[0]), "question": "word " * 200},
            "/v1/classify": {"model": "tiny", "images": []},
            "/v1/adapters": {"name": 1},
        }.items():
            assert refused(call(server, path, body), 400), path
        assert refused(call(server, "/v1/classify", {"model": "x", "images": ["data:,"]}), 404)
        for path in ("/v1/nothing", "/v1/embeddings", "/v1/chat/completions/", "/nothing"):
            for method in ("GET", "POST", "DELETE"):
                assert refused(call(server, path, good, method=method), 404), (method, path)
        for path, allowed in {
            "/v1/chat/completions": "POST", "/v1/models": "GET", "/v1/classifiers": "GET, POST",
            "/": "GET, HEAD",
        }.items():  # fmt: skip
            connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
            connection.request("PATCH", path)
            response = connection.getresponse()
            assert refused((response.status, json.loads(response.read())), 405), path
            assert response.headers["Allow"] == allowed
        assert refused(call(server, "/v1/adapters/tiny", method="DELETE"), 403)
        assert refused(call(server, "/v1/classifiers/x", method="DELETE"), 403)
        text = {"Content-Type": "text/plain"}  # what a foreign page may send without asking
        assert refused(call(server, "/v1/chat/completions", good, headers=text), 400)
        for path in ("/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/..%2f..%2fpyproject.toml",
                     "/%00", "/" + "a" * 3000, "/page.js%00", "/v1/models/a/b"):  # fmt: skip
            assert refused(call(server, path), 404), path
        after = call(server, "/v1/chat/completions", good)
        assert after[1]["choices"] == before[1]["choices"]


def test_keys(serving):
    with serving(keys=Keys(["alice", "bob"], "root")) as server:
        for key in (None, "", "Alice", "alice ", "a" * 5000, "é"):
            headers = {"Authorization": f"Bearer {key}".encode()} if key else {}
            connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
            connection.request("GET", "/v1/models", headers=headers)
            response = connection.getresponse()
            outcome = response.status, json.loads(response.read())
            # HTTP itself leaves out the space behind a header's value.
            assert (key == "alice " and outcome[0] == 200) or refused(outcome, 401), key
        for key in ("alice", "bob", "root"):
            assert call(server, "/v1/models", key=key)[0] == 200
        with pytest.raises(openai.AuthenticationError):
            client_of(server, "wrong").models.list()
        # Without a key not even the body is read.
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
        connection.putrequest("POST", "/v1/chat/completions")
        connection.putheader("Content-Length", "1000000")
        connection.endheaders()
        assert connection.getresponse().status == 401


def test_bodies_are_bounded_in_size_and_time(serving):
    with serving(gate={"max_body": 10_000, "body_seconds": 0.5}) as server:
        assert refused(call(server, "/v1/chat/completions", words("x" * 20_000)), 413)
        chunked = socket.create_connection(("127.0.0.1", server.port), 30)  # declares no length
        chunked.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"4e20\r\n" + b"x" * 20_000 + b"\r\n"
        )
        assert b" 413 " in chunked.recv(100)
        slow = socket.create_connection(("127.0.0.1", server.port), 30)
        slow.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n{"
        )
        assert b" 408 " in slow.recv(100)
        assert call(server, "/health")[0] == 200


def test_bodies_count_together_while_they_arrive(serving):
    with serving(gate={"max_bodies": 10_000, "body_seconds": 20}) as server:
        head = (
            b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Content-Length: 9000\r\n\r\n"
        )
        slow = [socket.create_connection(("127.0.0.1", server.port), 30) for _ in range(2)]
        for connection in slow:
            connection.sendall(head + b"x" * 6000)
        assert b" 503 " in slow[1].recv(100)
        slow[0].sendall(b"x" * 3000)
        assert b" 400 " in slow[0].recv(100)  # nothing is wrong with it but its JSON


def test_what_takes_too_long_gets_an_answer(serving, pictures, monkeypatch):
    with serving(gate={"total_seconds": 0.5}) as server:
        monkeypatch.setattr(server.service.classifiers, "classify", lambda *_: time.sleep(2))
        body = {"model": "x", "images": [data_url(pictures[0])]}
        assert refused(call(server, "/v1/classify", body), 503)


def spoken(port, text):
    """Status and JSON that a server answers to bytes on a connection."""
    with socket.create_connection(("127.0.0.1", port), 30) as connection:
        connection.sendall(text)
        head, _, body = b"".join(iter(lambda: connection.recv(65536), b"")).partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)


def test_what_is_no_http_is_refused_as_everything_else(serving):
    with serving() as server:
        for text in (b"\x16\x03\x01\x02\x00", b"GET /health\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n",
                     b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n"):  # fmt: skip
            assert refused(spoken(server.port, text + b"\r\n\r\n"), 400), text


def test_more_connections_than_allowed_are_told_so(serving):
    with serving(limit_concurrency=1) as server:
        assert refused(spoken(server.port, b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n"), 503)
        # A full server is not a dead one.
        text = b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        assert spoken(server.port, text) == (200, {"status": "ok"})


def test_every_answer_has_a_name(serving):
    """The client's own where it gives one that can be a header."""
    with serving(gate={"max_body": 1000}) as server:
        for name, expected in (("mine-1", "mine-1"), (None, None), ("é", None), ("x" * 500, None)):
            for path, body in (("/v1/models", None), ("/v1/completions", b"{"), ("/no", None),
                               ("/v1/completions", b"x" * 2000)):  # fmt: skip
                connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
                headers = {"X-Request-Id": name.encode()} if name else {}
                connection.request("POST" if body else "GET", path, body, headers)
                response = connection.getresponse()
                found = response.headers["x-request-id"]
                assert found == expected or (expected is None and found.startswith("req_"))


def test_tiny_chunks_of_a_body_hold_up_nobody(serving, monkeypatch):
    """Each costs as much as a large one, so only so much is read from a connection at once."""
    sizes = []
    taken = run.H11Protocol.data_received
    monkeypatch.setattr(
        run.H11Protocol, "data_received",
        lambda self, data: (sizes.append(len(data)), taken(self, data)),
    )  # fmt: skip
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    body = b"".join(b"1\r\n%c\r\n" % byte for byte in b" " * 9000 + b"{}") + b"0\r\n\r\n"
    with serving() as server:
        more = b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
        assert refused(spoken(server.port, head + more + body), 400)
    assert sum(sizes) > len(body)
    assert max(sizes) <= run.READ_BYTES


def test_large_bodies_and_answers_are_worked_on_beside_the_loop(serving, pictures, monkeypatch):
    """All that grows with them: else one of 30 MB keeps everybody from an answer for seconds."""
    from crome.serving.http import answers, body, forms, responses, wire

    seen = {}
    places = {
        "parse": (body, "parse"), "join": (answers, "conversation"),
        "convert": (responses.ResponsesRequest, "chat"), "write": (wire.Reply, "_whole"),
        "encode": (answers, "to_json"), "form": (forms, "parse_form"),
    }  # fmt: skip

    def watched(name, function):
        def call(*args, **kwargs):
            seen[name] = threading.current_thread()
            return function(*args, **kwargs)

        return call

    for name, (owner, attribute) in places.items():
        monkeypatch.setattr(owner, attribute, watched(name, getattr(owner, attribute)))
    with serving() as server:
        assert call(server, "/v1/chat/completions", words("What?"))[0] == 200
        body = {"model": "tiny", "input": "x", "max_output_tokens": 2}
        assert call(server, "/v1/responses", body)[0] == 200
        assert upload(server, "../x", None, pictures) == 400
        assert set(seen) == set(places)
        assert server.thread not in seen.values()


def test_forms_that_are_none(serving, monkeypatch):
    def opening(name, labels, images, tenant, method, opened):
        return [opened(image) for image in images]

    def told(kind, *parts):
        body = b"".join(
            b"--X\r\nContent-Disposition: form-data; " + part + b"\r\n" for part in parts
        )
        headers = {"Content-Type": kind}
        return call(server, "/v1/classifiers", body + b"--X--\r\n", headers=headers)

    form = "multipart/form-data; boundary=X"
    name, label = b'name="name"\r\n\r\nx', b'name="labels"\r\n\r\na'
    broken = b'name="images"; filename="a.zip"\r\n\r\nPK'
    with serving() as server:
        monkeypatch.setattr(server.service.classifiers, "fit", opening)
        for kind, parts, param in (
            ("application/x-www-form-urlencoded", [name], None), ("application/json", [], None),
            ("multipart/form-data", [name], None), (form, [], "name"),
            (form + "; charset=undefined", [name], None), (form, [name, label], "images"),
            (form, [name, label, b'name="images"\r\n\r\ntext'], "images[0]"),
            (form, [name, label, broken, b'name="labels"\r\n\r\nb', broken], "images[0]"),
            (form, [name, label, b'name="lables"\r\n\r\nb', broken], "lables"),
            (form, [name] * 1001, None),
        ):  # fmt: skip
            status, error = told(kind, *parts)
            assert (status, error["error"]["param"]) == (400, param), (kind, parts[:4], error)


def test_a_probe_may_ask_for_the_head_alone(serving):
    with serving() as server:
        for path in ("/health", "/ready", "/"):
            connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
            connection.request("HEAD", path)
            assert connection.getresponse().status == 200


def test_headers_are_bounded_however_they_arrive(serving):
    with serving() as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
        connection.request("GET", "/health", headers={f"X-{i}": "a" * 1000 for i in range(60)})
        response = connection.getresponse()
        assert refused((response.status, json.loads(response.read())), 431)


def test_a_client_that_has_closed_its_side_is_answered(serving):
    with serving() as server:
        body = json.dumps(words("What?", max_tokens=40, ignore_eos=True)).encode()
        head = (
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            + f"Content-Length: {len(body)}\r\n\r\n".encode()
        )
        with socket.create_connection(("127.0.0.1", server.port), 30) as connection:
            connection.sendall(head + body)
            connection.shutdown(socket.SHUT_WR)
            text = b"".join(iter(lambda: connection.recv(65536), b""))
        *interim, last = text.split(b"HTTP/1.1 ")[1:]
        assert all(part.startswith(b"100 ") for part in interim)
        assert last.startswith(b"200 ")
        assert b"chat.completion" in last


def test_a_body_that_is_too_large_is_told_so_while_it_is_sent(serving):
    with serving(gate={"max_body": 100_000}) as server:
        outcome = call(server, "/v1/chat/completions", b"x" * 700_000)
        assert refused(outcome, 413)


def test_other_pages_may_ask_only_where_the_server_says_so(serving):
    def headers(server, method, **more):
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
        connection.request(method, "/v1/models", headers={"Origin": "https://a.example"} | more)
        response = connection.getresponse()
        response.read()
        return response.status, response.headers["access-control-allow-origin"]

    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-a"}
    with serving(keys=Keys(["alice"]), app={"allow_origins": ["https://a.example"]}) as server:
        assert headers(server, "OPTIONS", **asked) == (200, "https://a.example")
        key = {"Authorization": "Bearer alice"}
        assert headers(server, "GET", **key) == (200, "https://a.example")
    with serving() as server:
        assert headers(server, "GET") == (200, None)


def test_header_floods_and_silent_connections(serving, monkeypatch):
    monkeypatch.setattr(run, "HEADER_SECONDS", 0.5)
    with serving() as server:
        flood = socket.create_connection(("127.0.0.1", server.port), 30)
        flood.sendall(b"GET /health HTTP/1.1\r\n" + b"X-A: " + b"a" * 200_000)
        assert b" 431 " in flood.recv(100)
        silent = [socket.create_connection(("127.0.0.1", server.port), 30) for _ in range(20)]
        for connection in silent[:10]:
            connection.sendall(b"GET /health HTTP/1.1\r\nX-Slow: ")
        assert all(connection.recv(10) == b"" for connection in silent)
        second = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
        second.request("GET", "/health")
        assert second.getresponse().read()
        second.sock.sendall(b"GET /health HTTP/1.1\r\nX-Slow: ")
        assert second.sock.recv(10) == b""
        assert call(server, "/health")[0] == 200


def test_backpressure(serving, pictures):
    """Beyond batch and queue: 429 with a time to come back; a late answer: 503."""
    limits = Limits(max_queue=2, max_new_tokens=10_000, max_length=10_000, timeout=4)
    with serving(engine={"max_batch": 1}, limits=limits) as server:
        server.service.limits = limits  # beyond what the tiny model was made for
        server.pair.processor.end_ids.clear()
        outcomes, body = [], words("What?", max_tokens=9000)
        client = client_of(server)  # made before the time of the requests runs
        threads = [
            threading.Thread(
                target=lambda: outcomes.append(call(server, "/v1/chat/completions", body))
            )
            for _ in range(3)
        ]
        for thread in threads:
            thread.start()
        while server.service.taken < 3:
            time.sleep(0.001)
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
        headers = {"Content-Type": "application/json"}
        connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
        response = connection.getresponse()
        assert refused((response.status, json.loads(response.read())), 429)
        assert 1 <= int(response.headers["Retry-After"]) <= 60
        with pytest.raises(openai.RateLimitError):
            client.chat.completions.create(**body)
        for thread in threads:
            thread.join(30)
        assert all(refused(outcome, 503) for outcome in outcomes)
        assert {told["error"]["code"] for _, told in outcomes} == {"timeout"}
        assert server.service.taken == 0
        assert call(server, "/v1/chat/completions", words("What?"))[0] == 200


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_stops_the_work(serving, stream):
    limits = Limits(max_new_tokens=100_000, max_length=200_000)
    with serving(limits=limits) as server:
        server.service.limits = limits
        server.pair.processor.end_ids.clear()
        body = json.dumps(words("What?", max_tokens=90_000, stream=stream)).encode()
        leaving = socket.create_connection(("127.0.0.1", server.port), 30)
        leaving.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            + f"Content-Length: {len(body)}\r\n\r\n".encode() + body
        )  # fmt: skip
        while not server.service.engine.running:
            time.sleep(0.001)
        if stream:
            assert b"200 OK" in leaving.recv(4000)
        leaving.close()
        deadline = time.monotonic() + 20
        while server.service.engine.running or server.service.taken:
            assert time.monotonic() < deadline, "the work went on"
            time.sleep(0.01)


def test_tenants_do_not_see_each_other(serving, pictures, monkeypatch):
    """Neither classifiers, nor by a quicker answer that a picture was asked about before."""
    with serving(keys=Keys(["alice", "bob"], "root")) as server:
        classifiers = server.service.classifiers
        monkeypatch.setattr(
            classifiers, "fit",
            lambda name, labels, *args: classifiers._keep(fitted(name, labels, args[1])),
        )  # fmt: skip
        assert upload(server, "mine", "alice", pictures) == 200
        ids = [[c["id"] for c in call(server, "/v1/classifiers", key=k)[1]["data"]]
               for k in ("alice", "bob")]  # fmt: skip
        assert ids == [["mine"], []]
        body = {"model": "mine", "images": [data_url(pictures[0])]}
        assert refused(call(server, "/v1/classify", body, "bob"), 404)
        asked = words("What?") | {"messages": [message("What?", pictures[0])]}
        cached = [
            call(server, "/v1/chat/completions", asked, key)[1]["usage"]["prompt_tokens_details"]
            for key in ("alice", "bob", "alice")
        ]
        assert [c["cached_tokens"] > 0 for c in cached] == [False, False, True]
        assert call(server, "/v1/classifiers/mine", key="bob", method="DELETE")[0] == 403
        assert call(server, "/v1/classifiers/mine", key="alice", method="DELETE")[0] == 200
        assert upload(server, "mine", "alice", pictures) == 200
        assert call(server, "/v1/classifiers/mine", key="root", method="DELETE")[0] == 200
        assert refused(call(server, "/v1/classifiers/mine", key="root", method="DELETE"), 404)


def fitted(name, labels, tenant):
    from crome.serving.classifiers import Classifier

    return Classifier(name, None, sorted(set(labels)), "bridge", None, {}, tenant)


def upload(server, name, key, pictures, labels=("a", "b")):
    """Sends a multipart form; returns the status."""
    from .test_pictures import encoded

    mark, parts = "mark", [f'name="name"\r\n\r\n{name}'.encode()]
    parts += [f'name="labels"\r\n\r\n{label}'.encode() for label in labels]
    parts += [b'name="images"; filename="../../x.png"\r\n\r\n' + encoded() for _ in labels]
    body = b"".join(
        f"--{mark}\r\nContent-Disposition: form-data; ".encode() + part + b"\r\n" for part in parts
    )
    body += f"--{mark}--\r\n".encode()
    headers = {"Content-Type": f"multipart/form-data; boundary={mark}"}
    return call(server, "/v1/classifiers", body, key, headers=headers)[0]


# ---------------------------------------------------------------------- fuzzing

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)  # fmt: skip


def of_schema(schema, defs):
    """Values of a JSON schema, and now and then others."""
    if "$ref" in schema:
        return of_schema(defs[schema["$ref"].rsplit("/", 1)[1]], defs)
    for several in ("anyOf", "oneOf"):
        if several in schema:
            return st.one_of(*(of_schema(s, defs) for s in schema[several]))
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    if "const" in schema:
        return st.just(schema["const"])
    kind = schema.get("type")
    if kind == "object" and "properties" in schema:
        required = set(schema.get("required", ()))
        fields = {k: of_schema(v, defs) for k, v in schema["properties"].items()}
        return st.fixed_dictionaries(
            {k: v for k, v in fields.items() if k in required},
            optional={k: v for k, v in fields.items() if k not in required},
        )
    plain = {
        "array": lambda: st.lists(of_schema(schema.get("items", {}), defs), max_size=3),
        "string": lambda: st.sampled_from(["tiny", "red", "", "What?"]) | st.text(max_size=30),
        "integer": lambda: st.integers(1, 3) | st.integers(),
        "number": lambda: st.floats(0, 2) | st.floats(),
        "boolean": st.booleans,
        "null": st.none,
    }
    return plain.get(kind, lambda: JSON)()


def test_fuzz_the_apps_own_schema(serving):
    """Requests made from the schema, and JSON that is not: never a 5xx, always JSON or events."""
    with serving() as server:
        _, schema = call(server, "/openapi.json")
        defs = schema["components"]["schemas"]
        targets = []
        for path, route in schema["paths"].items():
            content = route.get("post", {}).get("requestBody", {}).get("content", {})
            if "application/json" in content:
                targets.append((path, of_schema(content["application/json"]["schema"], defs)))
        assert len(targets) == 6
        statuses = set()

        @settings(
            max_examples=60, deadline=None, derandomize=True, database=None,
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        @given(st.sampled_from(targets).flatmap(
            lambda t: st.tuples(st.just(t[0]), t[1] | JSON)))  # fmt: skip
        def fuzz(case):
            path, body = case
            if isinstance(body, dict):
                body = body | {"stream": False} if "stream" in body else body
            outcome = call(server, path, json.dumps(body).encode())
            statuses.add(outcome[0])
            assert outcome[0] == 200 or refused(outcome, outcome[0])
            assert outcome[0] < 500

        fuzz()
        assert {400, 404} <= statuses
        assert call(server, "/health")[0] == 200
