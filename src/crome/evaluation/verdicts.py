"""Verdicts of a judge: asked for a few at a time, kept on disk, counted where one is missing."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from types import MappingProxyType
from typing import Any

from crome.errors import InputError, JobError
from crome.evaluation.judges import Judge, JudgeRefusedError
from crome.evaluation.predictions import Prediction, drop_cut_line, named
from crome.evaluation.replies import without_reasoning
from crome.evaluation.sources import fingerprint, parse_lines, without_surrogates
from crome.evaluation.task import Answer, Judged, Record
from crome.storage import append_line

MOST_MISSING = 0.01  # of the verdicts; more is an error
MOST_REFUSALS = 5  # in a row; more means that the request form is what the server dislikes
_KEY = ("id", "run", "judge", "prompt_version", "response")
Predictions = Mapping[str, Prediction]


class VerdictStore:
    """Verdicts on disk, one JSON object a line, appended to as they come.

    A verdict belongs to one response to one record, one judge, one prompt version and one run, so
    neither another model nor another wording can inherit it.

    Args:
        path: The file; it is made when the first verdict comes.
        judge: Name of the judge.
        prompt_version: Version of the wording.
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

    def runs(self, predictions: Predictions, count: int) -> list[dict[str, Answer]]:
        """The verdicts on these predictions, one mapping id → verdict for each run from 1."""
        return [
            {i: v for i, p in predictions.items() if (v := self.get(p, run)) is not None}
            for run in range(1, count + 1)
        ]

    def replies(self, predictions: Predictions, count: int) -> dict[str, str]:
        """What the judge said to each prediction, verdict or not, one run behind the other."""
        found = {}
        for i, p in predictions.items():
            rows = (self._rows.get(_key(self._row(p, run)), {}) for run in range(1, count + 1))
            if replies := [row["reply"] for row in rows if row.get("reply")]:
                found[i] = ("\n\n" if "\n" in "".join(replies) else " · ").join(replies)
        return found

    def lacking(
        self, records: Sequence[Record], predictions: Predictions, count: int
    ) -> list[tuple[Record, int]]:
        """The records and runs without a verdict; records without a prediction are left out."""
        return [
            (record, run)
            for run in range(1, count + 1)
            for record in records
            if record["id"] in predictions and self.get(predictions[record["id"]], run) is None
        ]

    def add(
        self,
        prediction: Prediction,
        run: int,
        verdict: Answer | None,
        reply: str,
        departures: Iterable[str] = (),
    ) -> None:
        """Appends a verdict, or None and the reply that held none."""
        row = self._row(prediction, run) | {"verdict": verdict, "reply": reply}
        if departures:
            row["departures"] = list(departures)
        append_line(self.path, row)
        self._keep(row)

    def departures(self) -> list[str]:
        """What the judge refused of the benchmark's settings, each once."""
        return list(
            dict.fromkeys(x for row in self._rows.values() for x in row.get("departures", ()))
        )

    def _keep(self, row: dict[str, Any]) -> None:
        if row["verdict"] is not None or self._rows.get(_key(row), row)["verdict"] is None:
            self._rows[_key(row)] = row

    def _row(self, prediction: Prediction, run: int) -> dict[str, Any]:
        return {
            "prompt_version": self.prompt_version,  # first: a store is known by it
            "judge": self.judge,
            "id": prediction.id,
            "run": run,
            "response": fingerprint(prediction.response),
        }


def judge_all(
    judged: Judged,
    records: Sequence[Record],
    predictions: Predictions,
    judge: Judge,
    store: VerdictStore,
    *,
    rules: Any = None,
    runs: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Asks for every verdict that the store lacks, as many at a time as the judge's `workers`.

    Args:
        judged: The task's wording and reading of replies.
        records: What to judge.
        predictions: By id; records without one are left out.
        judge: Whom to ask; one after the other where it has no `workers`.
        store: Where verdicts are kept; running again asks only for what is missing there.
        rules: The official wording, None for ours.
        runs: Gradings per response, the authors' number when None.
        progress: Called with how many of how many verdicts are settled.

    Raises:
        JobError: The judge cannot be reached, or refuses one response after the other; what was
            settled is in the store, and the message says how much.
    """
    pending = store.lacking(records, predictions, runs or judged.runs)
    pool = ThreadPoolExecutor(getattr(judge, "workers", 1))
    futures: dict[Future, tuple[Record, int]] = {}
    for record, run in pending:
        response = without_surrogates(without_reasoning(predictions[record["id"]].response))
        futures[pool.submit(_ask, judged, record, response, judge, rules)] = record, run
    refusals = settled = 0

    def keep(future: Future) -> None:
        """Stores what came of a request; raises when the judge is to be asked no more."""
        nonlocal refusals, settled
        record, run = futures.pop(future)
        try:
            verdict, reply = future.result()
            refusals = 0
        except JudgeRefusedError as error:
            refusals += 1
            if refusals == MOST_REFUSALS:
                raise
            verdict, reply = None, str(error)
        departures = getattr(judge, "departures", {}).values()
        store.add(predictions[record["id"]], run, verdict, reply, departures)
        settled += 1

    try:
        while futures:
            done, _ = wait(futures, return_when=FIRST_COMPLETED)
            for future in [future for future in futures if future in done]:  # in their order
                keep(future)
                progress(settled, len(pending))
    except JobError as error:
        pool.shutdown(cancel_futures=True)
        for future in [f for f in futures if f.done() and not f.cancelled() and not f.exception()]:
            keep(future)  # replies that were on their way
        raise type(error)(
            f"{error}. {settled} of {len(pending)} verdicts were asked for "
            f"before; they are kept in {store.path}, and the same command asks for the rest."
        ) from error
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def require_verdicts(
    ids: Sequence[str],
    runs: Sequence[Mapping[str, Answer]],
    replies: Mapping[str, str] = MappingProxyType({}),
) -> int:
    """Counts missing verdicts.

    Args:
        ids: Ids of the records.
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
        example = next((f" To {i} it said {replies[i][:80]!r}." for i in unread), "")
        raise InputError(
            f"{len(missing)} of {len(ids) * len(runs)} verdicts are missing "
            f"({named(missing) or 'no run was found'}), more than {MOST_MISSING:.0%}: run the "
            f"judge again, it asks only for these.{example}"
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
    for where, row in parse_lines(path):
        if not isinstance(row, dict) or not {*_KEY, "verdict"} <= set(row):
            raise InputError(f"{where}: expected {', '.join(_KEY)} and verdict.")
        texts = [row[name] for name in ("judge", "prompt_version", "response")]
        if type(row["run"]) is not int or not all(isinstance(text, str) for text in texts):
            raise InputError(f"{where}: run must be a whole number, the others texts.")
        rows.append(row)
    return rows


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
        verdict = judged.parse(without_reasoning(reply))
        if verdict is not None:
            return verdict, reply
    return None, reply
