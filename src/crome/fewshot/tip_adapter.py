"""Tip-Adapter and Tip-Adapter-F (arXiv 2207.09519): an image cache beside the zero-shot logits."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.utils.validation import check_array, check_is_fitted, validate_data
from torch import Tensor

from crome.errors import InputError, not_negative, positive
from crome.fewshot.base import FewShotClassifier, Samples, splits
from crome.fewshot.cache import Cache, Training, build_cache, train_cache
from crome.fewshot.search import (
    RATIOS,
    Choice,
    Selection,
    held_out,
    relative_alphas,
    search,
)

BETAS = (0.3, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)


@dataclass(repr=False, eq=False, kw_only=True)
class CacheClassifier(FewShotClassifier):
    """Base of the classifiers with a cache: build it, train it, choose α, β and γ, calibrate."""

    epochs: int = 0
    batch_size: int = 256
    learning_rate: float = 1e-3
    alphas: Sequence[float] | None = None
    betas: Sequence[float] = BETAS
    selection: Selection = "log_loss"
    random_state: int = 0

    def _check_settings(self) -> None:
        super()._check_settings()
        not_negative(epochs=self.epochs)
        positive(batch_size=self.batch_size, learning_rate=self.learning_rate)
        positive(**{"the number of betas": len(self.betas)})
        if self.alphas is not None:
            positive(**{"the number of alphas": len(self.alphas)})

    def _build(self, shots: Samples) -> Cache:
        """An untrained cache of the shots."""
        return build_cache(shots, int(self.seen_.sum()))

    def _sharpness(self) -> list[tuple[float, float]]:
        """Pairs (βγ, β(1−γ)) to search."""
        return [(beta, 0.0) for beta in self.betas]

    def _train(self, cache: Cache, shots: Samples, start: Choice) -> Cache:
        how = Training(self.epochs, self.batch_size, self.learning_rate, seed=self.random_state)
        return train_cache(cache, shots, start, how)

    def _learn(self, shots: Samples, val: Samples | None) -> None:
        pairs = splits(shots, val, cross=not self.epochs, seed=self.random_state)
        caches = [self._build(train) for train, _ in pairs]
        full = caches[0] if val is not None else self._build(shots)
        choice = self._choose(caches, pairs) if pairs else self._default(full, shots)
        if self.epochs and val is not None:
            full = self._train(full, shots, choice)
            caches = [full]
            choice = self._choose(caches, pairs)
        problems = [cache.problem(test) for cache, (_, test) in zip(caches, pairs, strict=True)]
        self._calibrate(*held_out(problems, choice))
        if val is None and pairs and self.text_.shape[1]:  # a fold's cache is smaller
            factor = len(caches[0].keys) / len(full.keys)
            choice = replace(choice, alpha=choice.alpha * factor, share=choice.share / factor)
        if self.epochs and val is None:
            # Trained keys know every shot. Settings searched again on folds, each trained anew,
            # cost twice as much and measured no better; those of the untrained cache stay.
            full = self._train(full, shots, choice)
        self._keep(full, choice)

    def _choose(self, caches: list[Cache], pairs: list[tuple[Samples, Samples]]) -> Choice:
        problems = [cache.problem(test) for cache, (_, test) in zip(caches, pairs, strict=True)]
        return search(problems, self._sharpness(), self.alphas, self.selection)

    def _default(self, cache: Cache, shots: Samples) -> Choice:
        """Settings for one image per class and no validation: β = 4, equal say for the cache."""
        problem = cache.problem(shots)
        pair = (4.0, 0.0)
        alpha = relative_alphas(problem, [pair])[0, RATIOS.index(1)]
        return Choice(pair, float(alpha), float("nan"), problem.shares.get(pair, 0.0))

    def _keep(self, cache: Cache, choice: Choice) -> None:
        self.keys_ = cache.keys.numpy()
        self.key_labels_ = np.flatnonzero(self.seen_)[cache.labels.numpy()]
        self.alpha_, self.beta_, self.gamma_ = choice.alpha, choice.beta, choice.gamma
        self.sharpness_, self.share_ = np.asarray(choice.sharpness), choice.share
        self.validation_accuracy_ = choice.accuracy

    def cache(self) -> Cache:
        """The fitted cache."""
        labels = (self.seen_.cumsum() - 1)[self.key_labels_]
        n = int(self.seen_.sum())
        return Cache(torch.from_numpy(self.keys_), torch.from_numpy(labels), n)

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
        X, given = validate_data(self, X, y, reset=False, dtype=[self.keys_.dtype])
        y = np.asarray(given)
        old, cache = self.classes_, self.cache()
        if (y.dtype.kind in "OSU") != (old.dtype.kind in "OSU"):
            raise InputError(
                f"labels such as {y.tolist()[0]!r} cannot join classes such as {old.tolist()[0]!r}."
            )
        new = np.setdiff1d(y, old)
        text = np.zeros((len(new), self.text_.shape[1]), self.text_.dtype)
        if len(new) and self.text_.shape[1]:
            rows = np.zeros((1, 0)) if class_features is None else class_features
            text = check_array(rows, dtype=[self.text_.dtype], ensure_min_features=0)
            if text.shape != (len(new), self.text_.shape[1]):
                raise InputError(
                    f"new classes {new.tolist()} need class_features of shape "
                    f"({len(new)}, {self.text_.shape[1]}); got {text.shape}."
                )
            text = text / np.linalg.norm(text, axis=1, keepdims=True).clip(1e-12)
        order = np.argsort(np.concatenate([old, new]))
        self.classes_ = np.concatenate([old, new])[order]
        self.text_ = np.concatenate([self.text_, text])[order].astype(self.text_.dtype)
        samples = self.samples(X, y)
        self.seen_ = np.concatenate([self.seen_, np.zeros(len(new), bool)])[order]
        keys = np.concatenate([self.keys_, cache.image(samples).numpy()])
        moved = np.searchsorted(self.classes_, old)[self.key_labels_]
        labels = np.concatenate([moved, samples.labels.numpy()])
        place = np.argsort(labels, kind="stable")
        self.keys_, self.key_labels_ = keys[place], labels[place]
        self.seen_[labels] = True
        return self

    def evidence(self, samples: Samples) -> Tensor:
        """What the cache says, (n, S)."""
        problem = self.cache().to(samples.image.dtype).problem(samples)
        pair = (float(self.sharpness_[0]), float(self.sharpness_[1]))
        problem.shares[pair] = float(self.share_)
        return torch.cat(
            [
                evidence
                for block, distance in problem.blocks()
                for _, evidence in problem.evidence(block, distance, [pair])
            ]
        )


@dataclass(repr=False, eq=False, kw_only=True)
class TipAdapterClassifier(CacheClassifier):
    """Tip-Adapter, and with ``epochs`` Tip-Adapter-F (arXiv 2207.09519).

    Args:
        class_features: Text features, (n_classes, width), rows in sorted label order; None for an
            image cache alone.
        classes: Label of each row of ``class_features``, when some have no images or the order
            differs.
        logit_scale: Factor on the image-text cosine; 100 is CLIP's.
        epochs: Training epochs of the keys; 0 is the training-free Tip-Adapter, 20 the published
            Tip-Adapter-F.
        batch_size: Images per training step.
        learning_rate: AdamW's, with cosine decay.
        alphas: Weights of the cache to try; by default a range relative to the logits' spread.
        betas: Sharpnesses to try.
        selection: ``log_loss`` or, as published, ``accuracy`` on the validation images.
        random_state: Seed of folds and training order.

    Attributes:
        classes_: Sorted labels, (n_classes,).
        keys_: Cache keys, (n_cached, width).
        alpha_: Chosen weight of the cache.
        beta_: Chosen sharpness.
        temperature_: Divides the logits in ``predict_proba``.
        validation_accuracy_: Of the chosen settings; NaN without validation images.
    """
