"""``crome fewshot fit``: a classifier from a few images per class."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from crome.errors import InputError, not_negative
from crome.fewshot.commands.gathering import (
    Gathered,
    Leaks,
    OnBadImage,
    by_label,
    gather,
    handle_leaks,
    report_shortage,
)
from crome.fewshot.commands.terminal import (
    Precision,
    describe_accuracy,
    show,
    warnings_as_lines,
)

if TYPE_CHECKING:
    from crome.fewshot.classifier import FewShotClassifier
    from crome.fewshot.data.draws import Draw
    from crome.fewshot.data.sets import ImageSet
    from crome.fewshot.encoders import Encoder

DEFAULT_METHOD = "xmadapter"
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
    leaks: Leaks = "warn",
    on_bad_image: OnBadImage = "refuse",
    device: str | None = None,
    dtype: Precision | None = None,
) -> None:
    """Fit a classifier on a few images per class and test it on those left over.

    Args:
        images: Folder with one folder per class (optionally under train, val and test), or a CSV
            file with the columns image and label, and optionally split.
        out: File for the classifier.
        shots: Training images per class; a class that has fewer gives what it has.
        method: zero-shot, nearest-centroid, linear-probe, tip-adapter, tip-adapter-f, gda, ape,
            xmadapter, or xmadapter-published (as the paper describes it, as far as that is known).
        encoder: bridge (embedded, no hub needed), a folder or hub id of a CLIP-style model, or
            open_clip:MODEL/PRETRAINED.
        templates: Prompts with {} for the class name.
        views: Augmented views per training image, encoded once; 0 for none.
        val: few: min(shots, 4) images per class select the settings; full: the whole validation
            part, as in the papers' tables; none: cross-validation over the training images.
        seed: Seed of the draw and of the training order.
        draw: JSON file with an explicit draw, written if absent.
        leaks: What to do about pictures that are in training and in test, also as copies that were
            encoded anew.
        on_bad_image: What to do about pictures that cannot be read; all are named either way.
        device: Where to compute, such as cpu, cuda or mps; by default a GPU of CUDA if there is
            one.
        dtype: Precision of the encoder; by default float32, or for bridge bfloat16 where the
            processor multiplies it.
    """
    from crome.fewshot.encoders import load_encoder
    from crome.fewshot.methods import METHODS

    if method not in METHODS:
        raise InputError(f"method {method!r}; expected one of {', '.join(METHODS)}.")
    if out.is_dir():
        raise InputError(
            f"{out} is a folder; expected a file, as in --out {out}/classifier.safetensors."
        )
    not_negative(views=views)
    with warnings_as_lines():
        data, run = _draw(images, templates, shots, seed, val, draw)
    report_shortage(data, run, shots)
    handle_leaks(run, leaks)
    towers = load_encoder(encoder, device=device, dtype=dtype)
    features = gather(towers, run, views, on_bad_image)
    with warnings_as_lines():
        model, zero_shot = _learn(METHODS[method], data, run, towers, features, seed)
    _save(model, out, data, run, towers, encoder, method)
    show(
        f"{method} on {data.name}: {len(data.classes)} classes, {len(run.train)} training images, "
        f"settings by {_selection(run)}, draw {run.digest}, seed {seed}, encoder {towers.name}"
    )
    if run.test:
        y = [item.label for item in run.test]
        for name, classifier in ((method, model), ("zero-shot", zero_shot)):
            right = int((classifier.predict(features.test) == y).sum())
            show(f"  {name:16s} {describe_accuracy(right, len(y))}")
    else:
        show("  no image left to test on")
    show(f"written to {out}")


def _draw(
    images: Path, templates: list[str] | None, shots: int, seed: int, val: str, draw: Path | None
) -> tuple["ImageSet", "Draw"]:
    from crome.fewshot.data.draws import draw_shots, read_draw, write_draw
    from crome.fewshot.data.reading import read_images

    data = read_images(images, **({"templates": templates} if templates else {}))
    if draw is not None and draw.exists():
        return data, read_draw(draw, data)
    run = draw_shots(data, shots, seed, val=val)
    if draw is not None:
        write_draw(run, data, draw)
    return data, run


def _learn(
    make: Any,
    data: "ImageSet",
    run: "Draw",
    towers: "Encoder",
    features: Gathered,
    seed: int,
) -> tuple["FewShotClassifier", "FewShotClassifier"]:
    """The fitted classifier, and the zero-shot one fitted on the same images."""
    from crome.fewshot.data.sets import labels_of
    from crome.fewshot.features import class_features
    from crome.fewshot.methods.zero_shot import ZeroShotClassifier

    text = class_features(towers, data.classes, data.templates)
    selection: dict[str, Any] = {"views": features.views}
    if run.val:
        selection |= {"X_val": features.val, "y_val": labels_of(run.val)}
    about: dict[str, Any] = {
        "classes": list(range(len(data.classes))),
        "logit_scale": towers.logit_scale,
        "device": str(getattr(towers, "device", "cpu")),
    }
    models = []
    for kind in (make, ZeroShotClassifier):
        model = kind(text, **about)
        if "random_state" in model.get_params():
            model.set_params(random_state=seed)
        models.append(model.fit(features.train, labels_of(run.train), **selection))
        model.device = None  # the next machine may have no such device
    return models[0], models[1]


def _save(
    model: "FewShotClassifier",
    out: Path,
    data: "ImageSet",
    run: "Draw",
    towers: "Encoder",
    encoder: str,
    method: str,
) -> None:
    from crome.fewshot.data.leaks import signatures
    from crome.fewshot.pictures import content_hash
    from crome.fewshot.saving import save_classifier

    used = [item.path for item in (*run.train, *run.val)]
    cached = [item.path.absolute() for item in by_label(run.train)]
    extra = {
        "encoder": str(Path(encoder).absolute()) if Path(encoder).is_dir() else towers.name,
        "fingerprint": towers.fingerprint,
        "dtype": getattr(towers, "dtype", None),
        "class_names": data.classes,
        "templates": list(data.templates),
        "method": method,
        "draw": run.digest,
        "cached_images": [str(path) for path in cached],
        "cached_from_here": [os.path.relpath(path, out.absolute().parent) for path in cached],
        "used": [content_hash(path) for path in used],
        "used_signatures": signatures(used),
    }
    save_classifier(model, out, extra)


def _selection(run: "Draw") -> str:
    if run.val:
        return f"{len(run.val)} validation images"
    labels = [item.label for item in run.train]
    once = any(labels.count(label) < 2 for label in set(labels))
    return "default, for want of images" if once else "cross-validation"
