"""Tip-Adapter and Tip-Adapter-F (arXiv 2207.09519): an image cache beside the zero-shot classifier."""

from collections.abc import Sequence
from typing import Any

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from crome.fewshot import functional as fn
from crome.fewshot.base import FewShotClassifier, Samples, folds
from crome.fewshot.cache import Cache, Training, build_cache, train_cache
from crome.fewshot.search import Choice, Problem, problem_logits, search

ALPHAS = tuple(0.01 * 1.1**i for i in range(100))  # 0.01 to 125
BETAS = tuple(0.1 * 1.35**i for i in range(22))  # 0.1 to 55


class CacheClassifier(FewShotClassifier):
    """Base of the classifiers with a cache: build it, train it, choose α, β and γ, calibrate."""

    epochs: int
    alphas: Sequence[float]
    betas: Sequence[float]
    random_state: int

    def _build(self, shots: Samples) -> Cache:
        """An untrained cache of the shots."""
        return build_cache(shots, len(self.classes_))

    def _sharpness(self) -> list[tuple[float, float]]:
        """Pairs (βγ, β(1−γ)) to search."""
        return [(beta, 0.0) for beta in self.betas]

    def _train(self, cache: Cache, shots: Samples, start: Choice) -> Cache:
        how = Training(self.epochs, self.batch_size, self.learning_rate, seed=self.random_state)
        return train_cache(cache, shots, self._text(shots), start, how, learn_gamma=False)[0]

    def _text(self, like: Samples) -> Tensor:
        return torch.from_numpy(self.text_).to(like.joint.dtype)

    def _learn(self, shots: Samples, val: Samples | None) -> None:
        splits = [(shots, val)] if val is not None else [
            (shots[train], shots[test]) for train, test in folds(shots.labels, self.random_state)
        ]
        caches = [self._build(train) for train, _ in splits]
        start = self._choose(caches, splits) if splits else self._default(shots)
        if self.epochs:
            caches = [
                self._train(cache, train, start)
                for cache, (train, _) in zip(caches, splits, strict=True)
            ]
        choice = self._choose(caches, splits) if splits and self.epochs else start
        if val is not None:
            cache = caches[0]
        else:
            cache = self._build(shots)
            cache = self._train(cache, shots, start) if self.epochs else cache
        self._keep(cache, choice)
        held_out = [
            problem_logits(cache.problem(test), choice)
            for cache, (_, test) in zip(caches, splits, strict=True)
        ]
        labels = [test.labels for _, test in splits]
        self._calibrate(
            torch.cat(held_out) if held_out else shots.zero_shot[:0],
            torch.cat(labels) if labels else shots.labels[:0],
        )

    def _choose(self, caches: list[Cache], splits: list[tuple[Samples, Samples]]) -> Choice:
        problems: list[Problem] = [
            cache.problem(test) for cache, (_, test) in zip(caches, splits, strict=True)
        ]
        return search(problems, self._sharpness(), self.alphas)

    def _default(self, shots: Samples) -> Choice:
        """Settings for one image per class and no validation: β = 5.5, cache and text of equal say."""
        spread = shots.zero_shot.std(1).mean() if shots.zero_shot.shape[1] > 1 else torch.ones(())
        return Choice((5.5, 0.0), max(1.0, float(spread)), float("nan"))

    def _keep(self, cache: Cache, choice: Choice) -> None:
        self.keys_, self.key_labels_ = cache.keys.numpy(), cache.labels.numpy()
        self.alpha_, self.beta_, self.gamma_ = choice.alpha, choice.beta, choice.gamma
        self.validation_accuracy_ = choice.accuracy

    def _cache(self) -> Cache:
        return Cache(
            torch.from_numpy(self.keys_), torch.from_numpy(self.key_labels_), len(self.classes_)
        )

    def _evidence(self, samples: Samples) -> Tensor:
        cache = self._cache()
        s = fn.image_affinity(samples.image, cache.keys.to(samples.image.dtype))
        return fn.cache_logits(
            s, cache.text(samples), cache.labels, cache.n_classes, self.beta_, self.gamma_
        )


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
        alphas: Weights of the cache to try.
        betas: Sharpnesses to try.
        random_state: Seed of folds and training order.

    Attributes:
        classes_: Sorted labels, (n_classes,).
        keys_: Cache keys, (n_cached, width).
        alpha_: Chosen weight of the cache.
        beta_: Chosen sharpness.
        temperature_: Divides the logits in ``predict_proba``.
        validation_accuracy_: Of the chosen settings; NaN without validation images.
    """

    def __init__(
        self,
        class_features: ArrayLike | None = None,
        *,
        classes: ArrayLike | None = None,
        logit_scale: float = 100.0,
        epochs: int = 0,
        batch_size: int = 256,
        learning_rate: float = 1e-3,
        alphas: Sequence[float] = ALPHAS,
        betas: Sequence[float] = BETAS,
        random_state: int = 0,
    ) -> None:
        self.class_features = class_features
        self.classes = classes
        self.logit_scale = logit_scale
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.alphas = alphas
        self.betas = betas
        self.random_state = random_state
