"""Published layouts of image-text data, as entries of the row schema.

Each function reads one layout from the files its authors distribute and yields (place, entry):
entries are rows, conversations or triples, which `RowReader` then checks like any others. Images
are named relative to the folder `images` of the source. `docs/data.md` shows a sample of each.
"""

import csv
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

from crome.data.entries import entries, read_json
from crome.data.forms import CAPTION
from crome.data.problems import Problem, show
from crome.errors import InputError

Entries = Iterator[tuple[str, object]]
Split = Literal["train", "val", "test"]

OCR_SPLITS = {1: "train", 2: "val", 3: "test"}
FIELD = "of its layout; the file may be of another version"


def rows(file: Path, folder: str | None = None) -> Entries:
    """JSON lines, LLaVA conversations, LAVIS triples and Parquet: whatever `crome validate` reads.

    LLaVA-Pretrain, the LLaVA-1.5 mixture, LVIS-Instruct4V, LAMM and ShareGPT4V come like this.

    Args:
        file: The file.
        folder: Only entries whose image lies in this folder; "" for entries without image.
    """
    for place, entry in entries(file):
        if folder is None or _in_folder(entry, folder):
            yield place, entry


def _in_folder(entry: object, folder: str) -> bool:
    image = entry.get("image") if isinstance(entry, dict) else None
    if isinstance(image, list):
        image = image[0] if image else None
    return image is None if folder == "" else str(image).startswith(folder.rstrip("/") + "/")


def vqa(questions: Path, annotations: Path, image: str = "COCO_train2014_{:012d}.jpg") -> Entries:
    """VQAv2 and OK-VQA: questions and annotations, joined by question id.

    The answer is the one most annotators gave.

    Args:
        questions: The file of questions.
        annotations: The file of answers.
        image: Name of the image with an id.
    """
    by_id = {q["question_id"]: q for q in _list(questions, "questions")}

    def make(entry: dict[str, Any]) -> dict[str, Any]:
        number = entry["question_id"]
        answers = [a["answer"] for a in entry["answers"]]
        return {
            "id": number,
            "image": image.format(entry["image_id"]),
            "question": by_id[number]["question"],
            "answer": entry.get("multiple_choice_answer") or most_frequent(answers),
        }

    yield from _made(_list(annotations, "annotations"), make, "annotation")


def aokvqa(file: Path, image: str = "{:012d}.jpg", choices: bool = False) -> Entries:
    """A-OKVQA.

    Args:
        file: aokvqa_v1p0_train.json.
        image: Name of the image with an id.
        choices: Whether to ask for one of the options instead of the most frequent direct answer.
    """

    def make(entry: dict[str, Any]) -> dict[str, Any]:
        options, right = entry["choices"], entry["correct_choice_idx"]
        answer = options[right] if choices else most_frequent(entry["direct_answers"])
        row = {
            "id": entry["question_id"],
            "image": image.format(entry["image_id"]),
            "question": entry["question"],
            "answer": answer,
        }
        return row | ({"choices": options} if choices else {})

    yield from _made(_list(file), make, "row")


def ocrvqa(file: Path, split: Split = "train") -> Entries:
    """OCR-VQA: questions on book covers.

    Args:
        file: dataset.json.
        split: Its own.
    """
    for name, entry in _dict(file).items():
        place = f"entry {name}"
        try:
            if OCR_SPLITS[entry["split"]] != split:
                continue
            suffix = Path(entry["imageURL"]).suffix or ".jpg"
            pairs = zip(entry["questions"], entry["answers"], strict=True)
        except (KeyError, TypeError, ValueError) as error:
            yield place, _problem(place, error, entry)
            continue
        for number, (question, answer) in enumerate(pairs):
            row = {"image": f"{name}{suffix}", "question": question, "answer": answer}
            yield place, row | {"id": f"{name}/{number}"}


