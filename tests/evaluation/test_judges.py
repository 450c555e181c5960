import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from crome.errors import InputError, JobError
from crome.evaluation import judges, verdicts
from crome.evaluation.judges import ChatServer
from crome.evaluation.predictions import Prediction
from crome.evaluation.tasks.mm_vet import MM_VET
from crome.evaluation.verdicts import VerdictStore, judge_all

JUDGED = MM_VET.judged
assert JUDGED is not None
MESSAGES = [{"role": "user", "content": "Grade it."}]
RECORDS = [
    {"id": str(k), "question": "q", "answer": "a", "capabilities": ("rec",)} for k in range(3)
]
PREDICTIONS = {str(k): Prediction(str(k), response=f"answer {k}") for k in range(3)}


def completion(text: str | None) -> tuple[int, dict[str, str], bytes]:
    return 200, {}, json.dumps({"choices": [{"message": {"content": text}}]}).encode()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., list[Any]]]:
    """A chat server on the loop-back address that gives the scripted answers in order."""
    script: list[tuple[int, dict[str, str], bytes]] = []
    seen: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            seen.append((self.path, self.headers.get("Authorization"), json.loads(body)))
            status, headers, content = script.pop(0)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *arguments: Any) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setenv(judges.URL_VARIABLE, f"http://127.0.0.1:{http.server_port}/v1/")
    monkeypatch.setenv(judges.KEY_VARIABLE, "secret")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")

    def answers(*replies: tuple[int, dict[str, str], bytes]) -> list[Any]:
        script[:] = replies
        return seen

    yield answers
    http.shutdown()
    http.server_close()


def test_chat_server_sends_the_usual_request(server: Callable[..., list[Any]]) -> None:
    seen = server(completion("0.5"))
    assert ChatServer("judge-7b")(MESSAGES, temperature=0.2, max_tokens=3) == "0.5"
    assert seen == [
        (
            "/v1/chat/completions",
            "Bearer secret",
            {"model": "judge-7b", "messages": MESSAGES, "temperature": 0.2, "max_tokens": 3},
        )
    ]


def test_rate_limits_and_server_errors_are_waited_out(server: Callable[..., list[Any]]) -> None:
    soon = {"Retry-After-Ms": "1"}
    seen = server((429, soon, b"slow down"), (503, soon, b""), (500, soon, b""), completion("1.0"))
    assert ChatServer("j")(MESSAGES, temperature=0, max_tokens=3) == "1.0"
    assert len(seen) == 4


def test_a_server_that_stays_down_is_a_failed_job(server: Callable[..., list[Any]]) -> None:
    seen = server(*[(503, {"Retry-After-Ms": "1"}, b"busy")] * 3)
    with pytest.raises(JobError, match="no reply in 3 attempts; HTTP 503: busy"):
        ChatServer("j", retries=2)(MESSAGES, temperature=0, max_tokens=3)
    assert len(seen) == 3


def test_an_unreachable_server_is_a_failed_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(judges.URL_VARIABLE, "http://127.0.0.1:9/v1")  # the discard port: closed
    with pytest.raises(JobError, match="no reply in 1 attempts"):
        ChatServer("j", retries=0)(MESSAGES, temperature=0, max_tokens=3)


def test_settings_that_newer_models_refuse_are_changed_and_told(
    server: Callable[..., list[Any]],
) -> None:
    def refusal(text: str) -> tuple[int, dict[str, str], bytes]:
        return 400, {}, json.dumps({"error": {"message": text}}).encode()

    seen = server(
        refusal("Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."),
        refusal("Unsupported value: 'temperature' does not support 0 with this model."),
        completion("1.0"),
        completion("0.5"),
    )
    judge = ChatServer("o9")
    assert judge(MESSAGES, temperature=0, max_tokens=3) == "1.0"
    assert judge(MESSAGES, temperature=0, max_tokens=3) == "0.5"  # without asking in vain again
    sent = [body.keys() - {"model", "messages"} for _, _, body in seen]
    assert sent == [
        {"temperature", "max_tokens"}, {"temperature", "max_completion_tokens"},
        {"max_completion_tokens"}, {"max_completion_tokens"},
    ]  # fmt: skip
    assert set(judge.departures) == {"max_tokens", "temperature"}


