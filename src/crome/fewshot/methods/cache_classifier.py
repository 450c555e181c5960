"""The classifiers with a cache: build it, choose α, β and γ, train it, calibrate, let it grow."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from crome.errors import InputError
from crome.fewshot.cache import Cache, build_cache, held_out_problems
from crome.fewshot.classifier import FewShotClassifier
from crome.fewshot.folds import splits
from crome.fewshot.labels import align_classes, plain_labels, sorted_labels
from crome.fewshot.problems import Problem, whole_evidence
from crome.fewshot.samples import Samples, as_array, spread_within_classes
from crome.fewshot.search import RATIOS, Choice, Selection, held_out, relative_alphas, search
from crome.fewshot.settings import check_number, check_whole
from crome.fewshot.training import Training, train_cache

BETAS = (0.3, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
"""Sharpnesses β that are tried."""
UNSELECTED_BETA = 4.0
"""The sharpness where nothing can select one: one image per class and no validation images."""


@dataclass(repr=False, eq=False, kw_only=True)
class CacheClassifier(FewShotClassifier):
    """Base of the classifiers with a cache of labelled images."""

    epochs: int = 0
    batch_size: int = 256
    learning_rate: float = 1e-3
    alphas: Sequence[float] | None = None
    betas: Sequence[float] = BETAS
    selection: Selection = "log_loss"
    random_state: int | np.random.RandomState | None = 0

    def _keep(self, cache: Cache, choice: Choice) -> None:
        self.keys_ = cache.keys.cpu().numpy()
        self.key_labels_ = np.flatnonzero(self.seen_)[cache.labels.cpu().numpy()]
        if cache.weights is not None:
            self.key_weights_ = cache.weights.cpu().numpy()
        elif hasattr(self, "key_weights_"):
            del self.key_weights_  # of an earlier fit
        self.alpha_, self.beta_, self.gamma_ = choice.alpha, choice.beta, choice.gamma
        self.sharpness_, self.share_ = np.asarray(choice.sharpness), choice.share
        self.validation_accuracy_ = choice.accuracy

    def cache(self) -> Cache:
        """The fitted cache."""
        labels = (self.seen_.cumsum() - 1)[self.key_labels_]
        keys, n = torch.from_numpy(self.keys_), int(self.seen_.sum())
        weights = getattr(self, "key_weights_", None)
        return Cache(
            keys, torch.from_numpy(labels), n,
            weights=None if weights is None else torch.from_numpy(weights),
        )  # fmt: skip

    def add_images(
        self, X: ArrayLike, y: ArrayLike, class_features: ArrayLike | None = None
    ) -> Self:
        """Add shots to the cache, of known classes or new ones, and refit nothing.

        Settings, trained nets and old keys stay as they are.

        Args:
            X: Features of the new images, (n_samples, n_features).
            y: Their labels.
            class_features: Text features of the labels that are new, in sorted order.

        Raises:
            InputError: A new label has no text features while the other classes have.
        """
        check_is_fitted(self)
        sorted_labels(as_array(y), "y")
        X, given = validate_data(
            self, as_array(X), as_array(y), reset=False, dtype=[self.keys_.dtype]
        )
        y = plain_labels(np.asarray(given))
        old, old_seen, cache = self.classes_, self.classes_[self.seen_], self.cache()
        self._add_classes(y, class_features)
        samples = self.samples(X, y)
        queries = cache.like(samples.image).image(samples).cpu().numpy()
        codes = samples.labels.cpu().numpy()
        moved = np.searchsorted(self.classes_, old)[self.key_labels_]
        labels = np.concatenate([moved, codes])
        place = np.argsort(labels, kind="stable")
        self.keys_ = np.concatenate([self.keys_, queries])[place]
        if cache.weights is not None:
            weights = np.concatenate([cache.weights.numpy(), np.ones(len(y))])
            self.key_weights_ = weights[place].astype(self.keys_.dtype)
        self.key_labels_ = labels[place]
        self.seen_[labels] = True
        self._add_to_means(samples, old_seen)
        return self

    def evidence(self, samples: Samples) -> Tensor:
        """The cache's evidence for each class, (n, S)."""
        problem = self.cache().like(samples.image).problem(samples)
        pair = (float(self.sharpness_[0]), float(self.sharpness_[1]))
        problem.shares[pair] = float(self.share_)
        return whole_evidence(problem, pair)

    def _check_settings(self) -> None:
        super()._check_settings()
        check_whole("epochs", self.epochs, 0)
        check_whole("batch_size", self.batch_size, 1)
        check_number("learning_rate", self.learning_rate, 0, above=True)

    def _build(self, shots: Samples, spread: float = 0.0) -> Cache:
        """An untrained cache of the shots; see ``fit_whitening`` for ``spread``."""
        return build_cache(shots, int(self.seen_.sum()))

    def _sharpness(self) -> list[tuple[float, float]]:
        """Pairs (βγ, β(1−γ)) to search."""
        return [(float(beta), 0.0) for beta in self.betas]

    def _train(self, cache: Cache, shots: Samples, start: Choice) -> Cache:
        training = Training(self.epochs, self.batch_size, self.learning_rate, seed=self.seed_)
        return train_cache(cache, shots, start, training)

    def _learn(self, shots: Samples, val: Samples | None) -> None:
        parts = splits(shots, val, cross=not self.epochs, seed=self.seed_)
        full = self._build(shots)
        build = partial(self._build, spread=spread_within_classes(shots))
        problems = held_out_problems(full, parts, build)
        choice = self._choose(problems) if problems else self._default(full, shots)
        if self.epochs:
            # Without validation images the settings of the untrained cache stay: trained keys know
            # every shot, and folds trained one by one cost twice as much and measured no better.
            full = self._train(full, shots, choice)
            if val is not None:
                problems = held_out_problems(full, parts, build)
                choice = self._choose(problems)
        self._calibrate(*held_out(problems, choice))
        self._keep(full, choice)

    def _choose(self, problems: list[Problem]) -> Choice:
        return search(problems, self._sharpness(), self.alphas, self.selection)

    def _default(self, cache: Cache, shots: Samples) -> Choice:
        """Settings without validation images: the cache's evidence gets the logits' spread."""
        problem = cache.problem(shots)
        pair = (UNSELECTED_BETA, 0.0)
        alpha = relative_alphas(problem, [pair])[0, RATIOS.index(1)]
        return Choice(pair, float(alpha), float("nan"), problem.shares.get(pair, 0.0))

    def _add_classes(self, y: NDArray[Any], class_features: ArrayLike | None) -> None:
        """Make room for labels that are new, after checking everything that can be wrong."""
        old = self.classes_
        if (y.dtype.kind in "OSU") != (old.dtype.kind in "OSU"):
            raise InputError(
                f"labels such as {y.tolist()[0]!r} cannot join classes such as {old.tolist()[0]!r}."
            )
        new = np.setdiff1d(y, old)
        text = np.zeros((len(new), self.text_.shape[1]), self.text_.dtype)
        if len(new) and self.text_.shape[1]:
            wanted = (len(new), self.text_.shape[1])
            _, text = align_classes(class_features, None, new, wanted[1])
            if text.shape != wanted:
                raise InputError(
                    f"new classes {new.tolist()} need class_features of shape {wanted}; got "
                    f"{text.shape}."
                )
        order = np.argsort(np.concatenate([old, new]))
        self.classes_ = np.concatenate([old, new])[order]
        self.text_ = np.concatenate([self.text_, text])[order].astype(self.text_.dtype)
        self.seen_ = np.concatenate([self.seen_, np.zeros(len(new), bool)])[order]

    def _add_to_means(self, samples: Samples, old: NDArray[Any]) -> None:
        """Count new images in the mean images of classes; ``old`` are those that had images."""
        if hasattr(self, "image_means_"):  # files of earlier versions have none
            self.image_means_, self.image_counts_ = self.grown_means(
                self.image_means_, self.image_counts_, old, samples.image, samples.labels
            )

    def grown_means(
        self, means: NDArray, counts: NDArray, old: NDArray, rows: Tensor, labels: Tensor
    ) -> tuple[NDArray, NDArray]:
        """Class means (S, C') and counts after rows (n, C') of old and new classes have joined.

        ``old`` are the labels of the S classes, ``labels`` the class indices of the rows.
        """
        known = self.classes_[self.seen_]
        place = np.searchsorted(known, old)
        total = np.bincount(place, counts, len(known))
        sums = np.zeros((len(known), means.shape[1]))
        sums[place] = means * counts[:, None]
        at = (self.seen_.cumsum() - 1)[labels.cpu().numpy()]
        np.add.at(sums, at, rows.cpu().numpy())
        total += np.bincount(at, minlength=len(known))
        return (sums / total[:, None]).astype(means.dtype), total.astype(counts.dtype)
