"""MMMU (arXiv 2311.16502): college-level questions, 847 with options and 53 open in validation.

The parsing rules are those of the official `eval_utils.py`; `official` also guesses as it does.
"""

import random
import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from crome.errors import InputError
from crome.evaluation import cells
from crome.evaluation.predictions import Prediction
from crome.evaluation.sources import Row, records_from
from crome.evaluation.tally import correct, mean_metrics
from crome.evaluation.task import Answer, Answers, Protocol, Question, Record, Scores, Task
from crome.evaluation.tasks import choices
from crome.evaluation.tasks.prompts import OPTION_LETTER, SHORT_ANSWER

MAX_IMAGES = 7
QUESTION_TYPES = {"multiple-choice": True, "open": False, "short-answer": False}
GUESS_SEED = 42  # of the official parser, once per process: its guesses depend on record order
DOMAINS = {
    "Art and Design": "Art Art_Theory Design Music",
    "Business": "Accounting Economics Finance Manage Marketing",
    "Science": "Biology Chemistry Geography Math Physics",
    "Health and Medicine": "Basic_Medical_Science Clinical_Medicine "
    "Diagnostics_and_Laboratory_Medicine Pharmacy Public_Health",
    "Humanities and Social Science": "History Literature Psychology Sociology",
    "Tech and Engineering": "Agriculture Architecture_and_Engineering Computer_Science "
    "Electronics Energy_and_Power Materials Mechanical_Engineering",
}
SUBJECT_DOMAIN = {
    subject: domain for domain, subjects in DOMAINS.items() for subject in subjects.split()
}

_COMMAS = re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b")
_SCIENTIFIC = re.compile(r"-?\d+(?:\.\d+)?[eE][+-]?\d+")
_PLAIN = re.compile(r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])")
_LEADS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")


def _record(row: Row, number: int) -> Record:
    """A hub row, or an entry of an official `output.json` or `answer_dict_val.json`."""
    kind = cells.text(row.get("question_type")) or "multiple-choice"
    if kind not in QUESTION_TYPES:
        raise InputError(f"question_type {kind!r} is none of {', '.join(QUESTION_TYPES)}.")
    choice, options = QUESTION_TYPES[kind], _options(row)
    answer = _gold(cells.first(row, "ground_truth", "answer"))
    if choice and options and isinstance(answer, str):
        answer = cells.gold_letter(answer, options, index=False)
    identity = cells.identity(row.get("id", number))
    subject = re.fullmatch(r"(?:dev|validation|test)_(.+)_\d+", identity)
    images = cells.images_in(*(row.get(f"image_{k}") for k in range(1, MAX_IMAGES + 1)))
    return {
        "id": identity,
        "question": cells.text(row.get("question")),
        "options": options,
        "answer": answer,
        "choice": choice,
        "images": images or cells.pictures(row),
        "subject": subject[1] if subject else None,
    }


def _options(row: Row) -> dict[str, str]:
    if row.get("index2ans"):
        return dict(row["index2ans"])
    # The hub keeps the list as its Python source; open questions have an empty one.
    options = row.get("options")
    return {} if cells.absent(options) else cells.options(options)


def _gold(answer: Any) -> Any:
    """A letter or text, or a list of texts; an interval such as "[0, 1)" is a text."""
    found = cells.literal(answer) if isinstance(answer, str) else answer
    return cells.texts(found) if isinstance(found, list) else cells.gold(answer)


def question(record: Record, style: str) -> Question:
    """The prompt of the official LLaVA configuration; `<image k>` markers stay in the text."""
    text, options = record["question"], record["options"]
    if style == "rank":
        return Question(f"Question: {text}\nAnswer:", tuple(options.values()))
    if not options:
        return Question(f"{text}\n\n{SHORT_ANSWER}")
    lines = "\n".join(f"({letter}) {option}" for letter, option in options.items())
    return Question(f"{text}\n\n{lines}\n\n{OPTION_LETTER}", tuple(options))


def parse(record: Record, prediction: Prediction) -> Any:
    """A letter (None when there is none to read), or the numbers and texts of an open answer."""
    if not record["choice"]:
        return parse_open(prediction.response)
    if not record["options"]:
        raise InputError(
            f"record {record['id']}: these references hold no options, which reading a response "
            "needs: use the benchmark's records, or --protocol parsed for parsed answers."
        )
    return parse_choice(prediction.response, record["options"])


def parse_tolerant(record: Record, prediction: Prediction) -> Any:
    """A letter stated anywhere in the response; open answers as officially."""
    if not record["choice"]:
        return parse_open(prediction.response)
    return choices.tolerant(record, prediction)


