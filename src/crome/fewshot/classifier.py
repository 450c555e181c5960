"""What all few-shot classifiers share: input checks, class alignment, validation, probabilities.

Every classifier adds evidence from images to the zero-shot logits, and differs only in how that
evidence is made.

Legend: n samples, N classes, S classes with images, C joint width, V views.
"""

from dataclasses import dataclass, field
from typing import Any, Literal, Self, get_args, get_origin, get_type_hints

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_array, check_is_fitted, validate_data
from torch import Tensor
from torch.nn.functional import normalize

from crome.errors import InputError
from crome.fewshot.calibration import best_temperature
from crome.fewshot.familiarity import conformal_ranks, leave_one_out_cosines
from crome.fewshot.labels import (
    align_classes,
    check_same_index,
    plain_labels,
    sorted_labels,
    warn_of_text,
)
from crome.fewshot.samples import Samples, as_array, mean_rows, placed, tensor_like, unit_rows
from crome.fewshot.settings import check_device, check_flag, check_grid, check_number, seed_from
from crome.fewshot.unseen import UNCHOSEN, choose_offset, fill_unseen

FLOATS = [np.float64, np.float32]
LIGHTEST = 1e-9  # sums of weights stay exact enough in float32
GRIDS = {"alphas": False, "betas": True, "Cs": True}  # settings to search; whether 0 is refused


