"""Draws the data of the tutorial: signal lamps of machines, and questions about them.

    python examples/lamps.py lamps

writes 160 small pictures, `lamps/rows.jsonl` with the rows of 120 of them to train on, and
`lamps/held-out.jsonl` with those of the other 40. A machine whose lamp is red may not run.
"""

import json
import random
import sys
from pathlib import Path

from PIL import Image, ImageDraw

LAMPS = {"red": "no", "green": "yes"}
"""Colour of a lamp → whether the machine may run."""


def draw(colour: str, dice: random.Random) -> Image.Image:
    """A panel with one lit lamp somewhere on it."""
    grey = dice.randint(150, 235)
    picture = Image.new("RGB", (96, 96), (grey, grey, grey))
    pen, size = ImageDraw.Draw(picture), dice.randint(22, 40)
    left, top = dice.randint(8, 88 - size), dice.randint(8, 88 - size)
    pen.rectangle((left - 6, top - 6, left + size + 6, top + size + 6), fill=(60, 60, 66))
    pen.ellipse((left, top, left + size, top + size), fill=colour)
    return picture


def write(folder: Path, first: int, last: int, seed: int) -> list[dict[str, str]]:
    """Draws pictures `first` to `last` - 1 and returns a row for each question on each of them."""
    rows, dice = [], random.Random(seed)
    for number in range(first, last):
        colour = dice.choice(list(LAMPS))
        name = f"{number:04d}.png"
        draw(colour, dice).save(folder / name)
        rows += [
            {
                "image": name,
                "question": "May the machine run?",
                "answer": LAMPS[colour],
                "kind": "rule",
            },
            {"image": name, "question": "Which lamp is lit?", "answer": colour, "kind": "colour"},
        ]
    return rows


def main(out: str = "lamps", training: str = "120", held_out: str = "40") -> None:
    """Writes the pictures and both files of rows."""
    folder, count = Path(out), int(training)
    folder.mkdir(parents=True, exist_ok=True)
    parts = {"rows.jsonl": (0, count, 0), "held-out.jsonl": (count, count + int(held_out), 1)}
    for file, (first, last, seed) in parts.items():
        rows = write(folder, first, last, seed)
        (folder / file).write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        print(f"{folder / file}: {len(rows)} rows on {last - first} pictures")


if __name__ == "__main__":
    main(*sys.argv[1:])
