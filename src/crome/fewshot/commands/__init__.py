"""The verbs of ``crome fewshot``: a classifier from a few images, and the papers' tables."""

import csv
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from crome.errors import InputError, positive
from crome.intervals import wilson

if TYPE_CHECKING:
    from crome.fewshot.base import FewShotClassifier
    from crome.fewshot.datasets import Draw, ImageSet
    from crome.fewshot.encoders import Encoder

# Heavy imports (torch, scikit-learn) are inside the verbs: `--help` must not pay for them.
DEFAULT_METHOD = "xmadapter"
MOST_DRAWN = 50  # a picture of more rows is too tall to look at
Validation = Literal["few", "full", "none"]


def fit(
    images: Path,
    out: Path = Path("classifier.safetensors"),
    shots: int = 16,
    method: str = DEFAULT_METHOD,
    encoder: str = "bridge",
    templates: list[str] | None = None,
    views: int = 10,
    val: Validation = "few",
    seed: int = 1,
    draw: Path | None = None,
    leaks: Literal["warn", "refuse"] = "warn",
) -> None:
    """Fit a classifier on a few images per class and test it on those left over.

    Args:
        images: Folder with one folder per class (optionally under train, val and test), or a CSV
            file with the columns image and label, and optionally split.
        out: Where the classifier goes, one file.
        shots: Training images per class; a class that has fewer gives what it has.
        method: zero-shot, nearest-centroid, linear-probe, tip-adapter, tip-adapter-f, gda, ape,
            xmadapter, or xmadapter-published (as the paper describes it, as far as that is known).
        encoder: bridge (embedded, no hub needed), a folder or hub id of a CLIP-style model, or
            open_clip:MODEL/PRETRAINED.
        templates: Prompts with {} for the class name.
        views: Augmented views per training image, encoded once; 0 for none.
        val: few: min(shots, 4) images per class select the settings; full: the whole validation
            part, as in the papers' tables; none: cross-validation over the training images.
        seed: Of the draw and of the training order.
        draw: JSON file with an explicit draw, written if absent.
        leaks: What to do about identical files in training and test.
    """
    from crome.fewshot.datasets import draw_shots, read_draw, read_images, write_draw
    from crome.fewshot.encoders import content_hash, load_encoder
    from crome.fewshot.saving import save_classifier

    chosen = _method(method)
    if out.is_dir():
        raise InputError(
            f"{out} is a folder; expected a file, as in --out {out}/classifier.safetensors."
        )
    data = read_images(images, **({"templates": templates} if templates else {}))
    if draw is not None and draw.exists():
        run = read_draw(draw, data)
    else:
        run = draw_shots(data, shots, seed, val=val)
        if draw is not None:
            write_draw(run, data, draw)
    _report_shortage(data, run, shots)
    _handle_leaks(run, leaks)
    towers = load_encoder(encoder)
    classifier, zero_shot = _fit(chosen, data, run, towers, views, seed)
    extra = {
        "encoder": str(Path(encoder).absolute()) if Path(encoder).is_dir() else towers.name,
        "fingerprint": towers.fingerprint,
        "class_names": data.classes,
        "templates": list(data.templates),
        "method": method,
        "draw": run.digest,
        "cached_images": [str(item.path.absolute()) for item in _by_label(run.train)],
        "used": [content_hash(item.path) for item in (*run.train, *run.val)],
    }
    save_classifier(classifier, out, extra)
    _print(
        f"{method} on {data.name}: {len(data.classes)} classes, {len(run.train)} training images, "
        f"settings by {_selection(run)}, "
        f"draw {run.digest}, seed {seed}, encoder {towers.name}"
    )
    if run.test:
        X, y = _features(towers, run.test)
        for name, model in ((method, classifier), ("zero-shot", zero_shot)):
            _print(f"  {name:16s} {describe_accuracy(int((model.predict(X) == y).sum()), len(y))}")
    else:
        _print("  no image left to test on")
    _print(f"written to {out}")


