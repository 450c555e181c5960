"""People's own rows, as `crome train` reads them; easy-VQA is such a file.

A row with `choices` is answered by the letter or by the text of one of them, under every protocol.
`answers` holds further answers that count as right.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

from crome.data.reader import read_rows
from crome.errors import InputError
from crome.evaluation.answers import COMPARISONS, Comparison, best
from crome.evaluation.cells import LETTERS
from crome.evaluation.predictions import Prediction
from crome.evaluation.replies import option_letter
from crome.evaluation.task import Answer, Answers, Protocol, Question, Record, Scores, Task
from crome.evaluation.tasks import choices
from crome.evaluation.tasks.classes import tally_classes
from crome.evaluation.tasks.prompts import check_style, multiple_choice, short_answer
from crome.evaluation.tasks.rubric import RUBRIC
from crome.matching import plain

KIND = choices.field("kind")


def read(
    source: str,
    image_root: Path | None = None,
    on_bad_row: Literal["raise", "skip"] = "raise",
    check_images: bool = False,
    look: bool = False,
) -> list[Record]:
    """Reads rows, conversations or LAVIS triples; a row's `choices` become its options.

    Args:
        source: The file, or a folder that `save_to_disk` wrote.
        image_root: Folder that image paths start from; None for the file's own.
        on_bad_row: Whether a bad row is an error, or is left out and counted in the log.
        check_images: Whether a row is bad whose picture does not decode.
        look: Whether a row is bad whose picture does not exist; scoring opens none.
    """
    rows = read_rows(Path(source), image_root, on_bad_row, check_images, look)
    return [
        {
            "id": row.id,
            "question": row.question,
            "row": row,
            "answer": row.answer,
            "accepted": (row.answer, *row.answers),
            "options": dict(zip(LETTERS, row.choices or (), strict=False)),
            "kind": row.kind,
            "images": tuple(str(Path(str(image)).absolute()) for image in row.images),
        }
        for row in rows
    ]


def question(record: Record, style: str) -> Question:
    """The question as it stands (`plain`, as in training), or worded like the benchmarks'.

    The other styles ask for a short answer, and list the choices of rows that have some.
    """
    asked, images, row = record["question"], record["images"], record["row"]
    if style == "plain":
        return Question(record["id"], asked, images, tuple(record["options"].values()), row)
    check_style(style)
    if not record["options"]:
        return Question(record["id"], short_answer(asked, style), images, row=row)
    prompt, candidates = multiple_choice(asked, record["options"], style)
    return Question(record["id"], prompt, images, candidates, row)


def gold_letter(record: Record) -> str:
    """The letter of the option that is the answer; the answer may be the letter itself.

    Raises:
        InputError: The answer is none of the choices, or there are none.
    """
    if letter := letter_of(record["options"], record["accepted"]):
        return letter
    raise InputError(
        f"row {record['id']}: the answer {record['answer']!r} is none of its choices "
        f"({', '.join(record['options'].values()) or 'it has none'})."
    )


def letter_of(options: Mapping[str, str], accepted: Sequence[str]) -> str | None:
    """The letter of the first accepted answer that is an option's text or, else, a letter."""
    by_text = {plain(text): letter for letter, text in options.items()}
    for answer in accepted:
        if letter := by_text.get(plain(answer), answer if answer in options else None):
            return letter
    return None


def by_letter(record: Record) -> bool:
    """Whether a row is scored by the letter of its choice: it has choices, one of them right."""
    return letter_of(record["options"], record["accepted"]) is not None


def parse(record: Record, prediction: Prediction) -> str | None:
    """The letter of a choice, by letter or text, where a row has choices; else the response."""
    if by_letter(record):
        return option_letter(prediction.response, record["options"])
    return prediction.response


def parse_tolerant(record: Record, prediction: Prediction) -> str | None:
    """The same, with the letter of a choice wherever the response states it."""
    if by_letter(record):
        return choices.tolerant(record, prediction)
    return prediction.response


def parse_letter(record: Record, prediction: Prediction) -> str | None:
    """The letter of a choice, by letter or text."""
    return option_letter(prediction.response, record["options"])


def tally(
    name: str, records: Sequence[Record], answers: Answers, *, comparison: Comparison
) -> Scores:
    """The mean of a comparison of responses with accepted answers, also by kind."""
    rows: dict[str, float] = {}
    for record in records:
        answer = answers.get(record["id"])
        if answer is None:
            rows[record["id"]] = 0.0
        elif by_letter(record):
            rows[record["id"]] = float(answer == gold_letter(record))
        else:
            rows[record["id"]] = best(comparison, answer, record["accepted"])
    return choices.tally_rows(name, records, rows, [KIND])


def tally_letters(name: str, records: Sequence[Record], answers: Answers) -> Scores:
    """Accuracy of letters, also by kind.

    Raises:
        InputError: The answer of a row is none of its choices.
    """
    lettered = [record | {"answer": gold_letter(record)} for record in records]
    return choices.accuracy(name, lettered, answers, parts=[KIND])


def baselines(records: Sequence[Record]) -> dict[str, dict[str, Answer]]:
    """The most frequent answer, and the most frequent letter where every row has choices."""
    common = Counter(record["answer"] for record in records).most_common(1)[0][0]
    constant: dict[str, dict[str, Answer]] = {
        f"always {common}": {
            record["id"]: letter_of(record["options"], (common,)) if by_letter(record) else common
            for record in records
        }
    }
    if all(by_letter(record) for record in records):
        lettered = [record | {"answer": gold_letter(record)} for record in records]
        constant |= choices.majority_letter(lettered)
    return constant


ROWS = Task(
    name="rows",
    read=read,
    question=question,
    protocols={
        name: Protocol(parse, partial(tally, comparison=comparison))
        for name, comparison in COMPARISONS.items()
    }
    | {
        "classes": Protocol(parse, tally_classes),
        "letter": Protocol(parse_letter, tally_letters),
    }
    | choices.own_protocols(tally_letters)
    | {"tolerant": Protocol(parse_tolerant, partial(tally, comparison=COMPARISONS["exact-match"]))},
    baselines=baselines,
    judged=RUBRIC,
    max_new_tokens=32,
    pictures="optional",
    style="plain",
)
