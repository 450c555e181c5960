"""Questions and answers about composed pictures: the data the packaged base is trained on.

An image is a background with one to six things on it, emoji in their own colours or silhouettes
painted in one of twelve. The generator knows what it drew, so every answer follows from the scene.
Yes/no questions take their answer from a fair coin *before* their subject is chosen, and subjects
of "no" come from the same distribution as subjects of "yes": the wording tells nothing.

Plain geometric figures never occur, neither drawn nor in words.
"""

import colorsys
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from rich.progress import track

from crome.errors import InputError
from tools.tiny.pictures import HELD_OUT_STYLES, SILHOUETTES, PicturePack, Thing
from tools.tiny.questions import (
    INSTRUCT_MIX,
    PRETRAIN_MIX,
    QUESTIONS,
    Item,
    Scene,
    clashes,
    is_not_a,
)

Rng = np.random.Generator

# Ranges of hue (degrees), saturation and value that people call by the name without hesitating.
COLOURS: dict[str, tuple[tuple[float, float], tuple[float, float], tuple[float, float]]] = {
    "red": ((-6, 6), (0.8, 1), (0.72, 1)),
    "orange": ((24, 36), (0.88, 1), (0.92, 1)),
    "yellow": ((51, 60), (0.8, 1), (0.92, 1)),
    "green": ((95, 140), (0.65, 1), (0.42, 1)),
    "teal": ((174, 186), (0.85, 1), (0.42, 0.62)),
    "blue": ((216, 242), (0.75, 1), (0.6, 1)),
    "purple": ((268, 286), (0.6, 0.95), (0.5, 0.82)),
    "pink": ((322, 345), (0.3, 0.52), (0.95, 1)),
    "brown": ((10, 28), (0.62, 0.88), (0.33, 0.56)),
    "black": ((0, 360), (0, 0.1), (0, 0.1)),
    "white": ((0, 360), (0, 0.03), (0.96, 1)),
    "gray": ((0, 360), (0, 0.06), (0.42, 0.62)),
}

# How far apart in CIELAB the subject and the background must be (2.3 is just noticeable).
CONTRAST = 32.0
# Colours this close to the background's are not asked about: "is anything white?" on cream.
NAMEABLE = 42.0

# Things of no named category are many and well known: so many shares where a category has one.
COMMON_SHARES = 3

# How several things are chosen: independently, one kind repeated, all of one colour, all but one.
# "odd" is the more frequent of the last two since more questions compete for its place.
LAYOUTS = {"free": 0.45, "crowd": 0.23, "same": 0.14, "odd": 0.18}

Stage = Literal["pretrain", "instruct"]
Split = Literal["train", "unseen_objects", "unseen_style"]


def best_known(things: Sequence[Thing], split: Split) -> list[Thing]:
    """The things of a split, those with the most pictures first."""

    def pictures(thing: Thing) -> int:
        styles = set(thing.pictures) - HELD_OUT_STYLES
        return sum(len(thing.pictures[style]) for style in styles)

    chosen = [t for t in things if is_held_out(t.name) == (split == "unseen_objects")]
    return sorted(chosen, key=lambda thing: (-pictures(thing), thing.name))