def parse_choice(response: str, options: Mapping[str, str]) -> str | None:
    """The letter that a response names, by the official rules.

    `(A)` is looked for first, then ` A ` with spaces around it, and in responses of more than five
    words an option's text. Of several that are found the last mention counts.
    """
    for mark in ",.!?;:'":
        response = response.strip(mark)
    padded = f" {response} "
    found = {a: padded.rfind(f"({a})") for a in options if f"({a})" in padded}
    found = found or {a: padded.rfind(f" {a} ") for a in options if f" {a} " in padded}
    if not found and len(padded.split()) > 5:
        lowered = padded.lower()
        found = {a: lowered.rfind(text.lower()) for a, text in options.items()}
        found = {a: place for a, place in found.items() if place >= 0}
    return max(found, key=lambda a: found[a]) if found else None


def parse_open(response: str) -> list[str | float]:
    """Every text and number that an open response may mean, normalised."""
    tails = _tails(response)
    numbers = [n for tail in tails for n in _numbers(tail)]
    return [value for text in tails + numbers for value in _normalised(text)]


def _tails(response: str) -> list[str]:
    """The shortest ending after a word such as "is" of each line, or the whole response.

    The official code also means to cut at full stops, but looks for a capital after lower-casing.
    """
    text = response.strip().strip(".").lower()
    lines, tails = text.split("\n"), []
    for number, line in enumerate(lines, start=1):
        leads = (*_LEADS, "=") if number == len(lines) else _LEADS
        endings = [line.split(lead)[-1].strip() for lead in leads if lead in line]
        # In the official loop an empty ending gives way to any later one.
        shortest = ""
        for ending in endings:
            if not shortest or len(ending) < len(shortest):
                shortest = ending
        if shortest and shortest not in tuple(":,.!?;'"):
            tails.append(shortest)
    return tails or [text]


def _numbers(text: str) -> list[str]:
    return _COMMAS.findall(text) + _SCIENTIFIC.findall(text) + _PLAIN.findall(text)


def _normalised(text: str) -> list[str | float]:
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        text = text.lower()
        return [f" {text}", f"{text} "] if len(text) == 1 else [text]


def is_right(record: Record, answer: Any) -> bool:
    """Whether a parsed answer is right.

    A letter must equal the gold letter. Of an open answer one number must equal a gold number, or
    one text must contain a gold text.
    """
    gold = record["answer"]
    if record["choice"]:
        return answer in gold if isinstance(gold, list) else answer == gold
    golds = [v for g in (gold if isinstance(gold, list) else [gold]) for v in _normalised(str(g))]
    texts = [g for g in golds if isinstance(g, str)]
    return any(
        any(text in value for text in texts) if isinstance(value, str) else value in golds
        for value in answer or ()
    )


def tally(name: str, records: Sequence[Record], answers: Answers, *, guess: bool) -> Scores:
    """Accuracy over all questions, by domain and by subject.

    A choice that could not be read counts as wrong, or is guessed as the official script does.
    """
    generator = random.Random(GUESS_SEED)
    rows: dict[str, float] = {}
    guesses = lucky = 0
    for record in records:
        identity = record["id"]
        answer = answers.get(identity)
        if guess and record["choice"] and identity in answers and answer is None:
            answer = generator.choice(list(record["options"]))
            guesses += 1
            lucky += is_right(record, answer)
        rows[identity] = float(is_right(record, answer))
    metrics = mean_metrics(name, records, rows, (_domain, "subject"))
    read_choices = [rows[r["id"]] for r in records if r["choice"]]
    counts = {
        "multiple_choice": len(read_choices),
        "open": len(records) - len(read_choices),
        "multiple_choice_correct_without_guesses": round(sum(read_choices)) - lucky,
    } | ({"random_guesses": guesses, "random_guesses_right": lucky} if guess else {})
    return Scores(metrics, rows, correct(rows) | counts)


def _domain(record: Record) -> str | None:
    return SUBJECT_DOMAIN.get(record["subject"])


def _parsed(record: Record, prediction: Prediction) -> Any:
    return prediction.response if record["choice"] else parse_open(prediction.response)


def baselines(records: Sequence[Record]) -> dict[str, dict[str, Answer]]:
    """The most frequent letter on every question with options, where there are any."""
    lettered = [r for r in records if r["choice"] and isinstance(r["answer"], str)]
    return choices.most_frequent(lettered) if lettered else {}


_no_guess = partial(tally, guess=False)
MMMU = Task(
    name="mmmu",
    read=partial(records_from, make=_record),
    question=question,
    protocols={
        "official": Protocol(parse, partial(tally, guess=True)),
        "no-guess": Protocol(parse, _no_guess),
        "tolerant": Protocol(parse_tolerant, _no_guess),
        "parsed": Protocol(_parsed, _no_guess),
    },
    baselines=baselines,
    releases={900: "validation"},
    pictures="some",
)
