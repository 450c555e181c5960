"""MME (arXiv 2306.13394): two yes/no questions on each image, 14 subtasks, up to 2,800 points."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from crome.errors import InputError
from crome.evaluation import cells
from crome.evaluation.predictions import Prediction, read_predictions
from crome.evaluation.sources import Row, need, read_rows, records_from
from crome.evaluation.task import (
    Answers,
    Metric,
    Protocol,
    Question,
    Record,
    Scores,
    Task,
    grouped,
)
from crome.evaluation.tasks import yes_no
from crome.evaluation.tasks.prompts import short_answer
from crome.intervals import sum_interval

PERCEPTION = (
    "existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark",
    "artwork", "OCR",
)  # fmt: skip
COGNITION = (
    "commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning",
)  # fmt: skip
SUBTASKS = PERCEPTION + COGNITION
QUESTIONS = 2  # on each image
MOST_POINTS = 200.0  # of a subtask
ASKS_YES_NO = " Please answer yes or no."
IMAGE_SUFFIXES = (".jpg", ".png", ".jpeg", ".JPG", ".PNG", ".JPEG")


def _rows(source: str) -> list[Row]:
    """The scorer's folder of `<subtask>.txt`, the released image folders, or hub rows."""
    folder = Path(source)
    if any((folder / f"{subtask}.txt").exists() for subtask in SUBTASKS):
        rows = [
            _row(file.stem, image, question, answer, f"{file.stem}/{image}")
            for file in _subtask_files(folder)
            for image, question, answer in _lines(file, 3)
        ]
    elif any((folder / subtask).is_dir() for subtask in SUBTASKS):
        rows = [row for subtask in SUBTASKS for row in _released(folder, subtask)]
    else:
        rows = read_rows(source)
    return [row | {"number": number} for row, number in zip(rows, _numbers(rows), strict=True)]


def _row(subtask: str, image: str, question: str, answer: str, file: str) -> Row:
    return {
        "category": subtask, "question_id": image, "question": question, "answer": answer,
        "image": file,
    }  # fmt: skip


def _numbers(rows: Sequence[Row]) -> list[int]:
    """The number of each question on its image, from 1."""
    seen: Counter[str] = Counter()
    numbers = []
    for row in rows:
        need(row, ("category", "question_id", "question", "answer"))
        seen[_image_of(row)] += 1
        numbers.append(seen[_image_of(row)])
    return numbers


def _image_of(row: Row) -> str:
    subtask = cells.text(row["category"])
    return f"{subtask}/{cells.identity(row['question_id']).removeprefix(f'{subtask}/')}"


def _record(row: Row, number: int) -> Record:
    try:
        gold = cells.yes_no(row["answer"])
    except InputError:
        raise InputError(
            f"the gold answer to {row['question']!r} is {cells.quoted(row['answer'])}."
        ) from None
    return {
        "id": f"{_image_of(row)}/{row['number']}",
        "subtask": cells.text(row["category"]),
        "image": _image_of(row),
        "images": cells.pictures(row),
        "question": cells.text(row["question"]),
        "answer": gold,
    }


def _subtask_files(folder: Path) -> list[Path]:
    found = [file for subtask in SUBTASKS if (file := folder / f"{subtask}.txt").exists()]
    if not found:
        raise InputError(f"{folder}: none of MME's subtask files (existence.txt, …) is there.")
    return found


def _lines(file: Path, columns: int) -> list[list[str]]:
    """The tab-separated columns of each line; responses, which stand last, may hold more tabs."""
    rows = []
    for number, line in enumerate(file.read_text(encoding="utf-8-sig").split("\n"), start=1):
        if not line.strip():
            continue
        row = line.rstrip("\r").split("\t", columns - 1)
        if len(row) != columns:
            raise InputError(
                f"{file}:{number}: expected {columns} tab-separated columns, found {len(row)}: "
                f"{line[:60]!r}. A response with a line break does not fit this layout: use JSON "
                "lines."
            )
        rows.append(row)
    return rows


def _released(folder: Path, subtask: str) -> list[Row]:
    """One text file per image, its questions as `question <tab> answer` lines."""
    rows: list[Row] = []
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
        rows += [
            _row(subtask, image.name, question, gold, path) for question, gold in _lines(text, 2)
        ]
    return rows


def read_responses(source: str) -> list[Prediction]:
    """Reads the official results: `<subtask>.txt` with image, question, gold and response.

    In other files an id `subtask/image`, as LLaVA writes for both questions of an image (with the
    folder `images` between where the release has one), gets its number from the order of the two.

    Raises:
        InputError: A line has not four columns, as after a response with a line break.
    """
    seen: Counter[str] = Counter()

    def numbered(prediction: Prediction, image: str) -> Prediction:
        seen[image] += 1
        return replace(prediction, id=f"{image}/{seen[image]}")

    if Path(source).is_dir():
        return [
            numbered(Prediction("", question, response), f"{file.stem}/{image}")
            for file in _subtask_files(Path(source))
            for image, question, _, response in _lines(file, 4)
        ]
    predictions = []
    for prediction in read_predictions(source):
        match prediction.id.split("/"):
            case [subtask, image] | [subtask, "images", image]:
                prediction = numbered(prediction, f"{subtask}/{image}")
        predictions.append(prediction)
    return predictions


def question(record: Record, style: str) -> Question:
    """The released question; `llava` asks for a word or phrase instead of for yes or no."""
    text = record["question"]
    if style == "llava":
        text = text.removesuffix(ASKS_YES_NO).rstrip()
    return Question(short_answer(text, style), ("yes", "no"))


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
    subtasks: dict[str, list[float]] = {}
    images = grouped(records, _shown_image)
    for image, pair in images.items():
        if len(pair) != QUESTIONS:
            raise InputError(
                f"{image} has {len(pair)} of MME's two questions on each image: acc+ counts "
                "images with both right, and needs both."
            )
        right = [rows[record["id"]] for record in pair]
        # What an image adds to its subtask's mean: 100 · share right, and 100 if both are.
        points = 100 * sum(right) / QUESTIONS + 100 * float(min(right) == 1)
        subtasks.setdefault(pair[0]["subtask"], []).append(points)
    metrics: dict[str, Metric] = {}
    for part, members in (("perception", PERCEPTION), ("cognition", COGNITION)):
        present = [subtasks[subtask] for subtask in members if subtask in subtasks]
        if present:
            metrics[f"{name}/{part}"] = _metric(present)
    metrics |= {f"{name}/{subtask}": _metric([units]) for subtask, units in subtasks.items()}
    return Scores(metrics, rows, {"images": len(images)})


def _metric(subtasks: Sequence[Sequence[float]]) -> Metric:
    """The sum of subtasks, whose images are independent of each other's."""
    return Metric(
        sum(sum(points) / len(points) for points in subtasks),
        sum(map(len, subtasks)),
        "points",
        sum_interval(subtasks, (0.0, MOST_POINTS)),
        MOST_POINTS * len(subtasks),
    )


def _shown_image(record: Record) -> str:
    return str(record["image"])


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
    read=partial(records_from, make=_record, rows=_rows),
    question=question,
    protocols={"official": Protocol(parse, tally), "tolerant": Protocol(yes_no.tolerant, tally)},
    baselines=yes_no.constant_yes_no,
    releases={2374: "released"},
    predictions=read_responses,
    whole=_shown_image,
    cells=table_cells,
)
