"""SEED-Bench version 1 (arXiv 2307.16125): four options, ranked by likelihood or generated."""

from functools import partial

from crome.evaluation import cells
from crome.evaluation.sources import Row, records_from
from crome.evaluation.tally import accuracy
from crome.evaluation.task import Protocol, Record, Task
from crome.evaluation.tasks import choices
from crome.evaluation.tasks.prompts import choice_question

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


def _record(row: Row, number: int, *, image_only: bool) -> Record | None:
    """A record of the released JSON or the hub, or a JSON line with the gold letter alone."""
    identity = cells.identity(row["question_id"])
    type_id = row.get("question_type_id")
    kind = None if cells.absent(type_id) else cells.whole(type_id)
    if image_only and (identity.startswith("v") or (kind or 0) >= FIRST_VIDEO_TYPE):
        return None
    listed = {x.upper(): cells.text(row.get(f"choice_{x}")) for x in "abcdefgh"}
    options = {letter: text for letter, text in listed.items() if text}
    gold = cells.first(row, "gt_answer", "answer")
    return {
        "id": identity,
        "question": cells.text(row.get("question")),
        "options": options,
        "answer": cells.gold_letter(gold, options or dict.fromkeys("ABCD", ""), index=False),
        "type": TYPES.get(kind) if kind is not None else None,
        "images": cells.pictures(row, "image", "data_id"),
    }


_tally = accuracy("type")
_protocols = {"generate": Protocol(choices.first_character, _tally)} | choices.own_protocols(_tally)
SEED_IMAGE = Task(
    name="seed-image",
    read=partial(records_from, make=partial(_record, image_only=True)),
    question=choice_question,
    protocols=_protocols,
    baselines=choices.most_frequent,
    releases={14232: "image part"},
)
SEED_ALL = Task(
    name="seed-all",
    read=partial(records_from, make=partial(_record, image_only=False)),
    question=choice_question,
    protocols=_protocols,
    baselines=choices.most_frequent,
    releases={17989: "image and video", 19241: "older release"},
    pictures="some",
)
