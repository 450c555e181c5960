"""Data sets × shots × seeds × methods as resumable rows.

Every row states its protocol: encoder, validation images, seed and the digest of the draw, which
names the pictures by their contents. Test images are scored once per row and select nothing.
"""

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crome.errors import InputError
from crome.fewshot.calibration import expected_calibration_error
from crome.fewshot.classifier import FewShotClassifier
from crome.fewshot.data.draws import Draw, draw_shots, identity, with_label_noise
from crome.fewshot.data.leaks import find_leaks
from crome.fewshot.data.sets import ImageSet, labels_of
from crome.fewshot.encoders import Encoder
from crome.fewshot.features import Features, class_features, image_features, view_features
from crome.fewshot.report import report
from crome.fewshot.settings import check_whole
from crome.storage import append_line, locked, replaced

Maker = Callable[..., FewShotClassifier]
LOCK = ".results.jsonl.lock"
CHOSEN = ("alpha", "beta", "gamma")  # settings that a row tells, where the method has them
KEY = ("dataset", "set", "draw", "shots", "seed", "val", "encoder", "views", "noise", "method")


@dataclass(frozen=True)
class Protocol:
    """How often and on what methods are measured.

    Attributes:
        shots: Images per class.
        seeds: Seeds of the draws.
        val: Validation images: few, full or none.
        views: Augmented views of each training image.
        test_per_class: Bound on test images per class, for sets without a test part.
        label_noise: Share of the training images that get a wrong label.
    """

    shots: Sequence[int] = (1, 2, 4, 8, 16)
    seeds: Sequence[int] = (1, 2, 3)
    val: str = "few"
    views: int = 10
    test_per_class: int | None = None
    label_noise: float = 0.0

    def __post_init__(self) -> None:
        check_whole("views", self.views, 0)
        if not self.shots or not self.seeds:
            raise InputError("no shots or no seeds; expected at least one of each.")


def run(
    sets: Sequence[ImageSet],
    encoder: Encoder,
    methods: dict[str, Maker],
    protocol: Protocol,
    out: Path,
    *,
    cache_dir: Path | None = None,
) -> list[dict[str, Any]]:
    """Run what is not yet in ``out/results.jsonl`` and rewrite the table and the plots.

    Args:
        sets: Image sets.
        encoder: Encodes images and class names.
        methods: Table name and maker of each classifier.
        protocol: Shots, seeds and the rest.
        out: Folder of the rows, their predictions, ``table.md`` and the plots.
        cache_dir: Folder of stored features.

    Returns:
        All rows, earlier ones included.

    Raises:
        InputError: Two sets have one name, a set has no training images, or another process is
            writing to `out`.
    """
    _check_names(sets)
    busy = f"another benchmark is writing to {out}; wait, or give another --out."
    with locked(out / LOCK, busy):
        return _run(sets, encoder, methods, protocol, out, cache_dir)


def _run(
    sets: Sequence[ImageSet],
    encoder: Encoder,
    methods: dict[str, Maker],
    protocol: Protocol,
    out: Path,
    cache_dir: Path | None,
) -> list[dict[str, Any]]:
    log = out / "results.jsonl"
    rows = read_rows(log)
    done = {_key(row) for row in rows}
    current = []
    for data in sets:
        for cell in _cells(data, encoder, protocol, cache_dir):
            todo = {
                m: f for m, f in methods.items() if _key(cell.about | {"method": m}) not in done
            }
            for row, predicted in cell.rows(todo) if todo else ():
                cell.keep(predictions_file(out, row), predicted)
                rows.append(row)
                append_line(log, row)
            keys = {_key(cell.about | {"method": m}) for m in methods}
            current += [row for row in rows if _key(row) in keys]
    report(current, out)
    return rows


def predictions_file(out: Path, row: dict[str, Any]) -> Path:
    """Where the predictions of a row are: test pictures by content, their classes and predictions.

    NumPy arrays ``images``, ``labels`` and ``predicted``, all (n,).
    """
    return out / "predictions" / f"{sha256(json.dumps(_key(row)).encode()).hexdigest()[:16]}.npz"


def read_rows(log: Path) -> list[dict[str, Any]]:
    """Rows of earlier runs; the half line of a run that was killed is cut off.

    Raises:
        InputError: A line is no row, or two lines are the same cell.
    """
    content = log.read_bytes() if log.exists() else b""
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        with replaced(log) as temporary:
            temporary.write_bytes(whole)
    try:
        rows = [json.loads(line) for line in whole.splitlines()]
        if not all(isinstance(row, dict) for row in rows):
            raise ValueError("a row is no object")
        times = Counter(map(_key, rows))
    except (ValueError, TypeError, RecursionError) as error:
        raise InputError(
            f"{log} has a line that is not a JSON object ({error}); remove the line."
        ) from error
    if twice := [key for key, number in times.items() if number > 1]:
        named = ", ".join(str(value) for value in twice[0] if value is not None)
        raise InputError(
            f"{log} has {len(twice)} rows more than once, first that of {named}; remove the file, "
            "or the lines that are too many."
        )
    return rows


