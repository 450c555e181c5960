"""Data sets × shots × seeds × methods: resumable rows, one table, one plot.

Every row states its protocol: encoder, validation images, seed and the digest of the draw. Test
images are scored once per row and select nothing.
"""

import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from crome.errors import InputError
from crome.fewshot.base import FewShotClassifier
from crome.fewshot.calibration import expected_calibration_error
from crome.fewshot.datasets import Draw, ImageSet, draw_shots, labels_of
from crome.fewshot.encoders import Encoder, class_features, image_features
from crome.plot import line_plot

Maker = Callable[..., FewShotClassifier]


def run(
    sets: Sequence[ImageSet],
    encoder: Encoder,
    methods: dict[str, Maker],
    shots: Sequence[int],
    seeds: Sequence[int],
    out: Path,
    *,
    val: str = "few",
    views: int = 10,
    test_per_class: int | None = None,
    cache_dir: Path | None = None,
) -> list[dict[str, Any]]:
    """Run what is not yet in ``out/results.jsonl`` and rewrite the table and the plots.

    Args:
        sets: Image sets.
        encoder: Encodes images and class names.
        methods: Table name and maker of each classifier.
        shots: Images per class.
        seeds: Of the draws.
        out: Folder of the rows, ``table.md`` and one plot per set.
        val: Protocol of the validation images: few, full or none.
        views: Augmented views of each training image.
        test_per_class: Bound on test images per class, for sets without a test part.
        cache_dir: Folder of stored features.

    Returns:
        All rows, earlier ones included.

    Raises:
        InputError: A class of some set has fewer images than the most shots asked for.
    """
    out.mkdir(parents=True, exist_ok=True)
    log = out / "results.jsonl"
    rows = _rows(log)
    done = {_key(row) for row in rows}
    with log.open("a") as stream:
        for data in sets:
            text = class_features(encoder, data.classes, data.templates)
            for k in shots:
                for seed in seeds:
                    about = {
                        "dataset": data.name, "shots": k, "seed": seed, "val": val,
                        "encoder": encoder.fingerprint, "views": views,
                    }  # fmt: skip
                    todo = {
                        m: f for m, f in methods.items() if _key(about | {"method": m}) not in done
                    }
                    if not todo:
                        continue
                    draw = draw_shots(data, k, seed, val=val, test_per_class=test_per_class)
                    if not _enough(draw, data, k):
                        break
                    for row in _run_draw(draw, data, encoder, text, todo, about, views, cache_dir):
                        rows.append(row)
                        stream.write(json.dumps(row) + "\n")
                        stream.flush()
    report(rows, out)
    return rows


def _rows(log: Path) -> list[dict[str, Any]]:
    """Rows of earlier runs; the half line of a run that was killed is cut off."""
    lines = log.read_text().splitlines(keepends=True) if log.exists() else []
    if lines and not lines[-1].endswith("\n"):
        log.write_text("".join(lines[:-1]))
        del lines[-1]
    try:
        return [json.loads(line) for line in lines]
    except ValueError as error:
        raise InputError(
            f"{log} has a line that is not JSON ({error}); remove the line."
        ) from error


def _enough(draw: Draw, data: ImageSet, shots: int) -> bool:
    """Whether every class has its shots; a set ends at the first count that one cannot fill."""
    return bool((np.bincount(labels_of(draw.train), minlength=len(data.classes)) == shots).all())


def _run_draw(
    draw: Draw,
    data: ImageSet,
    encoder: Encoder,
    text: Any,
    methods: dict[str, Maker],
    about: dict[str, Any],
    views: int,
    cache_dir: Path | None,
) -> Iterator[dict[str, Any]]:
    def features(items: list[Any], n: int = 0) -> tuple[Any, Any]:
        return image_features(encoder, [i.path for i in items], views=n, cache_dir=cache_dir)

    X, V = features(draw.train, views)
    selection: dict[str, Any] = {"views": V}
    if draw.val:
        selection |= {"X_val": features(draw.val)[0], "y_val": labels_of(draw.val)}
    X_test, y_test = features(draw.test)[0], labels_of(draw.test)
    for name, make in methods.items():
        classifier = make(
            text, classes=list(range(len(data.classes))), logit_scale=encoder.logit_scale
        )
        start = time.process_time()
        classifier.fit(X, labels_of(draw.train), **selection)
        seconds = time.process_time() - start
        probabilities = classifier.predict_proba(X_test)
        yield about | {
            "method": name,
            "accuracy": float((probabilities.argmax(1) == y_test).mean()),
            "ece": expected_calibration_error(probabilities, y_test),
            "n": len(y_test),
            "fit_cpu_seconds": round(seconds, 3),
            "draw": draw.digest,
        }


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(
        row[name] for name in ("dataset", "shots", "seed", "val", "encoder", "views", "method")
    )


def summarise(rows: Sequence[dict[str, Any]], value: str = "accuracy") -> dict[Any, list[float]]:
    """Values over seeds by (dataset, method, shots)."""
    cells: dict[Any, list[float]] = defaultdict(list)
    for row in rows:
        cells[row["dataset"], row["method"], row["shots"]].append(row[value])
    return cells


def report(rows: Sequence[dict[str, Any]], out: Path) -> None:
    """Print the table; write ``table.md`` and a plot per data set, and one of their means."""
    if not rows:
        raise InputError("no rows to report: every data set has too few images for these shots.")
    cells = summarise(rows)
    shots = sorted({row["shots"] for row in rows})
    methods = list(dict.fromkeys(row["method"] for row in rows))
    sets = list(dict.fromkeys(row["dataset"] for row in rows))
    vals = "/".join(sorted({row["val"] for row in rows}))
    seeds = sorted({row["seed"] for row in rows})
    caption = f"accuracy in % (sd over seeds {seeds}); val={vals}; {rows[0]['encoder']}"
    header = ["data set", "method", *map(str, shots)]
    lines = [
        [name, method, *(_cell(cells.get((name, method, k), [])) for k in shots)]
        for name in sets
        for method in methods
    ]
    for method in methods:
        lines.append(["mean", method, *(f"{m:.1f}" for m in _means(cells, sets, method, shots))])
    table = Table(*header, caption=caption)
    for line in lines:
        table.add_row(*line)
    Console().print(table)
    text = [header, ["---"] * len(header), *lines]
    markdown = "\n".join("| " + " | ".join(line) + " |" for line in text)
    (out / "table.md").write_text(f"{caption}\n\n{markdown}\n")
    for name in (*sets, "mean"):
        curves: dict[str, Sequence[float]] = {}
        for method in methods:
            if name == "mean":
                values = _means(cells, sets, method, shots)
            else:
                values = [
                    100 * float(np.mean(cells.get((name, method, k), [np.nan]))) for k in shots
                ]
            curves[method] = values
        line_plot(curves, shots, out / f"{name}.png", title=f"{name}: accuracy (%) by shots")


def _cell(values: Sequence[float]) -> str:
    if not values:
        return "–"
    spread = np.std(values, ddof=1) if len(values) > 1 else 0.0
    return f"{100 * np.mean(values):.1f} ({100 * spread:.1f})"


def _means(cells: Any, sets: Sequence[str], method: str, shots: Sequence[int]) -> list[float]:
    """Mean over the sets that reach each number of shots."""
    return [
        100
        * float(np.mean([np.mean(cells[s, method, k]) for s in sets if (s, method, k) in cells]))
        if any((s, method, k) in cells for s in sets)
        else float("nan")
        for k in shots
    ]
