"""MME (arXiv 2306.13394): two yes/no questions on each image, 14 subtasks, up to 2,800 points."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from crome.errors import InputError
from crome.evaluation.predictions import Prediction, read_predictions
from crome.evaluation.sources import images_in, need, read_rows, unique
from crome.evaluation.task import Answer, Answers, Metric, Protocol, Question, Record, Scores, Task
from crome.evaluation.tasks.prompts import check_style, short_answer
from crome.intervals import percentile_interval, resampled_means

PERCEPTION = (
    "existence",
    "count",
    "position",
    "color",
    "posters",
    "celebrity",
    "scene",
    "landmark",
    "artwork",
    "OCR",
)
COGNITION = (
    "commonsense_reasoning",
    "numerical_calculation",
    "text_translation",
    "code_reasoning",
)
MOST_POINTS = 200.0  # of a subtask
ASKS_YES_NO = " Please answer yes or no."
IMAGE_SUFFIXES = (".jpg", ".png", ".jpeg")


def read(source: str) -> list[Record]:
    """Reads the scorer's folder of `<subtask>.txt`, the released image folders, or hub rows."""
    folder = Path(source)
    if folder.is_dir() and any((folder / f"{s}.txt").exists() for s in PERCEPTION + COGNITION):
        rows = [row for file in _subtask_files(folder) for row in _lines(file, 3)]
        return _paired([(r[0], r[1], r[2], r[3], f"{r[0]}/{r[1]}") for r in rows], source)
    if folder.is_dir() and any((folder / s).is_dir() for s in PERCEPTION + COGNITION):
        return _paired(
            [row for s in PERCEPTION + COGNITION for row in _released(folder, s)], source
        )
    rows_ = read_rows(source)
    for row in rows_:
        need(row, ("category", "question_id", "question", "answer"), source)
    return _paired(
        [
            (
                row["category"],
                str(row["question_id"]).removeprefix(f"{row['category']}/"),
                row["question"],
                row["answer"],
                row.get("image"),
            )
            for row in rows_
        ],
        source,
    )


def read_responses(source: str) -> list[Prediction]:
    """Reads the official results: `<subtask>.txt` with image, question, gold and response.

    In other files an id `subtask/image`, as LLaVA writes for both questions of an image (with the
    folder `images` between where the release has one), gets its number from the order of the two.

    Raises:
        InputError: A line has not four columns, as after a response with a line break.
    """
    folder = Path(source)
    predictions, numbers = [], _Numbers()
    if not folder.is_dir():
        for prediction in read_predictions(source):
            match prediction.id.split("/"):
                case [subtask, image] | [subtask, "images", image]:
                    number = numbers.next(subtask, image)
                    prediction = replace(prediction, id=f"{subtask}/{image}/{number}")
            predictions.append(prediction)
        return predictions
    for file in _subtask_files(folder):
        for subtask, image, question_, _, response in _lines(file, 4):
            identity = f"{subtask}/{image}/{numbers.next(subtask, image)}"
            predictions.append(Prediction(identity, question_, response))
    return predictions


class _Numbers:
    """Counts the questions of each image from 1."""

    def __init__(self) -> None:
        self.seen: dict[tuple[str, str], int] = {}

    def next(self, subtask: str, image: str) -> int:
        self.seen[subtask, image] = self.seen.get((subtask, image), 0) + 1
        return self.seen[subtask, image]


def _subtask_files(folder: Path) -> list[Path]:
    files = [folder / f"{subtask}.txt" for subtask in PERCEPTION + COGNITION]
    found = [file for file in files if file.exists()]
    if not found:
        raise InputError(f"{folder}: none of MME's subtask files (existence.txt, …) is there.")
    return found


def _lines(file: Path, columns: int) -> list[tuple[str, ...]]:
    """Subtask and the tab-separated columns of each line; responses may hold further tabs."""
    rows = []
    for number, line in enumerate(file.read_text(encoding="utf-8-sig").split("\n"), start=1):
        if not line.strip():
            continue
        cells = line.rstrip("\r").split("\t", columns - 1)
        if len(cells) != columns:
            raise InputError(
                f"{file}:{number}: expected {columns} tab-separated columns, found {len(cells)}: "
                f"{line[:60]!r}. A response with a line break does not fit this layout: use JSON "
                "lines."
            )
        rows.append((file.stem, *cells))
    return rows


