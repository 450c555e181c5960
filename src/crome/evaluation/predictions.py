"""The predictions file: one JSON object a line, safe to append to, resumable after a crash."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Literal, Self

from crome.errors import InputError, JobError
from crome.evaluation import cells
from crome.evaluation.sources import parse_json, parse_lines, read_rows
from crome.storage import locked

OnBadId = Literal["error", "report"]

# Result files of other projects are read as well: LLaVA writes question_id and text, MMBench's
# tables have index and prediction, COCO's results image_id and caption, HallusionBench's
# model_prediction, VQA's question_id and answer. What may also be the question or the gold answer
# stands last: it is the response only where nothing else is.
ID_FIELDS = ("id", "question_id", "index", "questionId", "image_id", "data_id", "pid")
RESPONSE_FIELDS = (
    "response",
    "prediction",
    "model_prediction",
    "pred",
    "predicted_answer",
    "model_answer",
    "output",
    "caption",
    "text",
    "answer",
)


LISTS = ("annotations", "results", "predictions", "responses", "data")
"""Under which of a JSON object's keys its rows may stand."""


@dataclass(frozen=True)
class Prediction:
    """A model's response to one record.

    Attributes:
        id: Id of the record.
        prompt: The whole prompt, with placeholders of images.
        response: The generated text, or the best candidate when candidates were ranked.
        losses: Summed token loss of each candidate, in the order they were given; None when
            nothing was ranked.
        generation: Everything that the answers of the run depend on.
        checkpoint: Fingerprint of the weights.
        pictures: How many pictures the model was given with this record; None where a file of
            another program does not say.
    """

    id: str
    prompt: str = ""
    response: str = ""
    losses: tuple[float, ...] | None = None
    generation: Mapping[str, Any] = field(default_factory=dict)
    checkpoint: str = ""
    pictures: int | None = None

    def line(self) -> bytes:
        r"""The row as it stands in the file, escaped to ASCII: no `\u2028` can split it."""
        row: dict[str, Any] = {"id": self.id, "prompt": self.prompt, "response": self.response}
        if self.losses is not None:
            row["losses"] = list(self.losses)
        row |= {"generation": dict(self.generation), "checkpoint": self.checkpoint}
        if self.pictures is not None:
            row["pictures"] = self.pictures
        return json.dumps(row).encode() + b"\n"