def predict(classifier: Path, images: list[Path], out: Path | None = None, top: int = 3) -> None:
    """Classify images.

    Args:
        classifier: File written by `crome fewshot fit`.
        images: Image files, or folders of images.
        out: CSV file with image, label, probability; by default a line per image is printed.
        top: Labels shown per image.
    """
    from crome.fewshot.encoders import image_features

    positive(top=top)
    files = _expand(images)
    model, extra, towers = _load(classifier)
    probabilities = model.predict_proba(image_features(towers, files)[0])
    names = extra["class_names"]
    rows = []
    for path, row in zip(files, probabilities, strict=True):
        best = row.argsort()[::-1][:top]
        rows.append((path, [(names[model.classes_[i]], float(row[i])) for i in best]))
    if out is None:
        for path, guesses in rows:
            _print(f"{path}  " + ", ".join(f"{name} {p:.2f}" for name, p in guesses))
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("w", newline="", encoding="utf-8", errors="surrogateescape") as stream:
        writer = csv.writer(stream)
        writer.writerow(["image", "label", "probability"])
        writer.writerows([path, guesses[0][0], f"{guesses[0][1]:.6f}"] for path, guesses in rows)


def evaluate(
    classifier: Path,
    images: Path,
    part: Literal["train", "val", "test"] = "test",
    json_out: Path | None = None,
) -> None:
    """Measure a saved classifier on labelled images; those it was fitted on are left out.

    Args:
        classifier: File written by `crome fewshot fit`.
        images: Folder per class or CSV file, with the class names of the classifier.
        part: train, val or test; a set without parts is used whole.
        json_out: Where the numbers go as JSON, beside the printed ones.
    """
    import numpy as np

    from crome.fewshot.calibration import expected_calibration_error
    from crome.fewshot.datasets import read_images
    from crome.fewshot.encoders import content_hash

    model, extra, towers = _load(classifier)
    data = read_images(images)
    all_items = getattr(data, part)
    if not (data.val or data.test):
        all_items = data.train
    if not all_items:
        raise InputError(f"{images} has no {part} part; name another with --part.")
    used = set(extra.get("used", ()))
    items = [item for item in all_items if content_hash(item.path) not in used]
    if not items:
        raise InputError(f"{classifier} was fitted on every image of {images}: none is left.")
    if seen := len(all_items) - len(items):
        _warn(f"{seen} of {len(all_items)} images were used in fitting; they are left out")
    names = extra["class_names"]
    if unknown := sorted(set(data.classes) - set(names)):
        raise InputError(
            f"{images} has the class {unknown[0]!r}, which {classifier} does not know: "
            f"{', '.join(names[:8])}. Fit again, or rename the folder."
        )
    X, local = _features(towers, items)
    y = np.array([names.index(data.classes[label]) for label in local])
    probabilities = model.predict_proba(X)
    right = int((model.classes_[probabilities.argmax(1)] == y).sum())
    error = expected_calibration_error(probabilities, y)
    _print(f"{describe_accuracy(right, len(y))}, calibration error {error:.3f}")
    if json_out is not None:
        low, high = wilson(right, len(y))
        json_out.parent.mkdir(parents=True, exist_ok=True)
        json_out.write_text(
            json.dumps(
                {
                    "accuracy": right / len(y),
                    "low": low,
                    "high": high,
                    "n": len(y),
                    "ece": error,
                    "draw": extra["draw"],
                    "method": extra["method"],
                    "encoder": extra["encoder"],
                },
                indent=1,
            )
        )


def benchmark(
    sets: list[str],
    out: Path = Path("fewshot-benchmark"),
    root: Path | None = None,
    methods: list[str] | None = None,
    shots: list[int] = [1, 2, 4, 8, 16],  # noqa: B006 - never changed; the default is the help
    seeds: list[int] = [1, 2, 3],  # noqa: B006
    encoder: str = "bridge",
    val: Validation = "few",
    views: int = 10,
    test_per_class: int | None = None,
    ablate: bool = False,
) -> None:
    """Run data sets × shots × seeds × methods into one table and its plots; resumes by itself.

    Args:
        sets: Folders or CSV files of labelled images, or names of published sets under root.
        out: Folder of results.jsonl, table.md and the plots. Rows already there are not run again.
        root: Data folder of the published sets, in CoOp's layout.
        methods: Methods to run; all by default.
        shots: Images per class.
        seeds: Of the draws.
        encoder: As in fit.
        val: few, full or none, as in fit; every table says which.
        views: Augmented views per training image.
        test_per_class: At most so many test images per class, for sets without a test part.
        ablate: Run XMAdapter's ablations instead: the blend fixed or learned, hard weighting,
            whitening, training, the text scale.
    """
    from crome.fewshot.benchmark import run
    from crome.fewshot.coop import BENCHMARKS, read_benchmark
    from crome.fewshot.datasets import read_images
    from crome.fewshot.encoders import load_encoder
    from crome.fewshot.methods import ABLATIONS, METHODS

    table = ABLATIONS if ablate else METHODS
    if unknown := sorted(set(methods or ()) - set(table)):
        raise InputError(f"method {unknown[0]!r}; expected some of {', '.join(table)}.")
    if root is None and (named := [name for name in sets if name in BENCHMARKS]):
        raise InputError(f"the published set {named[0]} needs --root, its data folder.")
    data = [
        read_benchmark(name, root) if root and name in BENCHMARKS else read_images(Path(name))
        for name in sets
    ]
    chosen = {name: table[name] for name in methods or table}
    run(
        data, load_encoder(encoder), chosen, shots, seeds, out,
        val=val, views=views, test_per_class=test_per_class,
    )  # fmt: skip
    _print(f"written to {out}: results.jsonl, table.md, plots")


