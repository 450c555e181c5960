"""APE, training-free (arXiv 2304.01195): a cache on the channels that tell classes apart."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import log_softmax, normalize

from crome.errors import positive
from crome.fewshot.base import FewShotClassifier, Samples, splits
from crome.fewshot.cache import build_cache
from crome.fewshot.search import Choice, Selection, class_evidence, held_out, search
from crome.fewshot.tip_adapter import BETAS
from crome.fewshot.zero_shot import class_centroids

KL_WEIGHTS = (-1.0, 0.0, 1.0)


@dataclass
class RefinedProblem:
    """Queries against a cache whose entries are weighted by exp(g · KL).

    Attributes:
        zero_shot: (B, N).
        features: Queries on the chosen channels, (B, Q).
        keys: (M, Q), sorted by class.
        counts: Entries of each class, (N,).
        surprise: KL of each entry's label from its zero-shot posterior, (M,).
        targets: (B,).
    """

    zero_shot: Tensor
    features: Tensor
    keys: Tensor
    counts: Tensor
    surprise: Tensor
    targets: Tensor

    def blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """Yield all queries at once with their distance to the keys."""
        yield slice(0, len(self.features)), 1 - self.features @ self.keys.T

    def evidence(
        self, block: slice, distance: Tensor, pairs: Sequence[tuple[float, float]]
    ) -> Iterator[tuple[int, Tensor]]:
        """Yield the evidence (B, N) of each (β, g)."""
        for at, (beta, g) in enumerate(pairs):
            yield at, class_evidence(distance - g / beta * self.surprise, self.counts, beta)


@dataclass(repr=False, eq=False, kw_only=True)
class APEClassifier(FewShotClassifier):
    """Zero-shot logits + α × a cache on selected channels, its entries weighted by surprise.

    A channel is kept when its product over pairs of classes is small and its variance over classes
    large, in ``similarity_share`` to one. An entry that the text misjudges counts exp(g · KL) as
    much. As published, except that the channels of image-only features are judged on class means.

    Args:
        class_features: Text features, (n_classes, width), rows in sorted label order, or None.
        classes: Label of each row of ``class_features``.
        logit_scale: Factor on the image-text cosine.
        channels: Share of the channels kept.
        similarity_share: Weight of similarity against variance.
        alphas: Weights of the cache to try; by default a range relative to the logits' spread.
        betas: Sharpnesses to try.
        selection: ``log_loss`` or, as published, ``accuracy`` on the validation images.
        random_state: Seed of the folds.

    Attributes:
        classes_: Sorted labels.
        channels_: Indices of the kept channels.
        keys_: (n_cached, n_channels).
        alpha_: Chosen weight.
        beta_: Chosen sharpness.
        kl_weight_: Chosen g.
        temperature_: Divides the logits in ``predict_proba``.
        validation_accuracy_: Of the chosen settings; NaN without validation images.
    """

    channels: float = 0.7
    similarity_share: float = 0.7
    alphas: Sequence[float] | None = None
    betas: Sequence[float] = BETAS
    selection: Selection = "log_loss"
    random_state: int = 0

    def _check_settings(self) -> None:
        super()._check_settings()
        positive(channels=self.channels, **{"the number of betas": len(self.betas)})

    def _learn(self, shots: Samples, val: Samples | None) -> None:
        self._build(shots)
        problems = []
        for train, test in splits(shots, val, cross=True, seed=self.random_state):
            self._build(train)
            problems.append(self._problem(test))
        grid = [(beta, g) for beta in self.betas for g in KL_WEIGHTS]
        choice = Choice((5.5, 0.0), 1.0, float("nan"))
        if problems:
            choice = search(problems, grid, self.alphas, self.selection)
        self._build(shots)
        self.alpha_, (self.beta_, self.kl_weight_) = choice.alpha, choice.sharpness
        self.validation_accuracy_ = choice.accuracy
        self._calibrate(*held_out(problems, choice))

    def _build(self, shots: Samples) -> None:
        n = int(self.seen_.sum())
        cache = build_cache(shots, n)
        reference = class_centroids(cache.keys, cache.labels, n)
        if self.text_.shape[1] == cache.keys.shape[1]:
            reference = self._seen_text(cache.keys.dtype)
        keep = select_channels(reference, self.channels, self.similarity_share)
        order = torch.argsort(shots.labels, stable=True)
        posterior = log_softmax(shots.zero_shot[order], 1)
        surprise = -posterior.gather(1, cache.labels[:, None])[:, 0]
        self.channels_, self.counts_ = keep.numpy(), cache.counts.numpy()
        self.keys_ = normalize(cache.keys[:, keep], dim=1).numpy()
        self.surprise_ = (surprise / surprise.max().clamp_min(1e-12)).numpy()

    def _problem(self, samples: Samples) -> RefinedProblem:
        dtype = samples.image.dtype
        return RefinedProblem(
            samples.zero_shot,
            normalize(samples.image[:, torch.from_numpy(self.channels_)], dim=1),
            torch.from_numpy(self.keys_).to(dtype),
            torch.from_numpy(self.counts_),
            torch.from_numpy(self.surprise_).to(dtype),
            samples.labels,
        )

    def evidence(self, samples: Samples) -> Tensor:
        """What the refined cache says, (n, S)."""
        problem = self._problem(samples)
        ((block, distance),) = problem.blocks()
        ((_, evidence),) = problem.evidence(block, distance, [(self.beta_, self.kl_weight_)])
        return evidence


def select_channels(reference: Tensor, share: float, similarity_share: float) -> Tensor:
    """Channels with little similarity between classes and much variance over them.

    Args:
        reference: One row per class, (N, C').
        share: Of the channels to keep.
        similarity_share: Weight of similarity against variance.

    Returns:
        Sorted indices.
    """
    n, width = reference.shape
    keep = min(width, max(2, round(share * width)))  # one unit channel would be a mere sign
    if n < 2:
        return torch.arange(keep)
    total = reference.sum(0)
    similarity = (total.square() - reference.square().sum(0)) / (n * (n - 1))
    criterion = similarity_share * similarity - (1 - similarity_share) * reference.var(0)
    return criterion.topk(keep, largest=False).indices.sort().values
