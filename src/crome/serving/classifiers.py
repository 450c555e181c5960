"""Few-shot classifiers by name: from files when the server starts, or fitted on uploaded pictures.

What is fitted at run time belongs to the key it was fitted with, and nobody else sees it.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from crome.errors import InputError
from crome.images import load_image
from crome.serving.adapters import NAME
from crome.serving.errors import TakenError, UnknownError

logger = logging.getLogger(__name__)
MAX_CLASSES, MAX_IMAGES = 100, 1000
MAX_FITTED = 32  # for one key, so that none can take the others' places
EVERYBODY = None
NOBODY = "without-key"
"""Folder of what was fitted on a server without keys."""


@dataclass(frozen=True)
class Classifier:
    """A fitted classifier.

    Attributes:
        name: What clients call it.
        model: The estimator.
        classes: Names, in the order of the estimator's classes.
        encoder: Name of the encoder whose features it takes.
        dtype: The precision of those.
        about: What is told about it.
        owner: The tenant that may use it; None for everybody.
        created: Seconds since the epoch.
    """

    name: str
    model: Any
    classes: list[str]
    encoder: str
    dtype: str | None
    about: dict[str, Any]
    owner: str | None
    created: int = field(default_factory=lambda: int(time.time()))


class Classifiers:
    """Fits, keeps and asks classifiers; safe to call from several threads.

    Args:
        encoder: For classifiers that are fitted here.
        folder: Where those are kept, for the next start; None for nowhere.
    """

    def __init__(self, encoder: str = "bridge", folder: Path | None = None) -> None:
        self.encoder = encoder
        self.folder = folder
        self._known: dict[tuple[str | None, str], Classifier] = {}
        self._lock = threading.Lock()
        self._encoders: dict[tuple[str, str | None], Any] = {}

    def load(self, name: str, file: Path, owner: str | None = EVERYBODY) -> None:
        """Offers a classifier that `crome fewshot fit` wrote.

        Args:
            name: What it is called here.
            file: Of `crome fewshot fit`, or of `save`.
            owner: Who may use it; None for everybody.

        Raises:
            InputError: It is no such file, or belongs to another encoder.
        """
        from crome.fewshot.commands.saved import check_encoder, class_names
        from crome.fewshot.saving import load_classifier

        model, extra = load_classifier(file)
        encoder = extra.get("encoder")
        if not isinstance(encoder, str):
            raise InputError(
                f"{file} does not say which encoder it belongs to; keep the name with it: "
                'save_classifier(…, extra={"encoder": NAME}).'
            )
        dtype = None if extra.get("dtype") is None else str(extra["dtype"])
        check_encoder(file, extra, self._encoder(encoder, dtype))
        names = class_names(file, model, extra)
        classes = [names[label] for label in model.classes_.tolist()]
        about: dict[str, Any] = {key: extra[key] for key in ("method", "images") if key in extra}
        created = int(extra.get("created") or time.time())
        self._keep(Classifier(name, model, classes, encoder, dtype, about, owner, created))

    def fit(
        self,
        name: str,
        labels: Sequence[str],
        images: Sequence[Any],
        tenant: str,
        method: str | None = None,
        opened: Callable[[Any], Image.Image] = load_image,
    ) -> Classifier:
        """Fits a classifier on a few pictures of each class.

        Args:
            name: What it will be called.
            labels: The class of each picture, in words.
            images: The pictures.
            tenant: Who may use it.
            method: A name from `crome.fewshot.methods`; None for the default.
            opened: Makes a picture of each of `images`, when its turn comes: decoded all at once,
                a thousand would not fit into memory.

        Raises:
            InputError: Labels and pictures do not fit together, or the name is unfit or taken.
        """
        from crome.fewshot.commands import DEFAULT_METHOD
        from crome.fewshot.features import class_features
        from crome.fewshot.methods import METHODS

        method = method or DEFAULT_METHOD
        if method not in METHODS:
            raise InputError(f"method {method[:50]!r}; expected one of {', '.join(METHODS)}.")
        self._check_name(name, tenant)
        classes = _classes(labels, len(images))
        encoder = self._encoder(self.encoder)
        features = self._features(encoder, images, opened)
        y = np.array([classes.index(label.strip()) for label in labels])
        model = METHODS[method](
            class_features(encoder, classes),
            classes=list(range(len(classes))),
            logit_scale=encoder.logit_scale,
        )
        model.fit(features, y)
        about = {"method": method, "images": len(images)}
        dtype = getattr(encoder, "dtype", None)
        kept = self._keep(Classifier(name, model, classes, self.encoder, dtype, about, tenant))
        if self.folder is not None:
            file = self._file(kept)
            file.parent.mkdir(parents=True, exist_ok=True)
            self.save(kept, file)
        return kept

    def save(self, classifier: Classifier, file: Path) -> None:
        """Writes a classifier as `crome fewshot fit` does, for `load` and for `crome fewshot`."""
        from crome.fewshot.saving import save_classifier

        encoder = self._encoder(classifier.encoder, classifier.dtype)
        extra = {
            "encoder": classifier.encoder, "fingerprint": encoder.fingerprint,
            "dtype": classifier.dtype, "class_names": classifier.classes,
            "created": classifier.created, **classifier.about,
        }  # fmt: skip
        save_classifier(classifier.model, file, extra)

    def load_kept(self) -> None:
        """Offers what was fitted before the last stop to those who fitted it.

        What cannot be read any more is logged and left where it is.
        """
        if self.folder is None:
            return
        for file in sorted(self.folder.glob("*/*.safetensors")):
            owner = "" if file.parent.name == NOBODY else file.parent.name
            try:
                self.load(file.stem, file, owner)
            except InputError as error:
                logger.warning("%s is not offered: %s", file, error)

    def _file(self, classifier: Classifier) -> Path:
        assert self.folder is not None
        return self.folder / (classifier.owner or NOBODY) / f"{classifier.name}.safetensors"

    def classify(
        self,
        name: str,
        images: Sequence[Any],
        tenant: str,
        top: int,
        opened: Callable[[Any], Image.Image] = load_image,
    ) -> list[list[tuple[str, float]]]:
        """The likeliest classes of each picture with their probabilities; see `fit`.

        Raises:
            UnknownError: The tenant has no such classifier.
        """
        classifier = self.find(name, tenant)
        encoder = self._encoder(classifier.encoder, classifier.dtype)
        features = self._features(encoder, images, opened)
        shares = classifier.model.predict_proba(features)
        return [
            [(classifier.classes[i], float(row[i])) for i in row.argsort()[::-1][:top]]
            for row in shares
        ]

    def find(self, name: str, tenant: str) -> Classifier:
        """A classifier that the tenant may use: its own before everybody's."""
        for owner in (tenant, EVERYBODY):
            if (owner, name) in self._known:
                return self._known[owner, name]
        raise UnknownError(f"the classifier {name[:100]!r} does not exist.")

    def visible(self, tenant: str) -> list[Classifier]:
        """All that the tenant may use."""
        return [c for c in list(self._known.values()) if c.owner in (tenant, EVERYBODY)]

    def remove(self, name: str) -> None:
        """Forgets whatever has that name, of all tenants.

        Raises:
            UnknownError: Nothing has it.
        """
        with self._lock:
            found = [key for key in self._known if key[1] == name]
            for key in found:
                self._forget(key)
        if not found:
            raise UnknownError(f"the classifier {name[:100]!r} does not exist.")

    def remove_own(self, name: str, tenant: str) -> bool:
        """Forgets a classifier that the tenant has fitted, and says whether there was one."""
        with self._lock:
            return self._forget((tenant, name))

    def _forget(self, key: tuple[str | None, str]) -> bool:
        found = self._known.pop(key, None)
        if found is not None and self.folder is not None and found.owner is not EVERYBODY:
            self._file(found).unlink(missing_ok=True)
        return found is not None

    def _check_name(self, name: str, tenant: str | None) -> None:
        if not NAME.fullmatch(name):
            raise InputError(
                f"the name {name[:100]!r} is unfit; expected letters, digits and . _ - up to 64."
            )
        if (tenant, name) in self._known:
            raise TakenError(f"the name {name!r} is taken.")
        if tenant is not EVERYBODY and self._number(tenant) >= MAX_FITTED:
            raise InputError(f"{MAX_FITTED} classifiers are kept already; have one removed first.")

    def _number(self, tenant: str | None) -> int:
        return sum(owner == tenant for owner, _ in list(self._known))

    def _keep(self, classifier: Classifier) -> Classifier:
        with self._lock:
            self._check_name(classifier.name, classifier.owner)
            self._known[classifier.owner, classifier.name] = classifier
        return classifier

    def _encoder(self, name: str, dtype: str | None = None) -> Any:
        """An encoder, loaded once; None for its own precision."""
        if (name, dtype) not in self._encoders:
            found = _load_encoder(name, dtype)
            precision = getattr(found, "dtype", None)
            self._encoders[name, dtype] = self._encoders.setdefault((name, precision), found)
        return self._encoders[name, dtype]

    @staticmethod
    def _features(
        encoder: Any, images: Sequence[Any], opened: Callable[[Any], Image.Image]
    ) -> NDArray[np.float32]:
        """(n, width) features, a few pictures at a time."""
        from crome.fewshot.features import image_features

        return image_features(encoder, map(opened, images))


def _classes(labels: Sequence[str], images: int) -> list[str]:
    """The distinct labels in order of the alphabet."""
    if len(labels) != images:
        raise InputError(f"{images} images and {len(labels)} labels; expected a label for each.")
    if images > MAX_IMAGES:
        raise InputError(f"{images} images; expected at most {MAX_IMAGES}.")
    classes = sorted({label.strip() for label in labels})
    if not 2 <= len(classes) <= MAX_CLASSES:
        raise InputError(f"{len(classes)} classes; expected 2 to {MAX_CLASSES}.")
    if not all(0 < len(name) <= 200 for name in classes):
        raise InputError("a class has no name, or one of more than 200 characters.")
    return classes


def _load_encoder(name: str, dtype: str | None) -> Any:
    from crome.fewshot.encoders import load_encoder

    return load_encoder(name, dtype=dtype)