class Scenes:
    """Images with questions, as a map from an index to rows; a pure function of its arguments.

    Args:
        pack: The pictures.
        seed: Same seed, same data.
        split: `train`; `unseen_objects`, the tenth of the things that training never shows; or
            `unseen_style`, training's things drawn by hands that training never shows.
        stage: `pretrain` has one thing in an image and asks what it is and looks like; `instruct`
            has one to six and asks everything.
        kinds: Only these kinds of question; None for all of the stage.
        mix: Relative frequency per kind, on top of the stage's own.
        questions_per_image: Rows per index (fewer when a narrow choice of kinds runs dry).
        image_size: Side of the image, in pixels.
        length: Number of images that `len` reports; any index works.
        objects: Only so many things, those with the most pictures; None for all. Few things are
            learnt from few rows, and what is asked about them carries over to others.
        single: Share of instruct images with one thing.
        painted: Share of images of silhouettes in one colour, which is what colours are asked of.

    Raises:
        InputError: An unknown split, stage or kind, or a pack without pictures for the split.
    """

    def __init__(
        self,
        pack: PicturePack,
        seed: int = 0,
        split: Split = "train",
        stage: Stage = "instruct",
        kinds: Sequence[str] | None = None,
        mix: Mapping[str, float] | None = None,
        questions_per_image: int = 8,
        image_size: int = 224,
        length: int = 100_000,
        objects: int | None = None,
        single: float = 0.5,
        painted: float = 0.6,
    ) -> None:
        splits, stages = ("train", "unseen_objects", "unseen_style"), ("pretrain", "instruct")
        if split not in splits or stage not in stages:
            raise InputError(f"split {split!r}, stage {stage!r}: expected {splits} and {stages}")
        self.pack, self.seed, self.split, self.stage = pack, seed, split, stage
        self.single, self.painted = single, painted
        self.things = best_known(pack.things, self.split)[:objects]
        self.questions_per_image, self.image_size, self.length = (
            questions_per_image, image_size, length,
        )  # fmt: skip
        weights = dict(PRETRAIN_MIX if stage == "pretrain" else INSTRUCT_MIX)
        unknown = (set(kinds or ()) | set(mix or ())) - set(weights)
        if unknown:
            raise InputError(f"unknown kinds {sorted(unknown)} for {stage}; known: {list(weights)}")
        weights |= dict(mix or {})
        self.mix = {k: w for k, w in weights.items() if w > 0 and (kinds is None or k in kinds)}
        self._kinds = list(self.mix)
        self._weights = np.array([self.mix[k] for k in self._kinds]) / sum(self.mix.values())
        # a salt per stream, so that stages and splits do not share layouts
        self._salt = splits.index(split) * 2 + stages.index(stage)
        self._pools = {painted: self._pool(painted) for painted in (True, False)}
        if not any(self._pools.values()):
            raise InputError(f"the pack has no pictures for split {split!r}; rebuild it")
        self._clear: dict[tuple[str, bool], np.ndarray] = {}
        self._means: dict[tuple[str, str], np.ndarray] = {}
        self._tints: dict[tuple[str, str], float] = {}

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> list[dict[str, Any]]:
        """Rows `image`, `question`, `answer`, `kind`, `id`, which share one image object."""
        if not 0 <= index < self.length:
            raise IndexError(f"index {index} outside 0..{self.length - 1}")
        _, image, rows = self.draw(index)
        return [
            {
                "image": image,
                "question": q,
                "answer": a,
                "kind": k,
                "id": f"{self.split}-{index}-{n}",
            }
            for n, (k, _, q, a) in enumerate(rows)
        ]

    def draw(self, index: int) -> tuple[Scene, Image.Image, list[tuple[str, str, str, str]]]:
        """The scene behind an index, its picture, and (kind, template, question, answer) rows."""
        rng = np.random.default_rng((self.seed, self._salt, index))
        scene, image = self._compose(rng)
        return scene, image, self._ask(scene, rng)

    # ---- what to draw -------------------------------------------------------------------------

    def _pool(self, painted: bool) -> dict[str, list[tuple[Thing, list[str]]]]:
        """Category -> things with the art styles this split may use."""
        pool: dict[str, list[tuple[Thing, list[str]]]] = {}
        for thing in self.things:
            styles = sorted(
                style for style in thing.pictures
                if (style in SILHOUETTES) == painted
                and (style in HELD_OUT_STYLES) == (self.split == "unseen_style")
            )  # fmt: skip
            if styles:
                pool.setdefault(thing.category, []).append((thing, styles))
        return pool

    def _thing(self, painted: bool, back: "Background", rng: Rng) -> tuple[Thing, str, str]:
        """A thing, its style and picture, that stands out from the background.

        Categories are drawn evenly, so that asking for one has no likely answer.
        """
        pool = self._pools[painted]
        categories = sorted(pool)
        for _ in range(12):
            spot = int(rng.integers(len(categories) + (COMMON_SHARES - 1) * ("" in pool)))
            category = categories[spot] if spot < len(categories) else ""
            thing, styles = pool[category][rng.integers(len(pool[category]))]
            style = styles[rng.integers(len(styles))]
            files = thing.pictures[style]
            file = files[rng.integers(len(files))]
            if painted or back.contrast(self._mean(style, file)) > 0.65 * CONTRAST:
                break
        return thing, style, file

    def _mean(self, style: str, file: str) -> np.ndarray:
        """Mean colour of a painted picture, in CIELAB."""
        if (style, file) not in self._means:
            pixels = np.asarray(self.pack.picture(style, file)).reshape(-1, 4)
            weight = pixels[:, 3:] / max(1, pixels[:, 3].sum())
            self._means[style, file] = _lab((pixels[:, :3] * weight).sum(0))
        return self._means[style, file]

    def _compose(self, rng: Rng) -> tuple[Scene, Image.Image]:
        side = self.image_size
        painted = bool(self._pools[True]) and (
            not self._pools[False] or rng.random() < self.painted
        )
        back = Background.draw(rng, side)
        count, layout = 1, "single"
        if self.stage == "instruct" and rng.random() >= self.single:
            count = int(rng.integers(2, 7))
            layout = str(rng.choice(list(LAYOUTS), p=list(LAYOUTS.values())))
            if layout in ("same", "odd") and not painted:
                layout = "free"
            if layout in ("same", "odd"):
                count = max(count, 3)
        askable = [c for c in COLOURS if c not in back.near]
        image = back.image
        items: list[Item] = []
        taken: list[tuple[int, int, int, int]] = []
        tint = str(rng.choice(askable))
        first: tuple[Thing, str, str] | None = None
        same = int(rng.integers(1, count + 1)) if layout == "crowd" else 0
        for n in range(count):
            thing, style, file = self._thing(painted, back, rng)
            if n < same:
                first = first or (thing, style, file)
                thing, style, file = first
            elif clashes(thing, items):
                continue
            colour = str(rng.choice(askable)) if painted else None
            if painted and layout in ("same", "odd"):
                others = [c for c in askable if c != tint]
                colour = str(rng.choice(others)) if layout == "odd" and not items else tint
            box = self._place(self.pack.picture(style, file), count, taken, rng)
            if box is None:
                continue
            picture = self._paint(style, file, colour, box, rng)
            image.paste(picture, box[:2], picture)
            taken.append(box)
            items.append(Item(thing, style, colour, box))
        if layout in ("same", "odd") and len(items) < 3:
            layout = "free"
        ghosts = [self._thing(painted, back, rng)[0] for _ in range(6)]
        different = len({item.name for item in items})
        items = [
            replace(items[i], fair=self._fair(items[i].thing, painted, different))
            for i in rng.permutation(len(items))
        ]
        scene = Scene(tuple(items), back.name, tuple(askable), painted, layout, tuple(ghosts))
        return scene, image

    def _fair(self, thing: Thing, painted: bool, count: int) -> tuple[float, float]:
        """Probability that `count` things have none like it, and none that is of its category."""
        if (thing.name, painted) not in self._clear:
            pool, shares = self._pools[painted], np.zeros(2)
            for category, things in pool.items():
                unlike = np.mean([not clashes(thing, [other]) for other, _ in things])
                weight = COMMON_SHARES if category == "" else 1
                shares += weight * np.array([unlike, is_not_a(things[0][0], thing.category)])
            self._clear[thing.name, painted] = shares / (
                len(pool) + (COMMON_SHARES - 1) * ("" in pool)
            )
        like, kind = self._clear[thing.name, painted] ** count
        return float(like), float(kind)

    def _place(
        self,
        picture: Image.Image,
        count: int,
        taken: list[tuple[int, int, int, int]],
        rng: Rng,
    ) -> tuple[int, int, int, int] | None:
        """A free box for a picture, keeping its aspect; None when there is no room."""
        side = self.image_size
        low, high = (0.22, 0.95) if count == 1 else (0.24, min(0.55, 1.15 / count**0.6))
        for attempt in range(30):
            longest = side * (low + (high - low) * rng.random() * (1 - attempt / 40))
            scale = longest / max(picture.size)
            w, h = (max(8, round(scale * v)) for v in picture.size)
            x, y = int(rng.integers(0, side - w + 1)), int(rng.integers(0, side - h + 1))
            box = (x, y, x + w, y + h)
            if not any(_overlap(box, other) for other in taken):
                return box
        return None

    def _paint(
        self, style: str, file: str, colour: str | None, box: tuple[int, int, int, int], rng: Rng
    ) -> Image.Image:
        """The picture at its size, in its colour, sometimes mirrored."""
        picture = self.pack.picture(style, file)
        if rng.random() < 0.5:
            picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        size = (box[2] - box[0], box[3] - box[1])
        if colour is None:
            return picture.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)
        ink = picture.getchannel("R").resize(size, Image.Resampling.BILINEAR)
        filled = picture.getchannel("A").resize(size, Image.Resampling.BILINEAR)
        rgb = _sample(colour, rng)
        how = rng.random()
        if how < 0.45 or (colour in ("black", "white") and self._holes(style, file) < 0.45):
            painted = Image.new("RGB", size, rgb)
            painted.putalpha(ink)
            return painted
        if how < 0.75 and colour != "black" and self._holes(style, file) > 0.45:
            # holes carry the colour, the drawing is a dark outline
            ink_rgb = tuple(int(v * 0.25) for v in rgb) if colour != "white" else (70, 70, 70)
            hole_rgb = rgb
        else:  # holes a little lighter or darker than the drawing
            ink_rgb = rgb
            hole_rgb = tuple(
                int(v * 0.82) if sum(rgb) > 330 else int(v + (255 - v) * 0.2) for v in rgb
            )  # type: ignore[assignment]
        painted = Image.composite(
            Image.new("RGB", size, ink_rgb), Image.new("RGB", size, hole_rgb), ink
        )
        painted.putalpha(filled)
        return painted

    def _holes(self, style: str, file: str) -> float:
        """Share of a silhouette that its holes take."""
        if (style, file) not in self._tints:
            pixels = np.asarray(self.pack.picture(style, file), dtype=np.float32)
            total = max(1.0, float(pixels[..., 3].sum()))
            self._tints[style, file] = (
                1 - float(np.minimum(pixels[..., 0], pixels[..., 3]).sum()) / total
            )
        return self._tints[style, file]

    # ---- what to ask --------------------------------------------------------------------------

    def _ask(self, scene: Scene, rng: Rng) -> list[tuple[str, str, str, str]]:
        rows: list[tuple[str, str, str, str]] = []
        asked: set[str] = set()
        for _ in range(self.questions_per_image * 12):
            if len(rows) == self.questions_per_image:
                break
            kind = self._kinds[int(rng.choice(len(self._kinds), p=self._weights))]
            made = QUESTIONS[kind](scene, rng)
            if made is None or made[1] in asked:
                continue
            asked.add(made[1])
            rows.append((kind, *made))
        return rows


