"""MME (arXiv 2306.13394): two yes/no questions on each image, 14 subtasks, up to 2,800 points."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from crome.errors import InputError
from crome.evaluation import cells
from crome.evaluation.predictions import Prediction, read_predictions
from crome.evaluation.sources import Row, need, read_rows, records_from
from crome.evaluation.task import Answers, Metric, Protocol, Question, Record, Scores, Task
from crome.evaluation.tasks import yes_no
from crome.evaluation.tasks.prompts import check_style, short_answer
from crome.intervals import sum_interval

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
QUESTIONS = 2  # on each image
MOST_POINTS = 200.0  # of a subtask
ASKS_YES_NO = " Please answer yes or no."
IMAGE_SUFFIXES = (".jpg", ".png", ".jpeg", ".JPG", ".PNG", ".JPEG")


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
    return _paired([_hub_row(row, source) for row in read_rows(source)], source)


def _hub_row(row: Row, source: str) -> tuple:
    need(row, ("category", "question_id", "question", "answer"), source)
    subtask = cells.text(row["category"])
    image = cells.identity(row["question_id"]).removeprefix(f"{subtask}/")
    return subtask, image, cells.text(row["question"]), row["answer"], cells.pictures(row)


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
    numbers = _Numbers()

    def record(row: Row, number: int) -> Record:
        subtask, image, question_, answer, file = row["cells"]
        try:
            gold = cells.yes_no(answer)
        except InputError:
            raise InputError(f"the gold answer to {question_!r} is {answer!r}.") from None
        return {
            "id": f"{subtask}/{image}/{numbers.next(subtask, image)}",
            "subtask": subtask,
            "image": f"{subtask}/{image}",
            "images": cells.images_in(file),
            "question": question_,
            "answer": gold,
        }

    return records_from(source, record, ({"cells": row} for row in rows))


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
    """100·acc + 100·acc+ of each subtask, summed over perception and over cognition.

    Raises:
        InputError: An image has other than two questions, without which acc+ is not defined.
    """
    rows = {r["id"]: float(answers.get(r["id"]) == r["answer"]) for r in records}
    images: dict[str, dict[str, list[float]]] = {}
    for record in records:
        images.setdefault(record["subtask"], {}).setdefault(record["image"], []).append(
            rows[record["id"]]
        )
    for pairs in images.values():
        for image, pair in pairs.items():
            if len(pair) != QUESTIONS:
                raise InputError(
                    f"{image} has {len(pair)} of MME's two questions on each image: acc+ counts "
                    "images with both right, and needs both."
                )
    subtasks = {name: [_points(pair) for pair in pairs.values()] for name, pairs in images.items()}
    metrics: dict[str, Metric] = {}
    for part, members in (("perception", PERCEPTION), ("cognition", COGNITION)):
        present = [subtasks[subtask] for subtask in members if subtask in subtasks]
        if present:
            metrics[f"{name}/{part}"] = _metric(present)
    metrics |= {f"{name}/{subtask}": _metric([units]) for subtask, units in subtasks.items()}
    return Scores(metrics, rows, {"images": sum(len(pairs) for pairs in images.values())})


def _points(pair: Sequence[float]) -> float:
    """What an image adds to its subtask's mean: 100 · share right, and 100 if all are."""
    return 100 * sum(pair) / len(pair) + 100 * float(min(pair) == 1)


def _metric(subtasks: Sequence[Sequence[float]]) -> Metric:
    """The sum of subtasks, whose images are independent of each other's."""
    return Metric(
        sum(sum(points) / len(points) for points in subtasks),
        sum(map(len, subtasks)),
        "points",
        sum_interval(subtasks, (0.0, MOST_POINTS)),
        MOST_POINTS * len(subtasks),
    )


def table_cells(record: Record) -> dict[str, str]:
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
    protocols={
        "official": Protocol(parse, tally),
        "tolerant": Protocol(yes_no.tolerant, tally),
    },
    baselines=yes_no.constant_yes_no,
    releases={2374: "released"},
    predictions=read_responses,
    whole=lambda record: record["image"],
    cells=table_cells,
)
