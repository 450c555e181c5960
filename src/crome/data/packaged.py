"""Tasks made of packaged pictures, and the score that needs no picture at all."""

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from crome.assets import packages
from crome.rows import Row

Split = Literal["train", "test"]

SHAPES = frozenset({"circle", "rectangle", "triangle"})
DEFECT = "Is there a defect in this fabric?"
DEFECT_KIND = "What kind of defect does the fabric show: none, local or global?"


def easy_vqa(split: Split, folder: Path | None = None) -> list[Row]:
    """Questions on pictures of one coloured shape (easy-VQA, MIT).

    Args:
        split: The data set's own split, by picture: 4,000 to train on, 1,000 to test on.
        folder: Unpacked data; None for the packaged asset.

    Returns:
        38,575 or 9,673 rows of the kinds "yes/no", "shape" and "color".
    """
    part = (folder or packages.resolve("easy-vqa")) / split
    entries = packages.read_list(part / "questions.json")
    return [
        Row(
            images=(part / "images" / f"{picture}.png",),
            question=question,
            answer=answer,
            id=f"easy-vqa/{split}/{number}",
            kind="yes/no" if answer in ("yes", "no") else "shape" if answer in SHAPES else "color",
        )
        for number, (question, answer, picture) in enumerate(entries)
    ]


def textile(split: Split, seed: int = 0, folder: Path | None = None) -> list[Row]:
    """Questions on simulated woven fabrics with and without defects (arXiv 2501.12596, MIT).

    Every picture is asked for a defect (half have one). Those with a defect and half of the others
    are asked for its kind, so that none, local and global are a third each.

    Args:
        split: A fifth of the pictures of each class to test on, the rest to train on.
        seed: Seed of the choice of pictures.
        folder: Unpacked data; None for the packaged asset.

    Returns:
        2,800 or 700 rows of the kinds "defect" and "defect kind".
    """
    root = folder or packages.resolve("textile")
    rows = []
    for label, answer in (("nominal", "none"), ("local", "local"), ("global", "global")):
        pictures = sorted((root / label).glob("*.jpg"))
        random.Random(f"{seed}/{label}").shuffle(pictures)
        cut = len(pictures) // 5
        pictures = pictures[:cut] if split == "test" else pictures[cut:]
        for number, picture in enumerate(pictures):
            name = f"textile/{label}/{picture.stem}"
            found = "no" if answer == "none" else "yes"
            rows.append(Row((picture,), DEFECT, found, name, kind="defect"))
            if answer != "none" or number % 2 == 0:
                rows.append(
                    Row((picture,), DEFECT_KIND, answer, f"{name}/kind", kind="defect kind")
                )
    return rows


TASKS: dict[str, Callable[[Split], list[Row]]] = {"easy-vqa": easy_vqa, "textile": textile}
"""By the name that verbs know them under."""


def balanced(rows: Sequence[Row], seed: int = 0) -> list[Row]:
    """Thins yes/no questions until each is answered yes as often as no, as VQA v2 did.

    Where the answers to a question lean, guessing from its words alone earns most of the loss, and
    the picture is learnt late.

    Args:
        rows: To learn from; other questions are thinned as much, whatever they are.
        seed: Seed of the choice.
    """
    answers: defaultdict[str, defaultdict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for number, row in enumerate(rows):
        answers[row.question][row.answer].append(number)
    draw = random.Random(seed)
    leaning = [list(a.values()) for a in answers.values() if a.keys() == {"yes", "no"}]
    even = [draw.sample(side, min(map(len, sides))) for sides in leaning for side in sides]
    kept = {number for side in even for number in side}
    inspected = {number for sides in leaning for side in sides for number in side}
    others = [number for number in range(len(rows)) if number not in inspected]
    share = len(kept) / len(inspected) if inspected else 1.0
    kept.update(draw.sample(others, round(share * len(others))))
    return [rows[number] for number in sorted(kept)]


def question_only_answers(train: Sequence[Row], test: Sequence[Row]) -> list[str]:
    """Answers each question with its most frequent training answer, sight unseen.

    Questions that training never asked get the most frequent answer overall.

    Args:
        train: Rows to count.
        test: Rows to answer, at least one.

    Returns:
        The answers, in the order of `test`.
    """
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for row in train:
        counts[row.question][row.answer] += 1
    best = {question: answers.most_common(1)[0][0] for question, answers in counts.items()}
    overall = Counter(row.answer for row in train).most_common(1)[0][0]
    return [best.get(row.question, overall) for row in test]


def by_picture(rows: Sequence[Row], at_least: int, seed: int) -> list[Row]:
    """All questions on as many shuffled pictures as give `at_least` questions; 0 for all rows."""
    by_image: defaultdict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_image[str(row.images)].append(row)
    order = sorted(by_image)
    random.Random(seed).shuffle(order)
    chosen: list[Row] = []
    for image in order:
        if at_least and len(chosen) >= at_least:
            break
        chosen += by_image[image]
    return chosen