def textcaps(file: Path, ocr: Path | None = None) -> Entries:
    """TextCaps: captions of pictures with writing.

    Args:
        file: TextCaps_0.1_train.json.
        ocr: TextVQA_Rosetta_OCR_v0.2_train.json, whose tokens are then shown with the question.
    """
    tokens = {e["image_id"]: e["ocr_tokens"] for e in _list(ocr, "data")} if ocr else {}

    def make(entry: dict[str, Any]) -> dict[str, Any]:
        read = tokens.get(entry["image_id"])
        question = f"{CAPTION}\nOCR tokens: {', '.join(read)}" if read else CAPTION
        return {
            "id": entry.get("caption_id"),
            "image": f"{entry['image_id']}.jpg",
            "question": question,
            "answer": entry["caption_str"],
        }

    yield from _made(_list(file, "data"), make, "caption")


def coco_captions(file: Path) -> Entries:
    """COCO captions.

    Args:
        file: captions_train2017.json, or that of another year.
    """
    names = {image["id"]: image["file_name"] for image in _list(file, "images")}

    def make(entry: dict[str, Any]) -> dict[str, Any]:
        picture = names[entry["image_id"]]
        return {
            "id": entry["id"],
            "image": picture,
            "question": CAPTION,
            "answer": entry["caption"],
        }

    yield from _made(_list(file, "annotations"), make, "annotation")


def karpathy(file: Path, split: Split = "train") -> Entries:
    """Karpathy's files of COCO (dataset_coco.json) and Flickr30k (dataset_flickr30k.json).

    Args:
        file: The file.
        split: Its own; COCO's "restval" counts as training, as is usual.
    """
    for number, entry in enumerate(_list(file, "images"), start=1):
        place = f"image {number}"
        try:
            if entry["split"].replace("restval", "train") != split:
                continue
            image = str(Path(entry.get("filepath", "")) / entry["filename"])
            captions = [sentence["raw"] for sentence in entry["sentences"]]
        except (KeyError, TypeError, AttributeError) as error:
            yield place, _problem(place, error, entry)
            continue
        for caption in captions:
            yield place, {"image": image, "question": CAPTION, "answer": caption}


def flickr30k(file: Path) -> Entries:
    """Flickr30k's own file of captions, results_20130124.token: name#number, tab, caption.

    Args:
        file: The file.
    """
    if not file.is_file():
        raise InputError(f"no file {file}; expected lines of name#number, tab, caption.")
    with file.open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, start=1):
            place = f"line {number}"
            name, tab, caption = line.rstrip("\n").partition("\t")
            if tab:
                image = name.partition("#")[0]
                yield place, {"image": image, "question": CAPTION, "answer": caption, "id": name}
            elif line.strip():
                yield place, Problem(place, "row", show(line), "name#number, tab, caption")


def scienceqa(
    problems: Path,
    splits: Path | None = None,
    split: Split = "train",
    with_image: bool = False,
    hint: bool = True,
    explain: bool = False,
) -> Entries:
    """ScienceQA: questions with options, half of them with an image.

    Args:
        problems: problems.json.
        splits: pid_splits.json; None for the split each problem names itself.
        split: Its own.
        with_image: Only problems with an image (ScienceQA-IMG).
        hint: Whether to put a problem's hint before its question.
        explain: Whether the answer is lecture and solution before the option's letter.
    """
    ids = _dict(splits)[split] if splits else None

    def make(entry: dict[str, Any]) -> dict[str, Any]:
        number, options = entry["id"], entry["choices"]
        right = options[int(entry["answer"])]
        context = f"Context: {entry['hint']}\n" if hint and entry.get("hint") else ""
        row = {
            "id": number,
            "question": context + entry["question"],
            "answer": _explained(entry) if explain else right,
            "choices": options,
            "kind": entry.get("subject") or "ScienceQA",
        }
        if entry.get("image"):
            row["image"] = f"{split}/{number}/{entry['image']}"
        return row

    every = _dict(problems)
    wanted = ids if ids is not None else [n for n, p in every.items() if p.get("split") == split]
    found = ({"id": number, **every.get(str(number), {})} for number in wanted)
    kept = (entry for entry in found if entry.get("image") or not with_image)
    yield from _made(kept, make, "problem")