@dataclass(frozen=True)
class Background:
    """An image to draw on, its colour's name if it has a clear one, and the colours near it."""

    image: Image.Image
    name: str | None
    labs: tuple[np.ndarray, ...]
    near: frozenset[str]

    def contrast(self, lab: np.ndarray) -> float:
        """Smallest CIELAB distance to the background's colours."""
        return min(float(np.linalg.norm(lab - other)) for other in self.labs)

    @classmethod
    def draw(cls, rng: Rng, side: int) -> "Background":
        """Plain, gradient, stripes, mottled or grainy; light tints are common and nameless."""
        name: str | None = None
        if rng.random() < 0.45:
            name = str(rng.choice([*COLOURS, "white", "white", "white", "black"]))
            first = _sample(name, rng)
        else:  # a tint nobody would call by a basic colour's name
            tint = colorsys.hsv_to_rgb(
                rng.random(), rng.uniform(0.02, 0.14), rng.uniform(0.84, 0.99)
            )
            first = _rgb(tint)
        how = str(rng.choice(["plain", "grain", "mottled", "gradient", "stripes"],
                             p=[0.4, 0.2, 0.15, 0.13, 0.12]))  # fmt: skip
        shift = rng.uniform(8, 26) * (1 if sum(first) < 380 else -1)
        second = tuple(int(np.clip(v + shift, 0, 255)) for v in first)
        pixels = _fill(how, np.array(first, np.float32), np.array(second, np.float32), side, rng)
        labs = (_lab(np.array(first)), _lab(np.array(second)))
        near = {c for c, lab in _PROTOTYPES.items()
                if c == name or min(np.linalg.norm(lab - o) for o in labs) < NAMEABLE}  # fmt: skip
        image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
        return cls(image, name, labs, frozenset(near))


