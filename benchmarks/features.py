"""Reading frozen features from the cache, against decoding the pictures they were made from.

    python benchmarks/features.py --json FILE [--rows 512] [--repetitions 5] [--folder DIR]

Cases are row shapes: `eva` 257 × 1408 (ViT-g, 724 kB in bfloat16), `midsize` 257 × 384, `tiny`
49 × 1280; rows are drawn at random, 32 at a time, as training draws them. The baseline is decoding
a 640 × 480 JPEG and resizing it to 224 × 224. `cached-vs-live` is the largest relative difference
between the losses of an epoch read from a cache and of the same epoch computed live, in bfloat16,
beside what halving the batch alone makes.

CPU-seconds of one process with one thread; files are in the page cache, so disks are not measured.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from measure import Cost, alternate, machine, row, write
from PIL import Image
from sizes import SMALL, batch, build

from crome.features.store import FeatureStore
from crome.images import load_image

SHAPES = {"eva": (257, 1408), "midsize": (257, 384), "tiny": (49, 1280)}
BATCH = 32


def filled(folder: Path, shape: tuple[int, int], rows: int) -> FeatureStore:
    """A store of random rows."""
    store = FeatureStore(folder, {"shape": list(shape)})
    with store.writer() as writer:
        for start in range(0, rows, BATCH):
            keys = [str(i) for i in range(start, start + BATCH)]
            writer.add(keys, {"patches": torch.randn(BATCH, *shape).bfloat16()})
    return store


def decoding(folder: Path) -> Cost:
    """Of one JPEG, to the tensor an encoder takes."""
    # Smooth noise: as many coefficients as a photograph of that size has, about 60 kB.
    coarse = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize((640, 480), Image.Resampling.BICUBIC).save(
        folder / "a.jpg", quality=90
    )

    def step() -> None:
        shown = load_image(folder / "a.jpg").resize((224, 224), Image.Resampling.BICUBIC)
        torch.from_numpy(np.asarray(shown).copy()).permute(2, 0, 1).float().div_(255)

    return alternate({"decode": step}, 20)["decode"]


def reading(folder: Path, arguments: argparse.Namespace) -> list[dict]:
    """Rows a second and core, by shape."""
    decode, results = decoding(folder), []
    for case, shape in SHAPES.items():
        store = filled(folder / case, shape, arguments.rows)
        keys = store.keys()
        order = np.random.default_rng(1).permutation(len(keys))

        def step(store=store, keys=keys, order=order) -> None:  # type: ignore[no-untyped-def]
            for start in range(0, len(order), BATCH):
                store.rows([keys[i] for i in order[start : start + BATCH]])

        cost = alternate({case: step}, arguments.repetitions)[case]
        rate, decoded = len(keys) / cost.cpu, 1 / decode.cpu
        found = row(case, "rows-per-s-and-core", rate, decoded, "rows/CPU-s")
        results.append(found | {"ratio": round(rate / decoded, 1)})
    return results


@torch.no_grad()
def noise() -> list[dict]:
    """Losses from kept features, and from a batch of another size, against live ones."""
    model, given = build(SMALL, torch.bfloat16).eval(), batch(SMALL)
    images, half = given["pixel_values"], given["pixel_values"][:1]
    live = model(**given).token_losses
    # Kept one image at a time, so in another batch than the live pass has.
    seen = [model.visual_features(image[None]) for image in images]
    kept = [torch.cat([getattr(s, name) for s in seen]) for name in ("queries", "patches")]
    del given["pixel_values"]
    cached = model(**given, features=kept).token_losses
    one = {k: v[: SMALL.questions] for k, v in given.items()}
    alone = model(**one, pixel_values=half).token_losses
    difference = ((cached - live).abs() / live).max().item()
    by_batch = ((alone - live[: len(alone)]).abs() / live[: len(alone)]).max().item()
    return [row("losses", "cached-vs-live", difference, by_batch, "relative")]


def main() -> None:
    """Measure and write rows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", required=True)
    parser.add_argument("--rows", type=int, default=512, help="a multiple of 32")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where the rows go; by default a temporary one")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        rows = reading(Path(folder), arguments) + noise()
    write(arguments.json, [found | {"machine": machine()} for found in rows])


if __name__ == "__main__":
    main()
