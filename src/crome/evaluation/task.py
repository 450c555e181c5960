"""What a benchmark is: records, the question put to a model, and how answers become numbers.

A protocol has two halves. `parse` reads one response into an answer (a letter, yes or no, a text),
or None when the official rule cannot read it; `tally` turns the answers of all records into
metrics. Constant-answer baselines are answers too, so they pass through the same `tally`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from crome.evaluation.predictions import Prediction

Record = dict[str, Any]
"""One question of a benchmark, with an "id", a "question", the "images", the right "answer" (None
where it is hidden), for multiple choice the "options" (letter → text), and what a task adds."""
Answer = Any
Answers = Mapping[str, Answer]
Messages = list[dict[str, str]]


class Question(NamedTuple):
    """The text that a model gets, and the candidates that are ranked behind it."""

    prompt: str
    candidates: tuple[str, ...] = ()


@dataclass(frozen=True)
class Metric:
    """A number with what is needed to judge it.

    Attributes:
        value: On the scale that the official scorer prints.
        n: How many units the number rests on, the same units as its interval's.
        unit: "fraction" (0 to 1), "percent" (0 to 100) or "points" (the benchmark's own).
        interval: 95 % interval, None where one would mean nothing.
        maximum: The most points there are to have, for a number in points.
    """

    value: float
    n: int
    unit: str = "fraction"
    interval: tuple[float, float] | None = None
    maximum: float | None = None


@dataclass(frozen=True)
class Scores:
    """What a protocol says about one set of answers.

    Attributes:
        metrics: Keyed `benchmark/protocol` (the headline, first) or `benchmark/protocol/part`.
        rows: Score of each unit that `crome compare` pairs.
        counts: Whole numbers worth knowing beside the metrics.
        replies: The judge's reply to each response, where there was a judge and replies are kept.
        warnings: What a reader of the numbers has to know, a sentence each.
        confusion: Gold answer → given answer → how often, where answers are classes.
    """

    metrics: dict[str, Metric]
    rows: dict[str, float]
    counts: dict[str, int] = field(default_factory=dict)
    replies: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    confusion: dict[str, dict[str, int]] = field(default_factory=dict)


Parse = Callable[[Record, Prediction], Answer | None]
Tally = Callable[[str, Sequence[Record], Answers], Scores]
"""From the metric's name, all records and answers by id to scores; a missing answer is wrong."""


@dataclass(frozen=True)
class Protocol:
    """How responses become metrics.

    Attributes:
        parse: Reads one response; None when it cannot be read.
        tally: Makes metrics of the answers.
        mode: Whether answers are generated, or candidates ranked by their loss, summed or per
            token.
    """

    parse: Parse
    tally: Tally
    mode: Literal["generate", "rank", "rank-per-token"] = "generate"


@dataclass(frozen=True)
class Judged:
    """How a judge's verdicts become metrics.

    Attributes:
        prompt_version: Version of our own wording, part of the protocol's name.
        messages: From record, response, rules and attempt (from 0) to what the judge gets.
        parse: Reads a reply; None when it holds no verdict.
        tally: From name, records and one mapping id → verdict per run to metrics.
        rules: Reads the official wording from the file its authors publish.
        recorded: Reads the official layout of finished gradings, where there is one: judge name
            and runs.
        temperature: Temperature of the first attempt.
        warmer: What is added to the temperature with each further attempt.
        max_tokens: Limit of a reply.
        attempts: How often a reply without a verdict is asked for again.
        runs: Gradings per response that the authors recommend.
    """

    prompt_version: str
    messages: Callable[[Record, str, Any, int], Messages]
    parse: Callable[[str], Answer | None]
    tally: Callable[[str, Sequence[Record], Sequence[Answers]], Scores]
    rules: Callable[[str], Any]
    recorded: Callable[[Sequence[str]], tuple[str, list[dict[str, Answer]]]] | None = None
    temperature: float = 0.0
    warmer: float = 0.0
    max_tokens: int = 16
    attempts: int = 5
    runs: int = 1


TABLE_FIELDS = ("question", "hint", "answer", "category", "l2-category")


def columns(record: Record) -> dict[str, str]:
    """The cells of a record in a table of VLMEvalKit's: index, texts, and options by letter."""
    cells = {"index": record["id"]}
    cells |= {name: record[name] for name in TABLE_FIELDS if record.get(name)}
    options = record.get("options") or {}
    return {k: v for k, v in (cells | options).items() if isinstance(v, str)}


def own_id(record: Record) -> str:
    """The id of a record that is a question of its own."""
    return str(record["id"])


@dataclass(frozen=True)
class Task:
    """A benchmark.

    Attributes:
        name: First part of its metrics' names.
        read: From a file, folder or hub id to records, each with a unique "id".
        question: From record and prompt style to what a model gets.
        protocols: By name, the default one first.
        baselines: Constant answers computed from the records, by name.
        judged: The protocol that needs a judge, if there is one.
        releases: Known sizes of the released records; another size is worth a warning.
        predictions: Reads the benchmark's own result layout, where it is not one JSON a line.
        cells: A record's cells in VLMEvalKit's table, where they are not the usual ones.
        max_new_tokens: Longest answer, as LLaVA's loaders have it: longer for open questions.
        pictures: Whether every record shows a picture, some do, or none has to.
        style: The usual wording of the prompts.
        unit: What a limit counts: records, or the questions that several records make.
        whole: What a limit must not cut, such as the records of one picture or of one set.
    """

    name: str
    read: Callable[[str], list[Record]]
    question: Callable[[Record, str], Question]
    protocols: Mapping[str, Protocol]
    baselines: Callable[[Sequence[Record]], dict[str, dict[str, Answer]]]
    judged: Judged | None = None
    releases: Mapping[int, str] = field(default_factory=dict)
    predictions: Callable[[str], list[Prediction]] | None = None
    cells: Callable[[Record], dict[str, str]] = columns
    max_new_tokens: int = 128
    pictures: Literal["all", "some", "optional"] = "all"
    style: str = "llava"
    unit: Callable[[Record], str] = own_id
    whole: Callable[[Record], str] = own_id


def gold_text(record: Record) -> str:
    """The right answer as a person would write it."""
    answer = record.get("answer", record.get("reference"))
    options = record.get("options") or {}
    if isinstance(answer, str) and answer in options:
        return f"{answer}. {options[answer]}"
    return " | ".join(map(str, answer)) if isinstance(answer, list | tuple) else str(answer or "")


def hidden(records: Sequence[Record]) -> list[str]:
    """The ids of records whose right answer the benchmark keeps to itself, as in a test split."""
    return [r["id"] for r in records if "answer" in r and r["answer"] is None]


def grouped(
    records: Sequence[Record], key: Callable[[Record], str | None]
) -> dict[str, list[Record]]:
    """Records by a property, which None leaves out; groups in order of appearance."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        group = key(record)
        if group is not None:
            groups.setdefault(group, []).append(record)
    return groups


def limited(task: Task, records: Sequence[Record], limit: int | None) -> list[Record]:
    """The first records, as many as make `limit` questions; what belongs together stays whole."""
    if limit is None:
        return list(records)
    chosen: set[str] = set()
    questions: set[str] = set()
    for group, members in grouped(records, task.whole).items():
        if len(questions) >= limit:
            break
        chosen.add(group)
        questions.update(map(task.unit, members))
    return [record for record in records if task.whole(record) in chosen]