def explain(
    classifier: Path, images: list[Path], out: Path = Path("explanation.png"), top: int = 5
) -> None:
    """Show which labelled images, and how far the class names, decided each prediction.

    Args:
        classifier: File written by `crome fewshot fit`, of a method with a cache.
        images: Image files, or folders of images.
        out: Picture to draw, of at most 50 images.
        top: Labelled images shown per image.
    """
    from crome.fewshot.encoders import image_features
    from crome.fewshot.explain import draw_explanations
    from crome.fewshot.explain import explain as explain_rows

    positive(top=top)
    files = _expand(images)
    model, extra, towers = _load(classifier)
    found = explain_rows(model, image_features(towers, files)[0], top)
    names = extra["class_names"]
    cached = [Path(path) for path in extra["cached_images"]]
    for path, what in zip(files, found, strict=True):
        nearest = cached[what.neighbours[0][0]].name if what.neighbours else "none"
        _print(
            f"{path}  {names[what.label]} {what.probability:.2f}; log-odds over "
            f"{names[what.runner_up]}: name {what.text_margin:+.1f}, images "
            f"{what.image_margin:+.1f}; most alike: {nearest}"
        )
    draw_explanations(found[:MOST_DRAWN], files[:MOST_DRAWN], cached, names, out)
    _print(f"drawn to {out}")


def quickstart(
    images: Path | None = None, out: Path = Path("fewshot-quickstart"), encoder: str = "bridge"
) -> None:
    """Fit on 16 pictures per class, test, and draw why: under a minute on a CPU.

    Args:
        images: Folder with one folder per class; by default the small Fashion-MNIST sample that
            comes with the package (10 classes, 16 training and 100 test pictures each).
        out: Folder of the classifier and the picture.
        encoder: As in fit.
    """
    from crome.fewshot.datasets import draw_shots, read_images
    from crome.fewshot.sample import unpack_sample

    source = unpack_sample(out / "fashion-mnist") if images is None else images
    file = out / "classifier.safetensors"
    # All pictures of the sample train and cross-validation selects: it has no others to select on.
    val: Validation = "none" if images is None else "few"
    fit(source, file, encoder=encoder, views=0, val=val, seed=1)
    left = draw_shots(read_images(source), 16, 1, val=val).test
    first = {item.label: item.path for item in reversed(left)}
    if shown := [first[label] for label in sorted(first)[:8]]:
        explain(file, shown, out / "explanation.png")
    _print(
        f"next: crome fewshot predict {file} PHOTO.jpg, or your own pictures, a folder per class: "
        "crome fewshot fit FOLDER"
    )


def describe_accuracy(right: int, n: int) -> str:
    """Accuracy in per cent with its 95 % interval, as in ``81.2 % (95 %: 74.0 to 86.8, n=143)``."""
    low, high = wilson(right, n)
    return f"{100 * right / n:.1f} % (95 %: {100 * low:.1f} to {100 * high:.1f}, n={n})"


def _method(name: str) -> Any:
    from crome.fewshot.methods import METHODS

    if name not in METHODS:
        raise InputError(f"method {name!r}; expected one of {', '.join(METHODS)}.")
    return METHODS[name]


