"""Judges: one interface, a client, a player of recorded replies, and a store of verdicts.

A judge is anything callable as `judge(messages, temperature=…, max_tokens=…) -> str` with a `name`.
What it says is read by the task; a reply without a verdict is asked for again, and a verdict that
never comes is missing. Nothing is ever scored in its place.
"""

import hashlib
import http.client
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

from crome.errors import InputError, JobError
from crome.evaluation.predictions import Prediction, drop_cut_line, named
from crome.evaluation.sources import need, parse_json, read_rows
from crome.evaluation.task import Answer, Judged, Messages, Record

URL_VARIABLE = "CROME_JUDGE_URL"
KEY_VARIABLE = "CROME_JUDGE_KEY"
MOST_MISSING = 0.01  # of the verdicts; more is an error
PASSING_STATUS = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
REFUSED_STATUS = frozenset({400, 413, 422})  # this one request: too long, or filtered
MOST_REFUSALS = 5  # in a row; more means that the request form is what the server dislikes


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
    """A judge behind any server that speaks the OpenAI chat protocol.

    The base address (up to and including `/v1`) is taken from the environment variable
    CROME_JUDGE_URL, the key, where the server wants one, from CROME_JUDGE_KEY.

    Args:
        model: The name the server knows the model by.
        retries: How often a call that timed out, hit a rate limit or a server error is repeated.
        timeout: Of one call, in seconds.
        first_wait: Seconds before the first repetition; each further wait is twice as long. A wait
            that the server asks for takes its place, up to `longest_wait`.
        longest_wait: No wait is longer, in seconds.
        sleep: Called to wait.

    Raises:
        InputError: CROME_JUDGE_URL is not set.
    """

    def __init__(
        self,
        model: str,
        *,
        retries: int = 6,
        timeout: float = 120.0,
        first_wait: float = 1.0,
        longest_wait: float = 60.0,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        base = os.environ.get(URL_VARIABLE, "").rstrip("/")
        if not base.startswith(("http://", "https://")):
            raise InputError(
                f"{URL_VARIABLE} is {base!r}: set it to the base address of an OpenAI-compatible "
                f"server, such as http://localhost:8000/v1, and {KEY_VARIABLE} to its key."
            )
        self.name = model
        self._url = f"{base}/chat/completions"
        self._retries, self._timeout = retries, timeout
        self._first_wait, self._longest_wait, self._sleep = first_wait, longest_wait, sleep

    def __call__(self, messages: Messages, *, temperature: float, max_tokens: int) -> str:
        """Returns the reply's text.

        Raises:
            JobError: The server refused, stayed unreachable, or sent something else.
        """
        body = {
            "model": self.name,
            "messages": messages,
            "temperature": temperature,
            "max_tokens": max_tokens,
        }
        request = urllib.request.Request(
            self._url, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        if key := os.environ.get(KEY_VARIABLE):
            request.add_header("Authorization", f"Bearer {key}")
        for attempt in range(self._retries + 1):
            try:
                with urllib.request.urlopen(request, timeout=self._timeout) as response:
                    return _reply(response.read())
            except urllib.error.HTTPError as error:
                failure = f"HTTP {error.code}: {error.read(200).decode(errors='replace')}"
                if error.code not in PASSING_STATUS:
                    kind = JudgeRefusedError if error.code in REFUSED_STATUS else JobError
                    raise kind(f"judge {self.name}: {failure}") from None
                wait = _seconds(error.headers.get("Retry-After"))
            except (OSError, http.client.HTTPException) as error:  # no connection, cut, timed out
                failure, wait = str(error), None
            if attempt < self._retries:
                backoff = self._first_wait * 2**attempt if wait is None else wait
                self._sleep(min(backoff, self._longest_wait))
        raise JobError(f"judge {self.name}: no reply in {self._retries + 1} attempts; {failure}")


class RecordedReplies:
    """A judge that replays a file of replies, for tests and for repeating a published grading.

    Args:
        path: JSON lines with `messages` and `reply`. The same messages may stand there several
            times; their replies are given in that order.
    """

    def __init__(self, path: str | Path) -> None:
        self.name = Path(path).stem
        replies: dict[str, list[str]] = {}
        for row in read_rows(str(path)):
            need(row, ("messages", "reply"), str(path))
            replies.setdefault(json.dumps(row["messages"]), []).append(row["reply"])
        self._replies = {key: iter(texts) for key, texts in replies.items()}

    def __call__(self, messages: Messages, *, temperature: float, max_tokens: int) -> str:
        """Returns the next recorded reply to these messages.

        Raises:
            JobError: There is none (left).
        """
        reply = next(self._replies.get(json.dumps(messages), iter(())), None)
        if reply is None:
            raise JobError(f"judge {self.name}: no reply is recorded to {str(messages)[-80:]!r}.")
        return reply


class VerdictStore:
    """Verdicts on disk, one JSON object a line, appended to as they come.

    A verdict belongs to one response to one record, one judge, one prompt version and one run, so
    neither another model nor another wording can inherit it.

    Args:
        path: The file; it is made when the first verdict comes.
        judge: Name of the judge.
        prompt_version: Of the wording.
    """

    def __init__(self, path: str | Path, judge: str, prompt_version: str) -> None:
        self.path, self.judge, self.prompt_version = Path(path), judge, prompt_version
        drop_cut_line(self.path)
        self._rows: dict[tuple[str, ...], dict[str, Any]] = {}
        for row in read_store(self.path):
            self._keep(row)

    def get(self, prediction: Prediction, run: int) -> Answer | None:
        """The verdict on a response, or None."""
        return self._rows.get(_key(self._row(prediction, run)), {}).get("verdict")

    def reply(self, prediction: Prediction, run: int) -> str | None:
        """What the judge said to a response, whether it held a verdict or not; None if nothing."""
        return self._rows.get(_key(self._row(prediction, run)), {}).get("reply")

    def add(self, prediction: Prediction, run: int, verdict: Answer | None, reply: str) -> None:
        """Appends a verdict, or None and the reply that held none."""
        row = self._row(prediction, run) | {"verdict": verdict, "reply": reply}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as file:
            file.write(json.dumps(row).encode() + b"\n")
        self._keep(row)

    def _keep(self, row: dict[str, Any]) -> None:
        if row["verdict"] is not None or self._rows.get(_key(row), row)["verdict"] is None:
            self._rows[_key(row)] = row

    def _row(self, prediction: Prediction, run: int) -> dict[str, Any]:
        return {
            "prompt_version": self.prompt_version,  # first: a store is told by it
            "judge": self.judge,
            "id": prediction.id,
            "run": run,
            "response": fingerprint(prediction.response),
        }


def judge_all(
    judged: Judged,
    records: Sequence[Record],
    predictions: Mapping[str, Prediction],
    judge: Judge,
    store: VerdictStore,
    *,
    rules: Any = None,
    runs: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Asks for every verdict that the store lacks.

    Args:
        judged: The task's wording and reading of replies.
        records: What to judge.
        predictions: By id; records without one are left out.
        judge: Whom to ask.
        store: Where verdicts are kept; running again asks only for what is missing there.
        rules: The official wording, None for ours.
        runs: Gradings per response, the authors' number when None.
        progress: Called with how many of how many verdicts are settled.

    Raises:
        JobError: The judge cannot be reached, or refuses one response after the other; what was
            settled is in the store, and the message says how much.
    """
    pending = [
        (record, run)
        for run in range(1, (runs or judged.runs) + 1)
        for record in records
        if record["id"] in predictions and store.get(predictions[record["id"]], run) is None
    ]
    refusals = 0
    for number, (record, run) in enumerate(pending, start=1):
        prediction = predictions[record["id"]]
        try:
            verdict, reply = _ask(judged, record, prediction.response, judge, rules)
            refusals = 0
        except JobError as error:
            refusals += 1
            if refusals == MOST_REFUSALS or not isinstance(error, JudgeRefusedError):
                raise type(error)(
                    f"{error}. {number - 1} of {len(pending)} verdicts were asked for before; they "
                    f"are kept in {store.path}, and the same command asks for the rest."
                ) from error
            verdict, reply = None, str(error)
        store.add(prediction, run, verdict, reply)
        progress(number, len(pending))


def stored_runs(
    store: VerdictStore,
    predictions: Mapping[str, Prediction],
    runs: int,
) -> list[dict[str, Answer]]:
    """The store's verdicts on these predictions, one mapping id → verdict per run."""
    return [
        {i: v for i, p in predictions.items() if (v := store.get(p, run)) is not None}
        for run in range(1, runs + 1)
    ]


def stored_replies(
    store: VerdictStore, predictions: Mapping[str, Prediction], runs: int
) -> dict[str, str]:
    """What the judge said to each of these predictions, one run behind the other."""
    said = {
        i: [reply for run in range(1, runs + 1) if (reply := store.reply(p, run))]
        for i, p in predictions.items()
    }
    return {
        i: ("\n\n" if any("\n" in text for text in replies) else " · ").join(replies)
        for i, replies in said.items()
        if replies
    }


def require_verdicts(
    ids: Sequence[str],
    runs: Sequence[Mapping[str, Answer]],
    replies: Mapping[str, str] = MappingProxyType({}),
) -> int:
    """Counts missing verdicts.

    Args:
        ids: Of the records.
        runs: id → verdict, per run.
        replies: What the judge said, by id, to quote where it held no verdict.

    Returns:
        How many are missing, at most 1 % of all.

    Raises:
        InputError: There are no runs, or more than 1 % of the verdicts are missing.
    """
    missing = [f"{i} (run {k})" for k, run in enumerate(runs, 1) for i in ids if i not in run]
    if not runs or len(missing) > MOST_MISSING * len(ids) * len(runs):
        unread = (i for i in ids if i in replies and any(i not in run for run in runs))
        said = next((f" To {i} it said {replies[i][:80]!r}." for i in unread), "")
        raise InputError(
            f"{len(missing)} of {len(ids) * len(runs)} verdicts are missing "
            f"({named(missing) or 'no run was found'}), more than {MOST_MISSING:.0%}: run the "
            f"judge again, it asks only for these.{said}"
        )
    return len(missing)


def read_store(path: Path) -> list[dict[str, Any]]:
    """The rows of a verdict store, none when there is no file.

    Raises:
        InputError: A row is not a verdict.
    """
    if not path.exists():
        return []
    rows = []
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if not line.strip():
            continue
        row = parse_json(line, f"{path}:{number}")
        if not isinstance(row, dict) or not {*_KEY, "verdict"} <= set(row):
            raise InputError(f"{path}:{number}: expected {', '.join(_KEY)} and verdict.")
        texts = [row[name] for name in ("judge", "prompt_version", "response")]
        if type(row["run"]) is not int or not all(isinstance(text, str) for text in texts):
            raise InputError(f"{path}:{number}: run must be a whole number, the others texts.")
        rows.append(row)
    return rows


def fingerprint(text: str) -> str:
    """A short digest of a text."""
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:16]


_KEY = ("id", "run", "judge", "prompt_version", "response")


def _key(row: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(str(row[name]) for name in _KEY)


def _ask(
    judged: Judged, record: Record, response: str, judge: Judge, rules: Any
) -> tuple[Answer | None, str]:
    reply = ""
    for attempt in range(judged.attempts):
        reply = judge(
            judged.messages(record, response, rules, attempt),
            temperature=judged.temperature + attempt * judged.warmer,
            max_tokens=judged.max_tokens,
        )
        verdict = judged.parse(reply)
        if verdict is not None:
            return verdict, reply
    return None, reply


def _reply(body: bytes) -> str:
    try:
        content = json.loads(body)["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError):
        shown = body[:200].decode(errors="replace")
        raise JobError(f"the judge's server sent no chat completion: {shown!r}") from None
    return content or ""


def _seconds(header: str | None) -> float | None:
    try:
        return float(header) if header else None
    except ValueError:  # a date; the usual back-off will do
        return None