def _fill(how: str, first: np.ndarray, second: np.ndarray, side: int, rng: Rng) -> np.ndarray:
    """Background pixels (side, side, 3) between two colours, float."""
    if how == "plain":
        return np.broadcast_to(first, (side, side, 3))
    if how == "grain":
        return first + rng.standard_normal((side, side, 1), dtype=np.float32) * rng.uniform(2, 9)
    ramp = np.linspace(0, 1, side, dtype=np.float32)
    turn = rng.uniform(0, 2 * np.pi)
    slope = np.cos(turn) * ramp[None, :] + np.sin(turn) * ramp[:, None]  # (side, side)
    if how == "gradient":
        mix = (slope - slope.min()) / (slope.max() - slope.min())
    elif how == "stripes":
        mix = (np.sin(slope * rng.uniform(20, 90)) > 0).astype(np.float32)
    else:
        cells = int(rng.integers(4, 24))
        small = Image.fromarray((rng.random((cells, cells)) * 255).astype(np.uint8))
        mix = np.asarray(small.resize((side, side), Image.Resampling.BICUBIC), np.float32) / 255
    return first + mix[..., None] * (second - first)


def _sample(colour: str, rng: Rng) -> tuple[int, int, int]:
    """An RGB colour that goes by the name."""
    hue, saturation, value = (rng.uniform(*bounds) for bounds in COLOURS[colour])
    return _rgb(colorsys.hsv_to_rgb(hue / 360 % 1, saturation, value))


