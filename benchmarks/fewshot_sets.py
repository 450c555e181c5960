"""Picture sets for `crome fewshot benchmark`, as folders per class, from packages.

    python benchmarks/fewshot_sets.py OUT --stamps /usr/share/tuxpaint/stamps \
        --fashion /usr/share/datasets/fashion-mnist --textile PACKAGE_DIR/conformal_clip_data

Stamps and Fashion-MNIST are Debian's tuxpaint-stamps-default and dataset-fashion-mnist, the textile
pictures pip's conformal-clip-data; the digits come with scikit-learn. A set whose source is not
given is left out.
"""

import argparse
import gzip
import shutil
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

CLOTHES = (
    "T-shirt or top", "trouser", "pullover", "dress", "coat",
    "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
STAMPS = {
    "bird": "animals/birds", "mammal": "animals/mammals", "fish": "animals/fish",
    "fruit": "food/fruit", "vegetable": "food/vegetables", "flower": "plants/flowers",
    "tool": "household/tools", "musical instrument": "hobbies/music", "vehicle": "vehicles",
}  # fmt: skip
DEFECTS = {"nominal": "nominal", "local": "local defect", "global": "global defect"}
PHOTO = 0.2  # photographs have many colours: distinct colours per opaque pixel


def fashion(source: Path, out: Path, skip: tuple[int, int], take: tuple[int, int]) -> None:
    """Dark on white, by class; ``skip`` and ``take`` count training and test pictures per class."""
    for part, file, first, n in zip(("train", "test"), ("train", "t10k"), skip, take, strict=True):
        pixels = np.frombuffer(
            gzip.open(source / f"{file}-images-idx3-ubyte.gz").read(), np.uint8, offset=16
        ).reshape(-1, 28, 28)
        labels = np.frombuffer(
            gzip.open(source / f"{file}-labels-idx1-ubyte.gz").read(), np.uint8, offset=8
        )
        for label, name in enumerate(CLOTHES):
            for i in np.flatnonzero(labels == label)[first : first + n]:
                write(Image.fromarray(255 - pixels[i]), out / part / name / f"{i:05d}.png")


def digits(out: Path) -> None:
    """The first 80 of each digit train, the rest test; dark on white."""
    data = load_digits()
    for label, name in enumerate(NUMBERS):
        for place, i in enumerate(np.flatnonzero(data.target == label)):
            pixels = 255 - np.clip(data.images[i] * 16, 0, 255).astype(np.uint8)
            part = "train" if place < 80 else "test"
            write(Image.fromarray(pixels), out / part / name / f"{i:05d}.png")


def textile(source: Path, out: Path) -> None:
    """100 pictures per class train, 300 test."""
    rng = np.random.default_rng(0)
    for folder, name in DEFECTS.items():
        files = sorted((source / "data/textile_images/simulated" / folder).glob("*.jpg"))
        for place, i in enumerate(rng.permutation(len(files))[:400]):
            target = out / ("train" if place < 100 else "test") / name / files[i].name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(files[i], target)


def stamps(source: Path, out: Path) -> None:
    """Photographic cut-outs, padded to a square on white."""
    for name, folder in STAMPS.items():
        for file in sorted((source / folder).rglob("*.png")):
            if "cartoon" in str(file) or file.stem.endswith(("_mirror", "_flip")):
                continue
            picture = Image.open(file).convert("RGBA")
            pixels = np.asarray(picture)
            opaque = pixels[pixels[..., 3] > 200][:, :3]
            if len(opaque) < 500 or len(np.unique(opaque, axis=0)) < PHOTO * len(opaque):
                continue
            side = max(picture.size)
            square = Image.new("RGBA", (side, side), "white")
            corner = ((side - picture.width) // 2, (side - picture.height) // 2)
            square.alpha_composite(picture, corner)
            write(square.convert("RGB"), out / name / f"{file.stem}.png")


def write(picture: Image.Image, file: Path) -> None:
    """Save a picture, making its folder."""
    file.parent.mkdir(parents=True, exist_ok=True)
    picture.save(file)


def main() -> None:
    """Make the sets whose sources are given."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    for name in ("fashion", "stamps", "textile"):
        parser.add_argument(f"--{name}", type=Path)
    args = parser.parse_args()
    digits(args.out / "digits")
    if args.fashion:
        fashion(args.fashion, args.out / "fashion-mnist", (100, 200), (24, 100))
    if args.stamps:
        stamps(args.stamps, args.out / "tuxpaint")
    if args.textile:
        textile(args.textile, args.out / "textile")


if __name__ == "__main__":
    main()
