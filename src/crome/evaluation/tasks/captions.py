"""Captions compared with those of several people by CIDEr (arXiv 1411.5726), as COCO does it.

The score is computed by the reference implementation, pycocoevalcap, an extra of this package
(`crome[captions]`). Its tokenizer is a Java program; `cider-plain` does without it by splitting at
anything that is no letter or digit, and is another number.
"""

import re
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from crome.errors import InputError
from crome.evaluation import cells
from crome.evaluation.predictions import Prediction
from crome.evaluation.sources import Row, json_object, need, read_rows, records_from
from crome.evaluation.tally import mean_metric
from crome.evaluation.task import Answer, Answers, Protocol, Question, Record, Scores, Task

SENTENCE = "Provide a one-sentence caption for the provided image."
SHORT = "A short image description:"
MOST = 10.0  # the score of a caption that is the same as all references
Texts = dict[str, list[str]]


def _rows(source: str) -> list[Row]:
    """The images of COCO's annotations (`captions_val2014.json`), or rows with an image each."""
    path = Path(source)
    if path.suffix.lower() == ".json" and path.is_file():
        with path.open("rb") as file:
            is_object = file.read(64).lstrip().startswith(b"{")
        if is_object and {"images", "annotations"} <= json_object(path).keys():
            return _images(path)
    return read_rows(source)


def _images(path: Path) -> list[Row]:
    content = json_object(path)
    captions: dict[str, list[str]] = {}
    for row in content["annotations"]:
        need(row, ("image_id", "caption"), str(path))
        captions.setdefault(cells.identity(row["image_id"]), []).append(row["caption"])
    files = {cells.identity(row["id"]): row["file_name"] for row in content["images"]}
    absent = [identity for identity in captions if identity not in files]
    if absent:
        raise InputError(f"{path}: image {absent[0]} has captions and no entry under images.")
    return [{"id": i, "captions": texts, "image": files[i]} for i, texts in captions.items()]


def _record(row: Row, number: int) -> Record:
    """An image with its captions, a list or a single text, under "captions" or "answer"."""
    names = ("captions", "caption", "answer", "answers")
    captions = next((tuple(found) for name in names if (found := cells.texts(row.get(name)))), ())
    identity = next((row[k] for k in ("id", "image_id", "question_id") if k in row), number)
    if not captions:
        raise InputError(f"image {identity} has no captions to compare with.")
    return {
        "id": cells.identity(identity),
        "question": SENTENCE,
        "answer": captions,
        "images": cells.pictures(row),
    }


def question(record: Record, style: str) -> Question:
    """LLaVA's caption sentence, or InstructBLIP's."""
    return Question(SHORT if style == "instructblip" else SENTENCE)


def parse(record: Record, prediction: Prediction) -> str:
    """The response on one line."""
    return " ".join(prediction.response.split())


def tally(
    name: str,
    records: Sequence[Record],
    answers: Answers,
    *,
    tokenize: Callable[[Texts], Texts],
) -> Scores:
    """CIDEr-D, 0 to 10; document frequencies are those of the references given.

    Raises:
        InputError: pycocoevalcap, or Java for its tokenizer, is not there, or there is but one
            image, on which the score is not defined.
    """
    try:
        from pycocoevalcap.cider.cider import Cider
    except ImportError as error:
        raise InputError("CIDEr needs pycocoevalcap: install crome[captions].") from error
    if len(records) < 2:
        raise InputError("CIDEr weighs words by how many images they describe: give at least two.")
    golds = tokenize({r["id"]: [" ".join(text.split()) for text in r["answer"]] for r in records})
    # A missing caption has no words in common with any reference.
    captions = tokenize({r["id"]: [answers.get(r["id"]) or ""] for r in records})
    _, each = Cider().compute_score(golds, captions)
    rows = {r["id"]: float(value) for r, value in zip(records, each, strict=True)}
    shares = {identity: value / MOST for identity, value in rows.items()}
    return Scores({name: mean_metric(records, shares, "points", MOST)}, rows)


def ptb(texts: Texts) -> Texts:
    """COCO's tokenizer: Penn Treebank, lower case, punctuation removed.

    Raises:
        InputError: There is no Java to run it.
    """
    if shutil.which("java") is None:
        raise InputError(
            "COCO's tokenizer is a Java program and there is no `java`: install one, or use "
            "--protocol cider-plain, which is another number."
        )
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    lines = {key: [{"caption": text} for text in group] for key, group in texts.items()}
    return dict(PTBTokenizer().tokenize(lines))


def plain(texts: Texts) -> Texts:
    """Lower-case runs of letters and digits."""
    return {
        key: [" ".join(re.findall(r"\w+", text.lower())) for text in group]
        for key, group in texts.items()
    }


def baselines(records: Sequence[Record]) -> dict[str, dict[str, Answer]]:
    """The first reference of another image: a good sentence about something else."""
    firsts = [record["answer"][0] for record in records]
    others = zip(records, firsts[1:] + firsts[:1], strict=True)
    return {"another image's caption": {record["id"]: text for record, text in others}}


CAPTIONS = Task(
    name="captions",
    read=partial(records_from, make=_record, rows=_rows),
    question=question,
    protocols={
        "cider": Protocol(parse, partial(tally, tokenize=ptb)),
        "cider-plain": Protocol(parse, partial(tally, tokenize=plain)),
    },
    baselines=baselines,
    releases={5000: "Karpathy's COCO test split", 40504: "COCO val2014"},
    max_new_tokens=30,
)
