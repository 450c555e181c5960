"""TextVQA (arXiv 1904.08920): questions about text in pictures, answered by ten annotators.

The rule is that of M4C's evaluator, which LLaVA uses: VQAv2's, with annotators in the same normal
form as the response.
"""

from collections import Counter
from collections.abc import Sequence
from functools import partial

from crome.errors import InputError
from crome.evaluation import cells
from crome.evaluation.predictions import Prediction
from crome.evaluation.sources import Row, need, records_from
from crome.evaluation.task import Answers, Protocol, Record, Scores, Task, mean_metrics
from crome.evaluation.tasks import choices
from crome.evaluation.tasks.vqav2 import agreement, few_annotators, question
from crome.evaluation.vqa_text import normalize


def read(source: str) -> list[Record]:
    """Reads the released `TextVQA_0.5.1_val.json`, or hub rows."""
    return records_from(source, _record)


def _record(row: Row, number: int) -> Record:
    need(row, ("question_id", "question", "answers"))
    given = cells.texts(row["answers"])
    if not given:
        raise InputError("there are no answers of annotators.")
    image = cells.text(row.get("image_id"))
    return {
        "id": cells.identity(row["question_id"]),
        "question": cells.text(row["question"]),
        "answers": tuple(given),
        "answer": Counter(given).most_common(1)[0][0],
        "images": cells.pictures(row) or ((f"{image}.jpg",) if image else ()),
    }


def plain(text: str) -> str:
    """The normal form of M4C's evaluator: commas, question marks and a possessive 's come first."""
    lowered = text.lower().replace(",", "").replace("?", "").replace("'s", " 's")
    return normalize(lowered.strip())


def parse(record: Record, prediction: Prediction) -> str:
    """The response in the normal form."""
    return plain(prediction.response)


def tally(name: str, records: Sequence[Record], answers: Answers) -> Scores:
    """Mean agreement with the annotators, in per cent."""
    rows = {
        r["id"]: agreement(answers[r["id"]], [plain(given) for given in r["answers"]])
        if r["id"] in answers
        else 0.0
        for r in records
    }
    metrics = mean_metrics(name, records, rows, unit="percent", top=100)
    return Scores(metrics, rows, warnings=few_annotators(records))


TEXTVQA = Task(
    name="textvqa",
    read=read,
    question=question,
    protocols={"m4c": Protocol(parse, tally)},
    baselines=partial(choices.most_frequent, normal=plain),
    releases={5000: "validation"},
)
