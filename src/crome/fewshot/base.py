"""What all few-shot classifiers share: input checks, class alignment, validation, probabilities.

A feature row has the encoder's joint image-text embedding in its first columns, as wide as
``class_features``; any further columns are image-only features, and the image cache is then built
on those. Rows need not be normalised. Every classifier adds evidence from images to the zero-shot
logits, and differs only in how that evidence is made.

Legend: n samples, N classes, C joint width, V views.
"""

import warnings
from dataclasses import dataclass, field
from typing import Any, Literal, Self, get_args, get_origin, get_type_hints

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.model_selection import StratifiedKFold
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_array, check_is_fitted, validate_data
from torch import Tensor
from torch.nn.functional import nll_loss, normalize

from crome.errors import InputError
from crome.fewshot.order import misplaced
from crome.fewshot.unseen import UNCHOSEN, choose_offset, fill_unseen

FOLDS = 4


@dataclass
class Samples:
    """Checked, normalised samples.

    Attributes:
        joint: Unit rows in the image-text space, (n, C).
        image: Unit rows in the cache's space, (n, C').
        zero_shot: Zero-shot logits, (n, N); zeros without class features.
        labels: Class indices, (n,); empty when unknown.
        views: The same for each augmented view, without views of their own.
    """

    joint: Tensor
    image: Tensor
    zero_shot: Tensor
    labels: Tensor
    views: tuple["Samples", ...] = ()

    def __len__(self) -> int:
        return len(self.joint)

    def __getitem__(self, index: Tensor) -> "Samples":
        views = tuple(view[index] for view in self.views)
        return Samples(
            self.joint[index], self.image[index], self.zero_shot[index], self.labels[index], views
        )