def _rgb(unit: Sequence[float]) -> tuple[int, int, int]:
    red, green, blue = (round(255 * v) for v in unit)
    return red, green, blue


def _lab(rgb: np.ndarray) -> np.ndarray:
    """CIELAB (D65) of an sRGB colour with channels 0 to 255."""
    unit = np.asarray(rgb, dtype=np.float64) / 255
    linear = np.where(unit > 0.04045, ((unit + 0.055) / 1.055) ** 2.4, unit / 12.92)
    matrix = np.array(
        [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    )
    xyz = matrix @ linear / np.array([0.9505, 1.0, 1.089])
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


_PROTOTYPES = {
    name: _lab(np.array(_rgb(colorsys.hsv_to_rgb(sum(h) / 720 % 1, sum(s) / 2, sum(v) / 2))))
    for name, (h, s, v) in COLOURS.items()
}


def _overlap(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def is_held_out(name: str) -> bool:
    """Whether a thing belongs to the tenth that training never shows; depends on its name alone."""
    return hashlib.sha256(name.encode()).digest()[0] < 26


def write_scenes(
    pack: str,
    out: Path = Path("scenes"),
    count: int = 100,
    seed: int = 0,
    split: Split = "train",
    stage: Stage = "instruct",
    sheet: int = 40,
) -> None:
    """Write images and questions as files: images/, rows.jsonl and a contact sheet.

    Args:
        pack: Folder of a picture pack, or "builtin".
        out: Folder to write.
        count: Number of images.
        seed: Same seed, same data.
        split: train, unseen_objects or unseen_style.
        stage: pretrain (one thing, captions, names, colours) or instruct (everything).
        sheet: Number of images on contact_sheet.png; 0 for none.
    """
    pictures = PicturePack.builtin() if pack == "builtin" else PicturePack.load(pack)
    scenes = Scenes(pictures, seed=seed, split=split, stage=stage, length=count)
    (out / "images").mkdir(parents=True, exist_ok=True)
    with (out / "rows.jsonl").open("w", encoding="utf-8") as file:
        for index in track(range(count), "Drawing scenes"):
            rows = scenes[index]
            name = f"images/{index:06d}.png"
            rows[0]["image"].save(out / name)
            for row in rows:
                file.write(json.dumps({**row, "image": name}, ensure_ascii=False) + "\n")
    if sheet:
        contact_sheet([scenes[i] for i in range(min(sheet, count))]).save(out / "contact_sheet.png")


def contact_sheet(images: Sequence[Sequence[Mapping[str, Any]]], columns: int = 4) -> Image.Image:
    """Images with their questions and answers beside them, for looking at."""
    from PIL import ImageDraw

    width, height = 470, 232
    sheet = Image.new("RGB", (columns * width, -(-len(images) // columns) * height), "white")
    draw = ImageDraw.Draw(sheet)
    for n, rows in enumerate(images):
        x, y = n % columns * width, n // columns * height
        sheet.paste(rows[0]["image"].resize((150, 150)), (x, y))
        for line, row in enumerate(rows):
            draw.text((x + 154, y + 27 * line), row["question"][:56], fill="black")
            draw.text((x + 164, y + 27 * line + 12), row["answer"][:56], fill="blue")
    return sheet


if __name__ == "__main__":
    import sys

    from crome.options import call

    call(write_scenes, sys.argv[1:], name="python -m tools.tiny.scenes", positional=True)