@dataclass
class _Cell:
    """One draw of a set: what all methods are measured on."""

    data: ImageSet
    encoder: Encoder
    text: Features
    draw: Draw
    about: dict[str, Any]
    cache_dir: Path | None

    def keep(self, file: Path, predicted: NDArray[np.intp]) -> None:
        """Write the predictions on the test pictures, which other methods can be paired with."""
        images = np.array([identity(item.path)[:12] for item in self.draw.test])
        with replaced(file, durable=False) as partial, partial.open("wb") as stream:
            np.savez_compressed(
                stream, images=images, labels=labels_of(self.draw.test), predicted=predicted
            )

    def rows(self, methods: dict[str, Maker]) -> Iterator[tuple[dict[str, Any], NDArray[np.intp]]]:
        """Fit and score each method: its row, and the predicted class of each test picture."""
        draw, views = self.draw, self.about["views"]
        X, y = self._features(draw.train), labels_of(draw.train)
        selection: dict[str, Any] = {}
        if views:
            paths = [item.path for item in draw.train]
            selection["views"] = view_features(
                self.encoder, paths, views, cache_dir=self.cache_dir, quiet=False
            )
        if draw.val:
            selection |= {"X_val": self._features(draw.val), "y_val": labels_of(draw.val)}
        X_test, y_test = self._features(draw.test), labels_of(draw.test)
        settings = {
            "classes": list(range(len(self.data.classes))),
            "logit_scale": self.encoder.logit_scale,
            "device": str(getattr(self.encoder, "device", "cpu")),
        }
        for name, make in methods.items():
            classifier = make(self.text, **settings)
            start = time.process_time()
            classifier.fit(X, y, **selection)
            seconds = time.process_time() - start
            probabilities = classifier.predict_proba(X_test)
            predicted = probabilities.argmax(1)
            chosen = {name: getattr(classifier, f"{name}_", None) for name in CHOSEN}
            row = {
                "method": name,
                "accuracy": float((predicted == y_test).mean()),
                "ece": expected_calibration_error(probabilities, y_test),
                "n": len(y_test),
                "fit_cpu_seconds": round(seconds, 3),
                "chosen": {name: value for name, value in chosen.items() if value is not None},
            }
            yield self.about | row, predicted

    def _features(self, items: Sequence[Any]) -> Any:
        paths = [item.path for item in items]
        return image_features(self.encoder, paths, cache_dir=self.cache_dir, quiet=False)


def _cells(
    data: ImageSet, encoder: Encoder, protocol: Protocol, cache_dir: Path | None
) -> Iterator[_Cell]:
    """The draws of a set; it ends at the first number of shots that some class cannot fill."""
    text = class_features(encoder, data.classes, data.templates)
    for shots in protocol.shots:
        for seed in protocol.seeds:
            draw = draw_shots(
                data, shots, seed, val=protocol.val, test_per_class=protocol.test_per_class
            )
            counts = np.bincount(labels_of(draw.train), minlength=len(data.classes))
            if not (counts == shots).all():
                return
            leaked = _drop_leaks(draw)
            if not draw.test:
                raise InputError(f"{data.name} has no test image that is not a training image too.")
            digest = draw.digest
            noisy = with_label_noise(draw, protocol.label_noise, len(data.classes), seed)
            about = {
                "dataset": data.name, "set": _texts_digest(data), "shots": shots, "seed": seed,
                "val": protocol.val, "encoder": encoder.fingerprint, "views": protocol.views,
                "noise": protocol.label_noise, "draw": digest, "leaks": leaked,
                "device": str(getattr(encoder, "device", "cpu")),
                "dtype": getattr(encoder, "dtype", None),
            }  # fmt: skip
            yield _Cell(data, encoder, text, noisy, about, cache_dir)


def _drop_leaks(draw: Draw) -> int:
    """Take what is also in training out of validation and test, and say how many those were."""
    leaked = {path for _, path in find_leaks(draw)}
    for part in (draw.val, draw.test):
        part[:] = [item for item in part if item.path not in leaked]
    return len(leaked)


def _texts_digest(data: ImageSet) -> str:
    """Eight hexadecimal digits that identify a set's class names and templates."""
    texts = json.dumps([data.classes, list(data.templates)])
    return sha256(texts.encode()).hexdigest()[:8]


def _check_names(sets: Sequence[ImageSet]) -> None:
    """Refuse sets of one name: their rows could not be told apart."""
    if not sets:
        raise InputError("no data set; expected at least one.")
    name, times = Counter(data.name for data in sets).most_common(1)[0]
    if times > 1:
        raise InputError(f"{times} data sets are called {name!r}; rename a folder or file.")


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row.get(name) for name in KEY)
