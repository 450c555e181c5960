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
from crome.evaluation.sources import Row, need, records_from
from crome.evaluation.task import Answer, Answers, Protocol, Question, Record, Scores, Task
from crome.evaluation.tasks import choices
from crome.evaluation.tasks.prompts import OPTION_LETTER, SHORT_ANSWER, check_style

MAX_IMAGES = 7
QUESTION_TYPES = {"multiple-choice": True, "open": False, "short-answer": False}
GUESS_SEED = 42  # of the official parser, once per process: its guesses depend on record order
DOMAINS = {
    "Art and Design": ("Art", "Art_Theory", "Design", "Music"),
    "Business": ("Accounting", "Economics", "Finance", "Manage", "Marketing"),
    "Science": ("Biology", "Chemistry", "Geography", "Math", "Physics"),
    "Health and Medicine": (
        "Basic_Medical_Science",
        "Clinical_Medicine",
        "Diagnostics_and_Laboratory_Medicine",
        "Pharmacy",
        "Public_Health",
    ),
    "Humanities and Social Science": ("History", "Literature", "Psychology", "Sociology"),
    "Tech and Engineering": (
        "Agriculture",
        "Architecture_and_Engineering",
        "Computer_Science",
        "Electronics",
        "Energy_and_Power",
        "Materials",
        "Mechanical_Engineering",
    ),
}
SUBJECT_DOMAIN = {subject: domain for domain, subjects in DOMAINS.items() for subject in subjects}

_COMMAS = re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b")
_SCIENTIFIC = re.compile(r"-?\d+(?:\.\d+)?[eE][+-]?\d+")
_PLAIN = re.compile(r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])")
_LEADS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")


def read(source: str) -> list[Record]:
    """Reads hub rows (parquet, JSON lines), an official `output.json` or `answer_dict_val.json`."""
    return records_from(source, _record)


def _record(row: Row, number: int) -> Record:
    gold = "ground_truth" if "ground_truth" in row else "answer"
    need(row, (gold,))
    kind = cells.text(row.get("question_type")) or "multiple-choice"
    if kind not in QUESTION_TYPES:
        raise InputError(f"question_type {kind!r} is none of {', '.join(QUESTION_TYPES)}.")
    choice, options = QUESTION_TYPES[kind], _options(row)
    answer = _gold(row[gold])
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
    if isinstance(found, list):
        return cells.texts(found)
    if cells.absent(answer):
        raise InputError("the answer is empty; a hidden answer cannot be scored.")
    return cells.text(answer)


def question(record: Record, style: str) -> Question:
    """The prompt of the official LLaVA configuration; `<image k>` markers stay in the text."""
    check_style(style)
    text, options = record["question"], record["options"]
    candidates: tuple[str, ...] = ()
    if style == "rank":
        prompt, candidates = f"Question: {text}\nAnswer:", tuple(options.values())
    elif options:
        lines = "\n".join(f"({letter}) {option}" for letter, option in options.items())
        prompt, candidates = f"{text}\n\n{lines}\n\n{OPTION_LETTER}", tuple(options)
    else:
        prompt = f"{text}\n\n{SHORT_ANSWER}"
    return Question(record["id"], prompt, record["images"], candidates)


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

    `(A)` goes before ` A `, and that before an option's text in responses of more than five words.
    Among several the one whose last mention is furthest right wins.
    """
    for mark in ",.!?;:'":
        response = response.strip(mark)
    padded = f" {response} "
    forms = [{a: f"({a})" for a in options}, {a: f" {a} " for a in options}]
    for form in forms:
        found = {a: padded.rfind(text) for a, text in form.items() if text in padded}
        if found:
            return max(found, key=lambda a: found[a])
    if len(padded.split()) <= 5:
        return None
    lowered = padded.lower()
    places = {a: lowered.rfind(text.lower()) for a, text in options.items()}
    places = {a: place for a, place in places.items() if place >= 0}
    return max(places, key=lambda a: places[a]) if places else None


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
        # An empty ending does not win over a later one, as in the official loop.
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

    A letter must equal the gold letter; of an open answer one number must equal a gold number or
    one text contain a gold text.
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
    """Micro accuracy, also by domain and subject; unreadable choices guessed or wrong."""
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
    parts = (lambda r: SUBJECT_DOMAIN.get(r["subject"]), choices.field("subject"))
    scores = choices.tally_rows(name, records, rows, parts)
    read_choices = [rows[r["id"]] for r in records if r["choice"]]
    counts = {
        "multiple_choice": len(read_choices),
        "open": len(records) - len(read_choices),
        "multiple_choice_correct_without_guesses": round(sum(read_choices)) - lucky,
    } | ({"random_guesses": guesses, "random_guesses_right": lucky} if guess else {})
    return Scores(scores.metrics, rows, scores.counts | counts)


def _parsed(record: Record, prediction: Prediction) -> Any:
    return prediction.response if record["choice"] else parse_open(prediction.response)


def baselines(records: Sequence[Record]) -> dict[str, dict[str, Answer]]:
    """The most frequent letter on every question with options, where there are any."""
    lettered = [r for r in records if r["choice"] and isinstance(r["answer"], str)]
    return choices.majority_letter(lettered) if lettered else {}


MMMU = Task(
    name="mmmu",
    read=read,
    question=question,
    protocols={
        "official": Protocol(parse, partial(tally, guess=True)),
        "no-guess": Protocol(parse, partial(tally, guess=False)),
        "tolerant": Protocol(parse_tolerant, partial(tally, guess=False)),
        "parsed": Protocol(_parsed, partial(tally, guess=False)),
    },
    baselines=baselines,
    releases={900: "validation"},
    pictures="some",
)