@dataclass(repr=False, eq=False, kw_only=True)
class FewShotClassifier(ClassifierMixin, BaseEstimator):
    """Base of the classifiers: subclasses implement ``_learn`` and ``evidence``.

    Settings are dataclass fields: the constructor stores them and does nothing else, which is
    scikit-learn's contract, and a subclass adds only what it has of its own.
    """

    class_features: ArrayLike | None = field(default=None, kw_only=False)
    classes: ArrayLike | None = None
    logit_scale: float = 100.0

    def fit(
        self,
        X: ArrayLike,
        y: ArrayLike,
        *,
        X_val: ArrayLike | None = None,
        y_val: ArrayLike | None = None,
        views: ArrayLike | None = None,
    ) -> Self:
        """Learn from a few labelled images per class.

        Args:
            X: Features of the training images, (n_samples, n_features).
            y: Their labels, (n_samples,), in any order.
            X_val: Features on which settings are selected; by default, cross-validation over the
                training images, and fixed settings where a class has one image only.
            y_val: Labels of ``X_val``.
            views: Features of augmented views of the training images,
                (n_samples, n_views, n_features): cache keys are their mean, and training epochs
                take them in turn.

        Returns:
            The fitted classifier.

        Raises:
            InputError: Labels, class features and classes do not match.
        """
        self._check_settings()
        X, y = validate_data(self, X, y, dtype=[np.float64, np.float32], ensure_min_samples=1)
        check_classification_targets(y)
        self._align_classes(np.asarray(y))
        shots = self.samples(X, y)
        self._warn_of_order(shots)
        if views is not None:
            shots.views = self._check_views(views, shots, np.asarray(X).dtype)
        val = None
        if X_val is not None or y_val is not None:
            if X_val is None or y_val is None:
                raise InputError("X_val and y_val belong together; got only one of them.")
            X_val, y_val = validate_data(
                self, X_val, y_val, reset=False, dtype=[np.asarray(X).dtype]
            )
            val = self.samples(X_val, y_val)
        self.seen_ = np.bincount(shots.labels.numpy(), minlength=len(self.classes_)) > 0
        if val is not None:  # images of classes without shots select nothing
            val = self._among_seen(val) if self.seen_[val.labels.numpy()].any() else None
        self._learn(self._among_seen(shots), val)
        return self

    def decision_function(self, X: ArrayLike) -> NDArray[Any]:
        """Logits of each class, (n_samples, n_classes); their difference, (n_samples,), for two."""
        values = self._numpy_logits(X)
        return values[:, 1] - values[:, 0] if values.shape[1] == 2 else values

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Most likely label of each sample, (n_samples,)."""
        logits = self._numpy_logits(X)
        return self.classes_[logits.argmax(1)]

    def predict_proba(self, X: ArrayLike) -> NDArray[Any]:
        """Class probabilities, (n_samples, n_classes), calibrated on the validation images."""
        values = torch.from_numpy(self._numpy_logits(X)) / self.temperature_
        return torch.softmax(values, 1).numpy()

    def _numpy_logits(self, X: ArrayLike) -> NDArray[Any]:
        check_is_fitted(self)
        X = validate_data(self, X, reset=False, dtype=[np.float64, np.float32])
        with torch.inference_mode():
            return self.logits(self.samples(X)).numpy()

    def logits(self, samples: Samples) -> Tensor:
        """Logits (n, N)."""
        evidence = self.alpha_ * self.evidence(samples)
        filled = fill_unseen(evidence, torch.from_numpy(self.seen_), self.unseen_offset_)
        return samples.zero_shot + filled

    def evidence(self, samples: Samples) -> Tensor:
        """What the images say of the classes that have some, (n, S)."""
        raise NotImplementedError

    def _learn(self, shots: Samples, val: Samples | None) -> None:
        """Learn from samples whose logits and labels are among the S classes with images."""
        raise NotImplementedError

    def _check_settings(self) -> None:
        """Refuse settings out of range; here and not in the constructor, by scikit-learn's rule."""
        for name, kind in get_type_hints(type(self)).items():
            if get_origin(kind) is Literal and getattr(self, name) not in get_args(kind):
                raise InputError(
                    f"{name}={getattr(self, name)!r}; expected {' or '.join(get_args(kind))}."
                )

    def _among_seen(self, samples: Samples) -> Samples:
        """The samples of classes with images, with logits and labels among those."""
        seen = torch.from_numpy(self.seen_)
        if seen.all():
            return samples
        kept = samples[seen[samples.labels]]
        for part in (kept, *kept.views):
            part.zero_shot = part.zero_shot[:, seen]
            part.labels = (seen.cumsum(0) - 1)[part.labels]
        return kept

    def _align_classes(self, y: NDArray[Any]) -> None:
        """Set ``classes_`` (sorted) and ``text_``, one unit row per class or none at all."""
        present = np.unique(y)
        named = present if self.classes is None else np.asarray(self.classes)
        self.classes_, counts = np.unique(named, return_counts=True)
        if (counts > 1).any():
            raise InputError(
                f"classes= names {self.classes_[counts > 1].tolist()[0]!r} more than once."
            )
        if extra := set(present.tolist()) - set(self.classes_.tolist()):
            raise InputError(f"labels {sorted(extra)} are not in classes={list(self.classes_)}.")
        self.text_ = np.zeros((len(self.classes_), 0))
        if self.class_features is None:
            if len(present) < len(self.classes_):
                raise InputError(
                    f"class {sorted(set(self.classes_.tolist()) - set(present.tolist()))[0]!r} has "
                    "no training image and, without class_features, no text; give either."
                )
            return
        text = check_array(self.class_features, dtype=[np.float64, np.float32])
        if len(text) != len(self.classes_):
            raise InputError(
                f"class_features has {len(text)} rows, and there are {len(self.classes_)} classes: "
                f"{_some(self.classes_)}. Give one row per class in sorted label order, or name "
                "the row order in classes=, which also allows classes without images."
            )
        if text.shape[1] > self.n_features_in_:
            raise InputError(
                f"class_features has {text.shape[1]} columns and X only {self.n_features_in_}: "
                "they must come from the same encoder."
            )
        if self.classes is not None:
            text = text[np.argsort(np.asarray(self.classes))]
        unit = text / np.linalg.norm(text, axis=1, keepdims=True).clip(1e-12)
        self.text_ = np.ascontiguousarray(unit)

    def _warn_of_order(self, shots: Samples) -> None:
        pairs = misplaced(shots.zero_shot, shots.labels) if self.text_.shape[1] else []
        if pairs:
            label, row = (self.classes_.tolist()[i] for i in pairs[0])
            warnings.warn(
                f"class_features may be in another order than the labels: nearly all images of "
                f"{label!r} are nearest to the row of {row!r} ({len(pairs)} classes like this). "
                "Rows must follow the sorted labels, or classes=.",
                stacklevel=3,
            )

    def _seen_text(self, dtype: torch.dtype) -> Tensor:
        """Unit text rows of the classes with images, (S, C)."""
        return torch.from_numpy(self.text_[self.seen_]).to(dtype)

    def samples(self, X: Any, y: ArrayLike | None = None) -> Samples:
        """Split and normalise feature rows (n, n_features), with zero-shot logits and labels."""
        rows = torch.from_numpy(np.require(X, requirements=["C", "W"]))
        width = self.text_.shape[1] or rows.shape[1]
        joint, rest = normalize(rows[:, :width], dim=1), normalize(rows[:, width:], dim=1)
        text = torch.from_numpy(self.text_).to(rows.dtype)
        if text.shape[1]:
            zero_shot = self.logit_scale * joint @ text.T
        else:
            zero_shot = joint.new_zeros(len(joint), len(text))
        labels = torch.zeros(0, dtype=torch.long) if y is None else self._codes(y)
        return Samples(joint, rest if rest.shape[1] else joint, zero_shot, labels)

    def _codes(self, y: ArrayLike) -> Tensor:
        y = np.asarray(y)
        if unknown := set(np.unique(y).tolist()) - set(self.classes_.tolist()):
            raise InputError(f"labels {sorted(unknown)} are not among {_some(self.classes_)}.")
        return torch.from_numpy(np.searchsorted(self.classes_, y))

    def _check_views(self, views: ArrayLike, shots: Samples, dtype: Any) -> tuple[Samples, ...]:
        array = check_array(views, allow_nd=True, dtype=[dtype])
        if array.ndim != 3 or array[:, 0].shape != (len(shots), self.n_features_in_):
            raise InputError(
                f"views has shape {array.shape}; expected ({len(shots)}, n_views, "
                f"{self.n_features_in_}), in the order of X."
            )
        y = self.classes_[shots.labels.numpy()]
        # The mean of raw rows is what Tip-Adapter caches; it is kept as one more, first, view.
        return tuple(self.samples(rows, y) for rows in (array.mean(1), *np.moveaxis(array, 1, 0)))

    def _calibrate(self, zero_shot: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Choose the temperature, and what stands in for missing images, on held-out images.

        Args:
            zero_shot: (n, S).
            logits: (n, S).
            labels: (n,).
        """
        self.unseen_offset_, self.temperature_ = UNCHOSEN, 1.0
        if len(labels):
            self.temperature_ = best_temperature(logits, labels)
            self.unseen_offset_ = choose_offset(zero_shot, logits - zero_shot, labels)


def splits(
    shots: Samples, val: Samples | None, *, cross: bool, seed: int
) -> list[tuple[Samples, Samples]]:
    """Pairs (training, held-out) on which settings are selected; the first has the given images.

    Args:
        shots: Training images.
        val: Validation images, if any.
        cross: Whether to add cross-validation folds of the shots to validation images that are no
            more than the shots. Without validation images the folds are all there is, and with
            one image per class nothing.
        seed: Of the shuffle.
    """
    pairs = [] if val is None else [(shots, val)]
    fewest = int(torch.bincount(shots.labels)[shots.labels.unique()].min())
    if fewest < 2 or not (val is None or (cross and len(val) <= len(shots))):
        return pairs
    splitter = StratifiedKFold(min(FOLDS, fewest), shuffle=True, random_state=seed)
    for train, test in splitter.split(np.zeros(len(shots)), shots.labels.numpy()):
        pairs.append((shots[torch.from_numpy(train)], shots[torch.from_numpy(test)]))
    return pairs


def mean_rows(rows: Tensor, labels: Tensor, n_classes: int) -> Tensor:
    """Mean row of each class (N, C') of rows (n, C'); a class without rows gets zeros."""
    counts = torch.bincount(labels, minlength=n_classes).clamp_min(1)[:, None]
    return rows.new_zeros(n_classes, rows.shape[1]).index_add(0, labels, rows) / counts


def within_class_scatter(shots: Samples, n_classes: int) -> tuple[Tensor, Tensor, int]:
    """Class means (N, C'), scatter around them (C', C') and the number of rows, over all views."""
    parts = shots.views[1:] or (shots,)
    rows, labels = torch.cat([p.image for p in parts]), torch.cat([p.labels for p in parts])
    means = mean_rows(rows, labels, n_classes)
    rest = rows - means[labels]
    return means, rest.T @ rest, len(rows)


def best_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature, from 2⁻⁸ to 2⁸ of the logits' spread, with the least log-loss.

    One more image is imagined, which could be of any class: without it a few images that are all
    classified right would make the classifier certain.

    Args:
        logits: (n, N).
        labels: (n,).
    """
    if logits.shape[1] < 2:
        return 1.0
    spread = logits.std(1, correction=0).mean()
    temperatures = 2 ** torch.linspace(-8, 8, 129, dtype=logits.dtype) * (spread or 1.0)
    losses = []
    for temperature in temperatures:
        log_p = torch.log_softmax(logits / temperature, 1)
        losses.append(nll_loss(log_p, labels, reduction="sum") - log_p.mean())
    return float(temperatures[int(torch.stack(losses).argmin())])


def _some(classes: NDArray[Any]) -> str:
    names = [str(name) for name in classes[:5]]
    return ", ".join(names) + (", …" if len(classes) > 5 else "")
