"""SEED-Bench version 1 (arXiv 2307.16125): four options, ranked by likelihood or generated."""

from functools import partial

from crome.evaluation import cells
from crome.evaluation.sources import Row, need, records_from
from crome.evaluation.task import Protocol, Question, Record, Task
from crome.evaluation.tasks import choices
from crome.evaluation.tasks.prompts import multiple_choice

TYPES = {
    1: "scene understanding",
    2: "instance identity",
    3: "instance attribute",
    4: "instance location",
    5: "instance counting",
    6: "spatial relation",
    7: "instance interaction",
    8: "visual reasoning",
    9: "text recognition",
    10: "action recognition",
    11: "action prediction",
    12: "procedure understanding",
}
FIRST_VIDEO_TYPE = 10


def read(source: str, *, image_only: bool) -> list[Record]:
    """Reads the released JSON, hub rows, or JSON lines with the gold letters alone."""
    records = records_from(source, _record)
    return [r for r in records if r["image"] or not image_only]


def _record(row: Row, number: int) -> Record:
    gold = "gt_answer" if "gt_answer" in row else "answer"
    need(row, ("question_id", gold))
    identity = cells.identity(row["question_id"])
    type_id = row.get("question_type_id")
    kind = None if cells.absent(type_id) else cells.whole(type_id)
    listed = {x.upper(): cells.text(row.get(f"choice_{x}")) for x in "abcdefgh"}
    options = {letter: text for letter, text in listed.items() if text}
    return {
        "id": identity,
        "question": cells.text(row.get("question")),
        "options": options,
        "answer": cells.gold_letter(row[gold], options or dict.fromkeys("ABCD", ""), index=False),
        "type": TYPES.get(kind) if kind is not None else None,
        "image": not (identity.startswith("v") or (kind or 0) >= FIRST_VIDEO_TYPE),
        "images": cells.pictures(row, "image", "data_id"),
    }


def question(record: Record, style: str) -> Question:
    """Lettered options to generate from, or the official bare question to rank them after."""
    prompt, candidates = multiple_choice(record["question"], record["options"], style)
    return Question(record["id"], prompt, record["images"], candidates)


_tally = partial(choices.accuracy, parts=(choices.field("type"),))
_protocols = {"generate": Protocol(choices.first_character, _tally)} | choices.own_protocols(_tally)


SEED_IMAGE = Task(
    name="seed-image",
    read=partial(read, image_only=True),
    question=question,
    protocols=_protocols,
    baselines=choices.majority_letter,
    releases={14232: "image part"},
)
SEED_ALL = Task(
    name="seed-all",
    read=partial(read, image_only=False),
    question=question,
    protocols=_protocols,
    baselines=choices.majority_letter,
    releases={17989: "image and video", 19241: "older release"},
    pictures="some",
)