class PredictionWriter:
    """Appends predictions to a file, each at most once.

    Opening an existing file resumes it: a last line without its line break, which only a crash
    leaves, is dropped, and the ids of the others are in `done`. The file is locked until it is
    closed or its process ends, however it ends.

    Args:
        path: The predictions file; folders are made.

    Raises:
        InputError: A finished line is not a prediction, an id stands there twice, or another
            process is writing the file.

    Examples:
        ```python
        with PredictionWriter("predictions.jsonl") as writer:
            for question in questions:
                if question.id not in writer.done:
                    writer.write(Prediction(question.id, question.prompt, answer(question)))
        ```
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        with ExitStack() as stack:
            busy = (
                f"{self.path} is being written by another process: wait for it, or give another "
                "folder."
            )
            stack.enter_context(locked(lock_of(self.path), busy))
            drop_cut_line(self.path)
            existing = read_predictions(self.path) if self.path.exists() else []
            _refuse_duplicates(existing, self.path)
            self._file: BinaryIO = stack.enter_context(self.path.open("ab"))
            self._open = stack.pop_all()
        self.done = {prediction.id for prediction in existing}
        self._first = existing[0] if existing else None

    def write(self, prediction: Prediction) -> None:
        """Appends one line, handed to the operating system before this returns.

        Raises:
            InputError: The id is in the file already, or the file was started with other weights
                or decoding settings.
            JobError: The disk is full.
        """
        if prediction.id in self.done:
            raise InputError(f"{self.path}: id {prediction.id!r} has been predicted already.")
        self.expect(prediction.checkpoint, prediction.generation)
        self._first = self._first or prediction
        try:
            self._file.write(prediction.line())
            self._file.flush()
        except OSError as error:
            raise JobError(
                f"could not write {self.path}: {error}. Its {len(self.done)} finished lines stay; "
                "free some space and give the same command again to go on."
            ) from error
        self.done.add(prediction.id)

    def expect(self, checkpoint: str, generation: Mapping[str, Any]) -> None:
        """Refuses to go on with a file that was started with other weights or settings.

        Raises:
            InputError: The message says what differs.
        """
        if self._first is None:
            return
        started = {"checkpoint": self._first.checkpoint, **self._first.generation}
        now = {"checkpoint": checkpoint, **generation}
        differing = [k for k in {**started, **now} if started.get(k) != now.get(k)]
        if differing:
            found = "; ".join(f"{k} {started.get(k)!r}, now {now.get(k)!r}" for k in differing)
            raise InputError(
                f"{self.path} was started with {found}: give the same settings to go on with it, "
                "or another folder."
            )

    def close(self) -> None:
        """Closes the file and lets others write it."""
        self._open.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with suppress(OSError) if error else nullcontext():  # closing a full file fails again
            self.close()


def lock_of(path: Path) -> Path:
    """The file that is locked while a predictions file is written."""
    return path.with_name(f".{path.name}.lock")


def read_predictions(path: str | Path) -> list[Prediction]:
    """Reads predictions: JSON lines, a JSON list of rows, a JSON object id → response, or a table.

    Args:
        path: The file.

    Raises:
        InputError: The file is absent, empty or cut, or a row lacks an id or a text.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: there is no such predictions file.")
    match path.suffix.lower():
        case ".json":
            return _from_json(path)
        case ".tsv" | ".csv" | ".parquet" | ".xlsx":
            rows = enumerate(read_rows(str(path)), start=1)
            return [_prediction(_typed(row), f"{path}, row {number}") for number, row in rows]
        case ".xls" | ".ods":
            raise InputError(f"{path}: save this spreadsheet as .xlsx or .csv.")
    return [_prediction(row, where) for where, row in parse_lines(path)]


def align(
    ids: Sequence[str], predictions: Sequence[Prediction], on_bad_id: OnBadId = "error"
) -> tuple[dict[str, Prediction], dict[str, int]]:
    """Pairs predictions with records.

    Args:
        ids: Ids of the records, in order.
        predictions: What the file holds.
        on_bad_id: "error" refuses missing, unknown and repeated ids. "report" counts them: a
            missing one will be wrong, an unknown one is left out, the last of several holds.

    Returns:
        Predictions by id in the order of the records, and how many ids were bad in which way.

    Raises:
        InputError: Under "error", with the first ids of each kind by name.
    """
    times = Counter(prediction.id for prediction in predictions)
    known = set(ids)
    bad = {
        "missing": [i for i in ids if i not in times],
        "unknown": [i for i in times if i not in known],
        "duplicate": [i for i in times if times[i] > 1],
    }
    if on_bad_id == "error" and any(bad.values()):
        found = "; ".join(f"{len(b)} {kind} ({named(b)})" for kind, b in bad.items() if b)
        raise InputError(
            f"Predictions do not match the {len(ids)} references: {found}. Are they of the same "
            "release? `--on_bad_id report` scores the rest and counts these."
        )
    by_id = {prediction.id: prediction for prediction in predictions}
    return {i: by_id[i] for i in ids if i in by_id}, {kind: len(b) for kind, b in bad.items() if b}


def named(ids: Sequence[str], most: int = 5) -> str:
    """The first few of a list of ids, for messages."""
    return ", ".join(ids[:most]) + (", …" if len(ids) > most else "")


def _from_json(path: Path) -> list[Prediction]:
    content = parse_json(path.read_bytes().removeprefix(b"\xef\xbb\xbf"), str(path))
    if isinstance(content, dict):
        rows = next((content[k] for k in LISTS if isinstance(content.get(k), list)), None)
        content = (
            rows
            if rows is not None
            else [
                {"id": key} | (value if isinstance(value, dict) else {"response": value})
                for key, value in content.items()
            ]
        )
    if not isinstance(content, list):
        raise InputError(f"{path}: expected a list of rows or an object id → response.")
    return [_prediction(row, f"{path}, row {number}") for number, row in enumerate(content, 1)]


