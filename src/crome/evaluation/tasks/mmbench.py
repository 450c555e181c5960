"""MMBench (arXiv 2307.06281): a question counts when every rotation of its options is answered."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from crome.errors import InputError
from crome.evaluation import cells
from crome.evaluation.predictions import Prediction
from crome.evaluation.sources import Row, read_rows, records_from
from crome.evaluation.tally import correct, mean_metrics
from crome.evaluation.task import Answer, Answers, Protocol, Question, Record, Scores, Task, grouped
from crome.evaluation.tasks import choices
from crome.evaluation.tasks.prompts import multiple_choice

NONE_OF_THESE = "Z"  # the letter that the matching prompt offers for it
REFUSALS = (  # which the toolkit reads as none of these, whatever else is mentioned
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
PASS_STEP = 1_000_000  # pass r of question q has the index q + r · 1,000,000
RELEASES = {1176: "dev-20230712", 1164: "dev-en"}  # by number of questions
_PUNCTUATION = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))


def read(source: str) -> list[Record]:
    """Reads the released TSV, hub rows or JSON lines, one record per pass.

    Passes that the table lacks are made here: the released ones hold the first passes alone, and a
    question counts only with all of its passes.
    """
    rows = read_rows(source)
    shared = {cells.text(row.get("index")): row.get("image") for row in rows}
    records = records_from(source, partial(_record, shared=shared), lambda _: rows)
    groups = grouped(records, _question_of).values()
    return records + [made for members in groups for made in _missing_passes(members, source)]


def _question_of(record: Record) -> str:
    return str(record["group"])


def _missing_passes(members: Sequence[Record], source: str) -> list[Record]:
    """The passes of a question that its table lacks, made from the first.

    Raises:
        InputError: The first is lacking too.
    """
    options, found = members[0]["options"], {record["pass"]: record for record in members}
    n, last = len(options), list(options)[-1]
    fixed = len({record["options"].get(last) for record in members}) == 1
    if n > 2 and fixed and set(found) == set(range(n - 1)):
        return []  # some released questions leave the last option, as "none of these", in its place
    if 0 not in found:
        raise InputError(
            f"{source}: question {members[0]['group']} has no pass 0, the one whose index is below "
            f"{PASS_STEP:,}: CircularEval needs all of a question's passes."
        )
    return [record for record in circular_passes(found[0]) if record["pass"] not in found]


def _record(row: Row, number: int, *, shared: Mapping[str, Any]) -> Record:
    index = cells.whole(row["index"])
    if not cells.absent(row.get("options")):
        options = cells.options(row["options"])
    else:
        listed = {letter: cells.text(row.get(letter)) for letter in cells.LETTERS[:8]}
        options = {letter: text for letter, text in listed.items() if text}
    if len(options) < 2:
        raise InputError(f"index {index} has {len(options)} options; expected two or more.")
    answer = cells.gold(row.get("answer"))
    if answer is not None:
        answer = cells.gold_letter(answer, options, index=False)
    image = row.get("image")
    image = shared.get(image, image) if isinstance(image, str) else image  # an index stands for it
    return {
        "id": str(index),
        "group": str(index % PASS_STEP),
        "pass": index // PASS_STEP,
        "question": cells.text(row["question"]),
        "hint": cells.text(row.get("hint")),
        "options": options,
        "answer": answer,
        "images": cells.images_in(cells.decoded(image)) or cells.pictures(row),
        "category": cells.text(row.get("category")) or None,
        "l2-category": cells.text(row.get("l2-category")) or None,
    }


def circular_passes(record: Record) -> list[Record]:
    """All rotations of a first pass: in pass r the options stand r places further down."""
    letters, texts = list(record["options"]), list(record["options"].values())
    n = len(letters)
    return [
        record
        | {
            "id": str(int(record["id"]) + r * PASS_STEP),
            "pass": r,
            "options": dict(zip(letters, texts[n - r :] + texts[: n - r], strict=True)),
            "answer": record["answer"] and letters[(letters.index(record["answer"]) + r) % n],
        }
        for r in range(n)
    ]


def question(record: Record, style: str) -> Question:
    """Hint, question, lettered options and the option-letter sentence."""
    return multiple_choice(record["question"], record["options"], style, record["hint"])


def parse(record: Record, prediction: Prediction) -> str | None:
    """The rules that come before any LLM: one option letter, else one option text.

    The letter must be the only one among the words and one of the last four; the text must be the
    only option contained in a response no longer than twice all options together.
    """
    options, response = record["options"], prediction.response
    if any(refusal in response for refusal in REFUSALS):
        return None
    words = response.translate(_PUNCTUATION).split()
    letters = [letter for letter in options if letter in words]
    if len(letters) == 1 and words.index(letters[0]) > len(words) - 5:
        return str(letters[0])
    if not letters and NONE_OF_THESE in words:
        return None
    lowered = response.lower()
    if len(lowered) > 2 * sum(len(text) for text in options.values()):
        return None
    mentioned = [letter for letter, text in options.items() if text.lower() in lowered]
    return str(mentioned[0]) if len(mentioned) == 1 else None


def tally(name: str, records: Sequence[Record], answers: Answers, *, circular: bool) -> Scores:
    """Share of questions with every pass right, or with the first pass right."""
    right = {r["id"]: answers.get(r["id"]) == r["answer"] for r in records}
    questions, rows = [], {}
    for group, passes in grouped(records, _question_of).items():
        first = min(passes, key=lambda record: record["pass"])
        counted = passes if circular else [first]
        rows[group] = float(all(right[record["id"]] for record in counted))
        questions.append(first | {"id": group})
    n = len(questions)
    if n in RELEASES:
        name = name.replace("mmbench", f"mmbench-{RELEASES[n]}", 1)
    metrics = mean_metrics(name, questions, rows, ("l2-category", "category"))
    return Scores(metrics, rows, correct(rows) | {"questions": n, "passes": len(records)})


def baselines(records: Sequence[Record]) -> dict[str, dict[str, Answer]]:
    """The most frequent letter of the first passes; rotation makes it wrong by construction."""
    (name,) = choices.most_frequent([r for r in records if r["pass"] == 0])
    return {name: {r["id"]: name[-1] for r in records}}


_circular = partial(tally, circular=True)
MMBENCH = Task(
    name="mmbench",
    read=read,
    question=question,
    protocols={
        "circular-rules": Protocol(parse, _circular),
        "vanilla-rules": Protocol(parse, partial(tally, circular=False)),
    }
    | {f"circular-{k}": v for k, v in choices.own_protocols(_circular).items()},
    baselines=baselines,
    unit=_question_of,
    whole=_question_of,
)