def _released(folder: Path, subtask: str) -> list[tuple]:
    """One text file per image, its questions as `question <tab> answer` lines."""
    rows: list[tuple] = []
    for text in sorted((folder / subtask).rglob("*.txt")):
        image = next(
            (
                found
                for parent in (text.parent, text.parent.parent / "images")
                for suffix in IMAGE_SUFFIXES
                if (found := parent / f"{text.stem}{suffix}").exists()
            ),
            None,
        )
        if image is None:
            raise InputError(f"{text}: there is no image of that name beside it or in images/.")
        path = str(image.relative_to(folder))
        rows += [(subtask, image.name, q, a, path) for _, q, a in _lines(text, 2)]
    return rows


def _paired(rows: Sequence[tuple], source: str) -> list[Record]:
    numbers, records = _Numbers(), []
    for subtask, image, question_, answer, file in rows:
        gold = answer.strip().lower()
        if gold not in ("yes", "no"):
            raise InputError(f"{source}: the gold answer to {question_!r} is {answer!r}.")
        records.append(
            {
                "id": f"{subtask}/{image}/{numbers.next(subtask, image)}",
                "subtask": subtask,
                "image": f"{subtask}/{image}",
                "images": images_in(file),
                "question": question_,
                "answer": gold,
            }
        )
    return unique(records, source)


def question(record: Record, style: str) -> Question:
    """The released question; `llava` asks for a word or phrase instead of for yes or no."""
    check_style(style)
    text = record["question"]
    if style == "llava":
        text = short_answer(text.removesuffix(ASKS_YES_NO).rstrip(), style)
    elif style != "official":
        text = short_answer(text, style)
    return Question(record["id"], text, record["images"], ("yes", "no"))


def parse(record: Record, prediction: Prediction) -> str | None:
    """Yes or no within the first four characters; yes is looked for first."""
    start = prediction.response.lower()[:4]
    return next((word for word in ("yes", "no") if word in start), None)


def tally(name: str, records: Sequence[Record], answers: Answers) -> Scores:
    """100·acc + 100·acc+ of each subtask, summed over perception and over cognition."""
    rows = {r["id"]: float(answers.get(r["id"]) == r["answer"]) for r in records}
    images: dict[str, dict[str, list[float]]] = {}
    for record in records:
        images.setdefault(record["subtask"], {}).setdefault(record["image"], []).append(
            rows[record["id"]]
        )
    subtasks = {subtask: _points(list(of.values())) for subtask, of in images.items()}
    metrics: dict[str, Metric] = {}
    for part, members in (("perception", PERCEPTION), ("cognition", COGNITION)):
        present = [subtasks[subtask] for subtask in members if subtask in subtasks]
        if present:
            metrics[f"{name}/{part}"] = _metric(present)
    metrics |= {f"{name}/{subtask}": _metric([of]) for subtask, of in subtasks.items()}
    return Scores(metrics, rows, {"images": sum(len(of) for of in images.values())})


def _points(pairs: Sequence[Sequence[float]]) -> tuple[float, np.ndarray, int]:
    """Value, bootstrap replicates and number of images of one subtask; images are resampled."""
    # (right answers, questions, 1 if all of the image's are right) of each image
    table = np.array([(sum(pair), len(pair), float(min(pair) == 1)) for pair in pairs])
    means = np.vstack([table.mean(axis=0), resampled_means(table)])
    points = 100 * means[:, 0] / means[:, 1] + 100 * means[:, 2]
    return float(points[0]), points[1:], len(pairs)


def _metric(subtasks: Sequence[tuple[float, np.ndarray, int]]) -> Metric:
    return Metric(
        sum(value for value, _, _ in subtasks),
        sum(n for _, _, n in subtasks),
        "points",
        percentile_interval(np.sum([replicates for _, replicates, _ in subtasks], axis=0)),
        MOST_POINTS * len(subtasks),
    )


def constant_yes_no(records: Sequence[Record]) -> dict[str, dict[str, Answer]]:
    """The two constant answers to yes/no questions."""
    return {f"always {word}": {r["id"]: word for r in records} for word in ("yes", "no")}


def cells(record: Record) -> dict[str, str]:
    """VLMEvalKit pairs the questions of an image by `image_path` and compares "Yes" and "No"."""
    return {
        "index": record["id"],
        "category": record["subtask"],
        "image_path": record["image"],
        "question": record["question"],
        "answer": record["answer"].title(),
    }


MME = Task(
    name="mme",
    read=read,
    question=question,
    protocols={"official": Protocol(parse, tally)},
    baselines=constant_yes_no,
    releases={2374: "released"},
    predictions=read_responses,
    cells=cells,
)