def _prediction(row: Any, where: str) -> Prediction:
    if not isinstance(row, dict):
        raise InputError(f"{where}: expected a JSON object, found {type(row).__name__}.")
    if "doc_id" in row and ("resps" in row or "filtered_resps" in row):
        row = _logged(row, where)
    key = _first_field(row, ID_FIELDS, where)
    generation = row.get("generation") or {}
    if not isinstance(generation, dict):
        raise InputError(f"{where}: generation must be an object, found {generation!r}.")
    pictures = row.get("pictures")
    try:
        identity = cells.identity(row[key])
    except InputError as error:
        raise InputError(f"{where}: {key}: {error}") from None
    return Prediction(
        id=identity,
        prompt=str(row.get("prompt") or ""),
        response=response_in(row, where),
        losses=_losses(row.get("losses"), where),
        generation=generation,
        checkpoint=str(row.get("checkpoint") or ""),
        pictures=pictures if isinstance(pictures, int) else None,
    )


def _typed(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of a table with its cells as texts, empty where they hold nothing."""
    plain = (str, int, float, bool, type(None))
    return {k: cells.text(v) if isinstance(v, plain) else v for k, v in row.items()}


def response_in(row: Mapping[str, Any], where: str) -> str:
    """The response of a row of a result file.

    Raises:
        InputError: There is none, or it is no text.
    """
    response = row[_first_field(row, RESPONSE_FIELDS, where)]
    if not isinstance(response, str):
        raise InputError(f"{where}: the response must be a text, found {response!r}.")
    return response


def _logged(row: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A line of lmms-eval's sample log (`--log_samples`) as a row: id of its record, response.

    Its record's own id holds where the log has it, else the number of the record.
    """
    given = row["resps"] if "resps" in row else row["filtered_resps"]
    while isinstance(given, list) and given:
        given = given[0]
    if not isinstance(given, str):
        raise InputError(f"{where}: resps holds no generated text, found {given!r}.")
    logged = row.get("doc")
    record: dict[str, Any] = logged if isinstance(logged, dict) else {}
    name = next((k for k in ("id", *ID_FIELDS[1:]) if k in record), None)
    return {"id": row["doc_id"] if name is None else record[name], "response": given}


def _losses(losses: Any, where: str) -> tuple[float, ...] | None:
    if losses is None:
        return None
    if not isinstance(losses, list) or not all(
        isinstance(loss, int | float) and loss == loss for loss in losses
    ):
        raise InputError(f"{where}: losses must be a list of numbers, found {losses!r}.")
    return tuple(float(loss) for loss in losses)


def _first_field(row: Mapping[str, Any], fields: Iterable[str], where: str) -> str:
    by_small = {str(name).lower(): name for name in reversed(list(row))}
    for name in (*fields, *map(str.lower, fields)):
        if name in row or name in by_small:
            return name if name in row else by_small[name]
    found = ", ".join(map(str, row)) or "none"
    raise InputError(
        f"{where}: no field {' or '.join(sorted(fields, key=_usual))}; it has {found}."
    )


def _usual(field: str) -> int:
    """The names that most files use come first in messages."""
    usual = ("id", "question_id", "index", "response", "text", "prediction")
    return usual.index(field) if field in usual else len(usual)


def _refuse_duplicates(predictions: Sequence[Prediction], path: Path) -> None:
    times = Counter(prediction.id for prediction in predictions)
    twice = [i for i, n in times.items() if n > 1]
    if twice:
        raise InputError(f"{path}: {len(twice)} ids stand there more than once ({named(twice)}).")


def drop_cut_line(path: Path) -> None:
    """Truncates a file of lines to its finished ones; only a crash leaves another."""
    if not path.exists():
        return
    content = path.read_bytes()
    complete = content.rfind(b"\n") + 1
    if complete < len(content):
        with path.open("r+b") as file:
            file.truncate(complete)