@pytest.mark.parametrize(("status", "kind"), [(401, JobError), (400, judges.JudgeRefusedError)])
def test_refusals_are_not_repeated(
    server: Callable[..., list[Any]], status: int, kind: type[JobError]
) -> None:
    seen = server((status, {}, b"no"))
    with pytest.raises(kind, match=f"HTTP {status}: no"):
        ChatServer("j")(MESSAGES, temperature=0, max_tokens=3)
    assert len(seen) == 1


@pytest.mark.parametrize("body", [b"<html>", b"{}", b'{"choices": []}', b"[]"])
def test_something_else_than_a_completion_is_a_failed_job(
    server: Callable[..., list[Any]], body: bytes
) -> None:
    server((200, {}, body))
    with pytest.raises(JobError, match="sent no chat completion"):
        ChatServer("j")(MESSAGES, temperature=0, max_tokens=3)


def test_an_empty_completion_is_an_empty_reply(server: Callable[..., list[Any]]) -> None:
    server(completion(None))
    assert ChatServer("j")(MESSAGES, temperature=0, max_tokens=3) == ""


@pytest.mark.parametrize("address", ["", "localhost:8000"])
def test_the_address_must_be_set(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv(judges.URL_VARIABLE, address)
    with pytest.raises(InputError, match=r"CROME_JUDGE_URL is '.*': set it to the base address"):
        ChatServer("j")


class Scripted:
    """A judge that answers by a function of the message and counts its calls."""

    name = "scripted"

    def __init__(self, answer: Callable[[str], str]) -> None:
        self.answer = answer
        self.calls: list[float] = []

    def __call__(
        self, messages: list[dict[str, str]], *, temperature: float, max_tokens: int
    ) -> str:
        self.calls.append(temperature)
        return self.answer(messages[-1]["content"])


def run(judge: Any, path: Path, runs: int = 1) -> VerdictStore:
    store = VerdictStore(path, judge.name, "crome-1")
    judge_all(JUDGED, RECORDS, PREDICTIONS, judge, store, runs=runs)
    return store


def test_nonsense_is_asked_again_warmer_and_stays_missing(tmp_path: Path) -> None:
    path = tmp_path / "verdicts.jsonl"
    judge = Scripted(lambda text: "no idea" if "answer 1" in text else "0.5")
    store = run(judge, path)
    assert judge.calls == [0, 0, 0.5, 1, 1.5, 2, 0]  # five attempts on the second response
    assert store.runs(PREDICTIONS, 1) == [{"0": 0.5, "2": 0.5}]
    assert [row["verdict"] for row in verdicts.read_store(path)] == [0.5, None, 0.5]
    assert verdicts.read_store(path)[1]["reply"] == "no idea"
    told = {"0": "0.5", "1": "no idea", "2": "0.5"}
    assert store.replies(PREDICTIONS, 1) == told


def test_a_second_run_asks_only_for_what_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "verdicts.jsonl"
    run(Scripted(lambda text: "no idea" if "answer 1" in text else "0.5"), path)
    again = Scripted(lambda text: "0.9")
    store = run(again, path)
    assert len(again.calls) == 1
    assert store.replies(PREDICTIONS, 1)["1"] == "0.9"
    assert store.runs(PREDICTIONS, 1) == [{"0": 0.5, "1": 0.9, "2": 0.5}]
    more = Scripted(lambda text: "0.1")
    assert run(more, path, runs=2).runs(PREDICTIONS, 2)[1] == dict.fromkeys("012", 0.1)
    assert len(more.calls) == 3


def test_verdicts_are_asked_for_together_and_departures_kept(tmp_path: Path) -> None:
    together = threading.Barrier(3, timeout=10)

    def waits_for_the_others(text: str) -> str:
        together.wait()
        return "<think>0.1? No.</think>\n0.5"

    judge: Any = Scripted(waits_for_the_others)
    judge.workers, judge.departures = 3, {"temperature": "it takes none"}
    store = run(judge, tmp_path / "verdicts.jsonl")
    assert store.runs(PREDICTIONS, 1) == [dict.fromkeys("012", 0.5)]
    assert VerdictStore(store.path, "scripted", "crome-1").departures() == ["it takes none"]


def test_a_crash_loses_at_most_the_verdict_under_way(tmp_path: Path) -> None:
    path = tmp_path / "verdicts.jsonl"

    def dies_on_the_third(text: str) -> str:
        if "answer 2" in text:
            raise JobError("gone")
        return "0.5"

    with pytest.raises(JobError, match=r"gone\. 2 of 3 verdicts .*verdicts\.jsonl, and"):
        run(Scripted(dies_on_the_third), path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])  # killed while the second line was written
    resumed = Scripted(lambda text: "0.5")
    run(resumed, path)
    assert len(resumed.calls) == 2
    assert len(verdicts.read_store(path)) == 3


