"""People's own rows, as `crome train` reads them; easy-VQA is such a file.

A row with `choices` is answered by the letter or by the text of one of them, under every protocol.
`answers` holds further answers that count as right.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from crome.data.reader import read_rows
from crome.errors import InputError
from crome.evaluation.answers import COMPARISONS, Comparison, best
from crome.evaluation.cells import LETTERS
from crome.evaluation.predictions import Prediction
from crome.evaluation.replies import option_letter, tolerant_letter
from crome.evaluation.tally import averaged
from crome.evaluation.task import Answer, Answers, Protocol, Question, Record, Scores, Tally, Task
from crome.evaluation.tasks import choices
from crome.evaluation.tasks.classes import tally_classes
from crome.evaluation.tasks.prompts import choice_question, short_question
from crome.evaluation.tasks.rubric import RUBRIC
from crome.matching import plain
from crome.rows import Row


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
    for row in rows:
        count = len(row.choices or ())
        if count > len(LETTERS):
            raise InputError(
                f"{source}: row {row.id} has {count} choices; letters name at most {len(LETTERS)}."
            )
    return [record_of(row) for row in rows]


def record_of(row: Row) -> Record:
    """A row as a record of this task."""
    return {
        "id": row.id,
        "question": row.question,
        "row": row,
        "answer": row.answer,
        "accepted": (row.answer, *row.answers),
        "options": dict(zip(LETTERS, row.choices or (), strict=False)),
        "kind": row.kind,
        "images": tuple(str(Path(str(image)).absolute()) for image in row.images),
    }


def question(record: Record, style: str) -> Question:
    """The question as it stands (`plain`, as in training), or worded like the benchmarks'.

    The other styles ask for a short answer, and list the choices of rows that have some.
    """
    if style == "plain":
        return Question(record["question"], tuple(record["options"].values()))
    return (choice_question if record["options"] else short_question)(record, style)


def letter_of(record: Record, accepted: Sequence[str] | None = None) -> str | None:
    """The letter of the first accepted answer that is an option's text or, else, a letter.

    None where the row has no choices, or none of them is right: it is scored by its text.
    """
    options = record["options"]
    by_text: dict[str, str] = {}
    for letter, text in options.items():
        by_text.setdefault(plain(text), letter)
    for answer in record["accepted"] if accepted is None else accepted:
        if letter := by_text.get(plain(answer), answer if answer in options else None):
            return letter
    return None


def lettered(records: Sequence[Record]) -> list[Record]:
    """Records with the letter of the right option as their answer.

    Raises:
        InputError: The answer of one is none of its choices, or it has none.
    """
    letters = [letter_of(record) for record in records]
    if None in letters:
        record = records[letters.index(None)]
        raise InputError(
            f"row {record['id']}: the answer {record['answer']!r} is none of its choices "
            f"({', '.join(record['options'].values()) or 'it has none'})."
        )
    return [r | {"answer": letter} for r, letter in zip(records, letters, strict=True)]


def parse(
    record: Record, prediction: Prediction, *, read_letter: Any = option_letter
) -> str | None:
    """The letter of a choice, by letter or text, where a row has choices; else the response."""
    if letter_of(record) is None:
        return prediction.response
    return read_letter(prediction.response, record["options"])


def parse_letter(record: Record, prediction: Prediction) -> str | None:
    """The letter of a choice, by letter or text."""
    return option_letter(prediction.response, record["options"])


def same_option(record: Record, answer: str, letter: str) -> float:
    """1 where both letters are of the same option, or of two with the same text."""
    first, second = (plain(record["options"].get(name, "")) for name in (answer, letter))
    return float(answer == letter or first == second != "")


def compared(comparison: Comparison) -> Tally:
    """The tally of answers that are compared with the accepted ones."""

    def score(record: Record, answer: str) -> float:
        letter = letter_of(record)
        if letter is not None:
            return same_option(record, answer, letter)
        return best(comparison, answer, record["accepted"])

    return averaged(score, "kind")


def tally_letters(name: str, records: Sequence[Record], answers: Answers) -> Scores:
    """Accuracy of letters, also by kind."""
    score = averaged(lambda record, answer: same_option(record, answer, record["answer"]), "kind")
    return score(name, lettered(records), answers)


def baselines(records: Sequence[Record]) -> dict[str, dict[str, Answer]]:
    """The most frequent answer, and the most frequent letter where every row has choices."""
    constant: dict[str, dict[str, Answer]] = {**choices.most_frequent(records)}
    ((name, answers),) = constant.items()
    letters = [letter_of(record) for record in records]
    common = name.removeprefix("always ")
    constant[name] = {
        r["id"]: answers[r["id"]] if letter is None else letter_of(r, (common,))
        for r, letter in zip(records, letters, strict=True)
    }
    if None not in letters:
        constant |= choices.most_frequent(lettered(records))
    return constant


_tolerant = partial(parse, read_letter=tolerant_letter)
ROWS = Task(
    name="rows",
    read=read,
    question=question,
    protocols={
        name: Protocol(parse, compared(comparison)) for name, comparison in COMPARISONS.items()
    }
    | {
        "classes": Protocol(parse, tally_classes),
        "letter": Protocol(parse_letter, tally_letters),
    }
    | choices.own_protocols(tally_letters)
    | {"tolerant": Protocol(_tolerant, compared(COMPARISONS["exact-match"]))},
    baselines=baselines,
    judged=RUBRIC,
    max_new_tokens=32,
    pictures="optional",
    style="plain",
)