def _fit(
    make: Any, data: "ImageSet", run: "Draw", towers: "Encoder", views: int, seed: int
) -> tuple["FewShotClassifier", "FewShotClassifier"]:
    """The fitted classifier, and the zero-shot one fitted on the same images."""
    from crome.fewshot.datasets import labels_of
    from crome.fewshot.encoders import class_features, image_features
    from crome.fewshot.zero_shot import ZeroShotClassifier

    text = class_features(towers, data.classes, data.templates)
    X, V = image_features(towers, [item.path for item in run.train], views=views)
    kwargs: dict[str, Any] = {"views": V}
    if run.val:
        kwargs["X_val"], kwargs["y_val"] = _features(towers, run.val)
    about: dict[str, Any] = {
        "classes": list(range(len(data.classes))),
        "logit_scale": towers.logit_scale,
    }
    classifier = make(text, **about)
    if "random_state" in classifier.get_params():
        classifier.set_params(random_state=seed)
    zero_shot = ZeroShotClassifier(text, **about)
    for model in (classifier, zero_shot):
        model.fit(X, labels_of(run.train), **kwargs)
    return classifier, zero_shot


def _features(towers: "Encoder", items: list[Any]) -> tuple[Any, Any]:
    from crome.fewshot.datasets import labels_of
    from crome.fewshot.encoders import image_features

    return image_features(towers, [item.path for item in items])[0], labels_of(items)


def _load(file: Path) -> tuple["FewShotClassifier", dict[str, Any], "Encoder"]:
    from crome.fewshot.encoders import load_encoder
    from crome.fewshot.saving import load_classifier

    model, extra = load_classifier(file)
    towers = load_encoder(extra["encoder"])
    if towers.fingerprint != extra["fingerprint"]:
        raise InputError(
            f"{file} was fitted on features of {extra['fingerprint']}, and {extra['encoder']!r} is "
            f"now {towers.fingerprint}: its weights or preprocessing differ. Fit again."
        )
    return model, extra, towers


def _expand(paths: list[Path]) -> list[Path]:
    from crome.fewshot.datasets import image_files

    files: list[Path] = []
    for path in paths:
        files += image_files(path) if path.is_dir() else [path]
    if not files:
        raise InputError(f"no image in {', '.join(map(str, paths))}.")
    return files


def _by_label(items: list[Any]) -> list[Any]:
    return sorted(items, key=lambda item: item.label)  # stable: the order of the cache


def _selection(run: "Draw") -> str:
    if run.val:
        return f"{len(run.val)} validation images"
    labels = [item.label for item in run.train]
    once = any(labels.count(label) < 2 for label in labels)
    return "default, for want of images" if once else "cross-validation"


def _report_shortage(data: "ImageSet", run: "Draw", shots: int) -> None:
    have = [0] * len(data.classes)
    for item in run.train:
        have[item.label] += 1
    short = [f"{data.classes[c]} ({n})" for c, n in enumerate(have) if n < shots]
    if short:
        _warn(
            f"fewer than {shots} training images for {len(short)} class(es): "
            f"{', '.join(short[:5])}{', …' if len(short) > 5 else ''}"
        )


def _handle_leaks(run: "Draw", leaks: str) -> None:
    from crome.fewshot.datasets import find_contradiction, find_leaks

    if pair := find_contradiction([*run.train, *run.val]):
        _warn(f"the same picture has two labels: {pair[0]} and {pair[1]}")
    found = {path: known for known, path in find_leaks(run)}
    for name, part in (("test", run.test), ("validation", run.val)):
        dropped = [item for item in part if item.path in found]
        if not dropped:
            continue
        path = dropped[0].path
        message = (
            f"{len(dropped)} {name} image(s) are also training images, such as {path} = "
            f"{found[path]}"
        )
        if leaks == "refuse":
            raise InputError(message + "; remove them, or pass --leaks warn.")
        part[:] = [item for item in part if item.path not in found]
        _warn(f"{message}; they are left out of the {name}")


def _print(text: str) -> None:
    # File names need not be valid UTF-8, and Python's stand-ins for what is not cannot be printed.
    print(text.encode(errors="surrogateescape").decode(errors="replace"))


def _warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr)


VERBS = {
    "quickstart": quickstart,
    "fit": fit,
    "predict": predict,
    "evaluate": evaluate,
    "benchmark": benchmark,
    "explain": explain,
}
