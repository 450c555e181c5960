"""Makes a classifier from a few pictures of each class, and tests it on others.

    python examples/lamps.py lamps
    python examples/fewshot_pictures.py lamps

The class of a picture is here the answer to the question which lamp is lit. Your own pictures need
a list of files and a list of labels.
"""

import json
import sys
from pathlib import Path

from crome.fewshot import (
    XMAdapterClassifier,
    class_features,
    image_features,
    load_encoder,
    view_features,
)


def labelled(file: Path) -> tuple[list[Path], list[str]]:
    """Pictures and their classes from a file of rows."""
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    chosen = [row for row in rows if row["kind"] == "colour"]
    return [file.parent / row["image"] for row in chosen], [row["answer"] for row in chosen]


def first_of_each(pictures: list[Path], labels: list[str], shots: int) -> list[int]:
    """Places of the first pictures of each class."""
    return [n for n, label in enumerate(labels) if labels[:n].count(label) < shots]


def main(data: str, shots: str = "4", encoder: str = "bridge") -> None:
    """Fits on a few pictures and prints the accuracy on those held out.

    Args:
        data: Folder with `rows.jsonl` and `held-out.jsonl`.
        shots: Pictures of each class to learn from.
        encoder: Name of an encoder, or a folder of a CLIP-style model.
    """
    pictures, labels = labelled(Path(data) / "rows.jsonl")
    places = first_of_each(pictures, labels, int(shots))
    chosen, classes = [pictures[n] for n in places], sorted(set(labels))
    eyes = load_encoder(encoder)
    classifier = XMAdapterClassifier(
        class_features(eyes, [f"{name} lamp" for name in classes]), classes=classes
    )
    views = view_features(eyes, chosen, views=4)
    classifier.fit(image_features(eyes, chosen), [labels[n] for n in places], views=views)

    unseen, answers = labelled(Path(data) / "held-out.jsonl")
    accuracy = classifier.score(image_features(eyes, unseen), answers)
    print(f"{len(chosen)} pictures to learn from, {len(unseen)} held out: {accuracy:.0%} right")


if __name__ == "__main__":
    main(*sys.argv[1:])