def _explained(entry: dict[str, Any]) -> str:
    letter = "ABCDEFGHIJ"[int(entry["answer"])]
    parts = [entry.get("lecture"), entry.get("solution"), f"The answer is {letter}."]
    return "\n".join(part for part in parts if part)


def ai2d(questions: Path, test_ids: Path | None = None, split: Split = "train") -> Entries:
    """AI2D: questions with four options on diagrams.

    Args:
        questions: The folder of question files, one JSON file a diagram.
        test_ids: ai2d_test_ids.csv; None for all diagrams.
        split: "test" for the diagrams of that file, "train" for the others.
    """
    if not questions.is_dir():
        raise InputError(f"no folder {questions}; expected one JSON file a diagram.")
    tested: set[str] = set()
    if test_ids:
        with test_ids.open(newline="") as file:
            tested = {line[0].strip() for line in csv.reader(file) if line}
    for path in sorted(questions.glob("*.json")):
        picture = path.name.removesuffix(".json")
        if test_ids and (picture.removesuffix(".png") in tested) != (split == "test"):
            continue
        in_file = _dict(path).get("questions", {})
        if not isinstance(in_file, dict):
            raise InputError(
                f"{path} under 'questions': found {show(in_file)}; expected an object."
            )
        for text, question in in_file.items():
            place = f"{path.name}, {show(text)}"
            try:
                options = [str(option) for option in question["answerTexts"]]
                row = {
                    "id": question["questionId"],
                    "image": picture,
                    "question": text,
                    "choices": options,
                    "answer": options[question["correctAnswer"]],
                }
            except (KeyError, IndexError, TypeError) as error:
                yield place, _problem(place, error, question)
            else:
                yield place, row


LAYOUTS: dict[str, Callable[..., Entries]] = {
    "rows": rows,
    "vqa": vqa,
    "aokvqa": aokvqa,
    "ocrvqa": ocrvqa,
    "textcaps": textcaps,
    "coco-captions": coco_captions,
    "karpathy": karpathy,
    "flickr30k": flickr30k,
    "scienceqa": scienceqa,
    "ai2d": ai2d,
}
"""All layouts by the name a mixture gives them."""


def most_frequent(answers: Iterable[str]) -> str:
    """The most frequent of several answers; of equally frequent ones the first."""
    return Counter(answers).most_common(1)[0][0]


def _made(
    found: Iterable[dict[str, Any]], make: Callable[[dict[str, Any]], dict[str, Any]], noun: str
) -> Entries:
    """Entries with their places; what lacks a field comes as a `Problem`."""
    for number, entry in enumerate(found, start=1):
        place = f"{noun} {number}"
        try:
            yield place, make(entry)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            yield place, _problem(place, error, entry)


def _problem(place: str, error: Exception, entry: object) -> Problem:
    if isinstance(error, KeyError):
        return Problem(place, str(error.args[0]), "nothing", f"a field {FIELD}")
    return Problem(place, "row", show(entry), f"an entry {FIELD}")


def _dict(path: Path) -> dict[str, Any]:
    decoded = read_json(path)
    if not isinstance(decoded, dict):
        raise InputError(f"{path}: found a {type(decoded).__name__}; expected a JSON object.")
    return decoded


def _list(path: Path, key: str | None = None) -> list[dict[str, Any]]:
    """A JSON list of objects, or the one under a key."""
    decoded: Any = read_json(path) if key is None else _dict(path).get(key)
    if not isinstance(decoded, list) or not all(isinstance(entry, dict) for entry in decoded):
        where = f" under {key!r}" if key else ""
        raise InputError(f"{path}{where}: found {show(decoded)}; expected a list of objects.")
    return decoded
