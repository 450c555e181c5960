"""People's own rows, as `crome train` reads them; easy-VQA is such a file."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from crome.data.reader import read_rows
from crome.errors import InputError
from crome.evaluation.answers import exact_match, vqa_accuracy
from crome.evaluation.predictions import Prediction
from crome.evaluation.task import Answer, Answers, Protocol, Question, Record, Scores, Task
from crome.evaluation.tasks import choices
from crome.evaluation.tasks.prompts import LETTERS, check_style, multiple_choice, short_answer


def read(source: str) -> list[Record]:
    """Reads rows, LLaVA conversations or LAVIS triples; a row's `choices` become its options.

    Pictures need not exist: scoring does not open them.
    """
    return [
        {
            "id": row.id,
            "question": row.question,
            "answer": row.answer,
            "options": dict(zip(LETTERS, row.choices or (), strict=False)),
            "kind": row.kind,
            "images": tuple(str(image) for image in row.images),
        }
        for row in read_rows(Path(source), look=False)
    ]


def question(record: Record, style: str) -> Question:
    """The question, with lettered options where it has any; `official` is the bare question."""
    check_style(style)
    if not record["options"]:
        return Question(record["id"], short_answer(record["question"], style), record["images"])
    prompt, candidates = multiple_choice(record["question"], record["options"], style)
    return Question(record["id"], prompt, record["images"], candidates)


def gold_letter(record: Record) -> str:
    """The letter of the option that is the answer; the answer may be the letter itself.

    Raises:
        InputError: The answer is none of the choices, or there are none.
    """
    options: Mapping[str, str] = record["options"]
    if letter := _letter(options, record["answer"]):
        return letter
    raise InputError(
        f"row {record['id']}: the answer {record['answer']!r} is none of its choices "
        f"({', '.join(options.values()) or 'it has none'})."
    )


def _letter(options: Mapping[str, str], answer: str | None) -> str | None:
    by_text = {text: letter for letter, text in options.items()}
    return by_text.get(answer or "", answer if answer in options else None)


def _text(record: Record, prediction: Prediction) -> str:
    return prediction.response


def tally_texts(
    name: str,
    records: Sequence[Record],
    answers: Answers,
    *,
    metric: Callable[[str, str], float],
) -> Scores:
    """The mean of a metric of response and answer, which is 0 or 1, also by kind."""
    rows = {
        r["id"]: metric(answers[r["id"]], r["answer"]) if r["id"] in answers else 0.0
        for r in records
    }
    return choices.tally_rows(name, records, rows, [choices.field("kind")])


def tally_letters(name: str, records: Sequence[Record], answers: Answers) -> Scores:
    """Accuracy of letters, also by kind; an answer that is an option's text is its letter."""
    lettered = [record | {"answer": gold_letter(record)} for record in records]
    answers = {
        r["id"]: _letter(r["options"], answers[r["id"]]) for r in records if r["id"] in answers
    }
    return choices.accuracy(name, lettered, answers, parts=[choices.field("kind")])


def baselines(records: Sequence[Record]) -> dict[str, dict[str, Answer]]:
    """The most frequent answer, and the most frequent letter where every row has choices."""
    answer = Counter(record["answer"] for record in records).most_common(1)[0][0]
    constant: dict[str, dict[str, Answer]] = {
        f"always {answer}": {record["id"]: answer for record in records}
    }
    if all(record["options"] for record in records):
        lettered = [record | {"answer": gold_letter(record)} for record in records]
        constant |= choices.majority_letter(lettered)
    return constant


ROWS = Task(
    name="rows",
    read=read,
    question=question,
    protocols={
        "exact-match": Protocol(_text, partial(tally_texts, metric=exact_match)),
        "vqa-accuracy": Protocol(_text, partial(tally_texts, metric=vqa_accuracy)),
        "letter": Protocol(choices.first_character, tally_letters),
    }
    | choices.own_protocols(tally_letters),
    baselines=baselines,
)