def test_verdicts_belong_to_response_judge_and_wording(tmp_path: Path) -> None:
    path = tmp_path / "verdicts.jsonl"
    store = run(Scripted(lambda text: "0.5"), path)
    other = Prediction("0", response="another answer")
    assert store.get(PREDICTIONS["0"], 1) == 0.5
    assert store.get(other, 1) is None
    assert VerdictStore(path, "another judge", "crome-1").get(PREDICTIONS["0"], 1) is None
    assert VerdictStore(path, "scripted", "official").get(PREDICTIONS["0"], 1) is None


def test_single_refusals_are_missing_many_in_a_row_stop_the_job(tmp_path: Path) -> None:
    def refuses(part: str) -> Callable[[str], str]:
        def answer(text: str) -> str:
            if part in text:
                raise judges.JudgeRefusedError("HTTP 400: filtered")
            return "0.5"

        return answer

    store = run(Scripted(refuses("answer 1")), tmp_path / "one.jsonl")
    assert store.runs(PREDICTIONS, 1) == [{"0": 0.5, "2": 0.5}]
    with pytest.raises(judges.JudgeRefusedError):
        run(Scripted(refuses("answer")), tmp_path / "all.jsonl", runs=2)


def test_one_percent_may_be_missing() -> None:
    ids = [str(k) for k in range(200)]
    run_ = dict.fromkeys(ids[2:], 0.5)
    assert verdicts.require_verdicts(ids, [run_]) == 2
    del run_["2"]
    with pytest.raises(InputError, match=r"3 of 200 verdicts are missing \(0 \(run 1\), 1 \(run 1"):
        verdicts.require_verdicts(ids, [run_])
    with pytest.raises(InputError, match=r"only for these\. To 1 it said 'I like it'\."):
        verdicts.require_verdicts(ids, [run_], {"1": "I like it", "5": "0.5"})
    with pytest.raises(InputError, match="no run was found"):
        verdicts.require_verdicts(ids, [])


@pytest.mark.parametrize("bad", [{"run": "1"}, {"run": 1.5}, {"judge": {}}, {"response": None}])
def test_a_verdict_with_a_wrong_field_is_named(tmp_path: Path, bad: dict[str, Any]) -> None:
    row = {"id": 1, "run": 1, "judge": "j", "prompt_version": "p", "response": "", "verdict": 1}
    path = tmp_path / "verdicts.jsonl"
    path.write_text(json.dumps(row) + "\n" + json.dumps(row | bad) + "\n")
    with pytest.raises(InputError, match=r"verdicts\.jsonl:2: run must be a whole number"):
        VerdictStore(path, "j", "p")


def test_a_foreign_file_is_not_a_store(tmp_path: Path) -> None:
    path = tmp_path / "verdicts.jsonl"
    path.write_text('{"id": "1", "score": 1}\n')
    with pytest.raises(InputError, match=r"verdicts\.jsonl:1: expected id, run, judge"):
        VerdictStore(path, "j", "p")