@dataclass(repr=False, eq=False, kw_only=True)
class FewShotClassifier(ClassifierMixin, BaseEstimator):
    """Base of the classifiers: subclasses implement ``_learn`` and ``evidence``.

    Settings are dataclass fields: the constructor stores them and does nothing else, which is
    scikit-learn's contract, and a subclass adds only what it has of its own.
    """

    class_features: ArrayLike | None = field(default=None, kw_only=False)
    classes: ArrayLike | None = None
    logit_scale: float = 100.0
    device: str | None = None

    def fit(
        self,
        X: ArrayLike,
        y: ArrayLike,
        sample_weight: ArrayLike | None = None,
        *,
        X_val: ArrayLike | None = None,
        y_val: ArrayLike | None = None,
        views: ArrayLike | None = None,
    ) -> Self:
        """Learn from a few labelled images per class.

        Args:
            X: Features of the training images, (n_samples, n_features).
            y: Their labels, (n_samples,), in any order.
            sample_weight: How much each image counts in learning, (n_samples,); by default all
                alike. An image with weight 0 is left out. Weights do not change how held-out images
                select settings.
            X_val: Features on which settings are selected; by default, cross-validation over the
                training images, and fixed settings where a class has one image only.
            y_val: Labels of ``X_val``.
            views: Features of augmented views of the training images,
                (n_samples, n_views, n_features): cache keys are their mean, and training epochs
                take them in turn.

        Returns:
            The fitted classifier.

        Raises:
            InputError: Labels, class features, classes or settings do not match or are out of
                range.
        """
        self._check_settings()
        self.seed_ = seed_from(getattr(self, "random_state", 0))
        same_encoder = _check_encoders(self.class_features, X, X_val)
        check_same_index(X, y)
        X, y = validate_data(self, as_array(X), as_array(y), dtype=FLOATS, ensure_min_samples=1)
        if np.ndim(y) == 1:
            sorted_labels(y, "y")
            y = plain_labels(np.asarray(y))
        check_classification_targets(y)
        kept, weights = _usable_weights(sample_weight, X)
        labels = np.asarray(y)[kept]
        self.classes_, self.text_ = align_classes(
            self.class_features, self.classes, labels, self.n_features_in_
        )
        shots = self.samples(np.asarray(X)[kept], labels)
        shots.weights = weights if weights is None else placed(weights, self.device)
        if self.text_.shape[1]:
            wider = self.text_.shape[1] < self.n_features_in_ and not same_encoder
            warn_of_text(shots, self.classes_, wider=wider)
        if views is not None:
            self._add_views(shots, views, kept, np.asarray(X).dtype)
        val = self._validation(X_val, y_val, np.asarray(X).dtype)
        self.seen_ = np.bincount(shots.labels.cpu().numpy(), minlength=len(self.classes_)) > 0
        seen = tensor_like(self.seen_, shots.labels)
        if val is not None:  # images of classes without shots select nothing
            val = val.among(seen) if seen[val.labels].any() else None
        shots = shots.among(seen)
        self._remember(shots)
        self._learn(shots, val)
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

    def familiarity(self, X: ArrayLike) -> NDArray[Any]:
        """How usual each sample is among images of the known classes, (n_samples,).

        A conformal p-value from the training images, each held out in turn: among pictures like
        them, a share of about p gets a value of p or less. Pictures of other things get small
        values. Compare it with the share of false rejections that you accept, such as 0.05.

        Raises:
            InputError: Some class has no images, or no class has two, so that it is unknown what
                is usual.
        """
        samples = self._checked_samples(X)
        if not hasattr(self, "image_means_"):
            raise InputError(
                "this classifier was saved by a version without familiarity; fit again."
            )
        if not self.seen_.all() or not len(self.familiarities_):
            raise InputError(
                "familiarity needs images of every class, and two of at least one; got "
                f"{int(self.seen_.sum())} of {len(self.seen_)} classes with images."
            )
        with torch.inference_mode():
            means = tensor_like(self.image_means_, samples.image)
            cosines = samples.image @ normalize(means, dim=1).T
            held_out = tensor_like(self.familiarities_, cosines)
            return conformal_ranks(cosines.amax(1), held_out).cpu().numpy()

    def logits(self, samples: Samples) -> Tensor:
        """Logits (n, N)."""
        evidence = self.alpha_ * self.evidence(samples)
        filled = fill_unseen(evidence, tensor_like(self.seen_, evidence), self.unseen_offset_)
        return samples.zero_shot + filled

    def evidence(self, samples: Samples) -> Tensor:
        """Evidence from images for each class that has some, (n, S)."""
        raise NotImplementedError

    def _learn(self, shots: Samples, val: Samples | None) -> None:
        """Learn from samples whose logits and labels are among the S classes with images."""
        raise NotImplementedError

    def _check_settings(self) -> None:
        """Refuse settings out of range; here and not in the constructor, by scikit-learn's rule."""
        for name, kind in get_type_hints(type(self)).items():
            value = getattr(self, name)
            if get_origin(kind) is Literal and (
                not isinstance(value, str) or value not in get_args(kind)
            ):
                raise InputError(f"{name}={value!r}; expected {' or '.join(get_args(kind))}.")
            if kind is bool:
                check_flag(name, value)
            if name in GRIDS and value is not None:
                check_grid(name, value, above=GRIDS[name])
        check_number("logit_scale", self.logit_scale, 0, above=True)
        if self.device is not None:
            check_device(self.device)

    def samples(self, X: Any, y: ArrayLike | None = None) -> Samples:
        """Split and normalise feature rows (n, n_features), with zero-shot logits and labels."""
        rows = torch.from_numpy(np.require(X, requirements=["C", "W"]))
        rows = placed(rows, self.device)
        width = self.text_.shape[1] or rows.shape[1]
        joint, rest = unit_rows(rows[:, :width]), unit_rows(rows[:, width:])
        if self.text_.shape[1]:
            zero_shot = float(self.logit_scale) * joint @ tensor_like(self.text_, joint).T
        else:
            zero_shot = joint.new_zeros(len(joint), len(self.text_))
        codes = np.zeros(0, dtype=np.int64) if y is None else self._codes(y)
        labels = placed(torch.from_numpy(codes), self.device)
        return Samples(joint, rest if rest.shape[1] else joint, zero_shot, labels)

    def _numpy_logits(self, X: ArrayLike) -> NDArray[Any]:
        samples = self._checked_samples(X)
        with torch.inference_mode():
            return self.logits(samples).cpu().numpy()

    def _checked_samples(self, X: ArrayLike) -> Samples:
        check_is_fitted(self)
        return self.samples(validate_data(self, as_array(X), reset=False, dtype=FLOATS))

    def _validation(self, X: Any, y: Any, dtype: Any) -> Samples | None:
        if X is None and y is None:
            return None
        if X is None or y is None:
            raise InputError("X_val and y_val belong together; got only one of them.")
        check_same_index(X, y)
        X, y = validate_data(self, as_array(X), as_array(y), reset=False, dtype=[dtype])
        return self.samples(X, y)

    def _seen_text(self, like: Tensor) -> Tensor:
        """Unit text rows of the classes with images, (S, C)."""
        return tensor_like(self.text_[self.seen_], like)

    def _codes(self, y: ArrayLike) -> NDArray[np.int64]:
        y = np.asarray(y)
        if unknown := set(np.unique(y).tolist()) - set(self.classes_.tolist()):
            some = ", ".join(str(name) for name in self.classes_[:5])
            more = ", …" if len(self.classes_) > 5 else ""
            raise InputError(f"labels {sorted(unknown)} are not among {some}{more}.")
        return np.searchsorted(self.classes_, y).astype(np.int64)

    def _add_views(self, shots: Samples, views: Any, kept: NDArray[Any], dtype: Any) -> None:
        try:
            array = check_array(
                as_array(views), allow_nd=True, ensure_2d=False, dtype=[dtype], input_name="views"
            )
        except TypeError as error:
            raise InputError(f"views has no rows of numbers: {error}.") from error
        wanted = (len(kept), self.n_features_in_)
        if array.ndim != 3 or (array.shape[0], array.shape[2]) != wanted or not array.shape[1]:
            raise InputError(
                f"views has shape {array.shape}; expected ({wanted[0]}, n_views, {wanted[1]}), in "
                "the order of X, with at least one view; None for no views."
            )
        y = self.classes_[shots.labels.cpu().numpy()]
        shots.mean_view = self.samples(array[kept].mean(1), y)
        shots.views = tuple(self.samples(rows, y) for rows in np.moveaxis(array[kept], 1, 0))

    def _remember(self, shots: Samples) -> None:
        """Keep each class's mean image, and how similar held-out images are to it."""
        n = int(self.seen_.sum())
        means = mean_rows(shots.image, shots.labels, n, shots.weights)
        cosines, _ = leave_one_out_cosines(shots, n)
        self.image_means_, self.image_counts_ = means.cpu().numpy(), shots.counts.cpu().numpy()
        self.familiarities_ = cosines.amax(1).sort().values.cpu().numpy()

    def _calibrate(self, zero_shot: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Choose on held-out images the temperature and the evidence of classes without images."""
        self.unseen_offset_, self.temperature_ = UNCHOSEN, 1.0
        if len(labels):
            self.temperature_ = best_temperature(logits, labels)
            if not self.seen_.all():
                self.unseen_offset_ = choose_offset(zero_shot, logits - zero_shot, labels)


def _usable_weights(sample_weight: Any, X: Any) -> tuple[NDArray[np.bool_], Tensor | None]:
    """Which rows count, and the weights of those; None for all alike."""
    everything = np.ones(len(X), dtype=bool)
    if sample_weight is None:
        return everything, None
    try:
        weights = np.asarray(as_array(sample_weight), dtype=X.dtype)
    except (TypeError, ValueError) as error:
        raise InputError("sample_weight has something other than numbers.") from error
    if weights.shape != (len(X),):
        raise InputError(f"sample_weight has shape {weights.shape}; expected ({len(X)},).")
    if not (np.isfinite(weights).all() and (weights >= 0).all() and weights.any()):
        raise InputError("sample_weight has a negative or infinite value, or only zeros.")
    if not LIGHTEST <= weights.max() <= 1 / LIGHTEST:
        raise InputError(
            f"the largest sample_weight is {weights.max():g}; expected weights around 1."
        )
    kept = weights > 0
    if (weights[kept] == weights[kept][0]).all() and weights[kept][0] == 1:
        return kept, None
    return kept, torch.from_numpy(np.ascontiguousarray(weights[kept]))


def _check_encoders(text: Any, *images: Any) -> bool:
    """Whether class and image features are known to be of one encoder.

    Raises:
        InputError: They are known to be of two.
    """
    names = {name for name in (getattr(x, "encoder", None) for x in (text, *images)) if name}
    if len(names) > 1:
        raise InputError(
            f"class_features and X are of different encoders, {' and '.join(sorted(names))}; "
            "expected features of one."
        )
    return bool(getattr(text, "encoder", None) and getattr(images[0], "encoder", None))
