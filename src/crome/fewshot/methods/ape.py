"""APE, training-free (arXiv 2304.01195): a cache on the channels that tell classes apart."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import log_softmax, normalize

from crome.fewshot.cache import build_cache
from crome.fewshot.classifier import FewShotClassifier
from crome.fewshot.folds import splits
from crome.fewshot.methods.cache_classifier import BETAS
from crome.fewshot.methods.zero_shot import class_centroids
from crome.fewshot.problems import class_evidence, growth, slices
from crome.fewshot.samples import Samples, tensor_like
from crome.fewshot.search import Choice, Selection, held_out, search
from crome.fewshot.settings import check_grid, check_number

KL_WEIGHTS = (-1.0, 0.0, 1.0)


@dataclass(frozen=True)
class RefinedCache:
    """A cache on some channels, whose entries are weighted by exp(g · KL).

    Attributes:
        channels: Indices of the kept channels, (Q,).
        keys: (M, Q), sorted by class.
        counts: Entries of each class, (N,).
        surprise: KL of each entry's label from its zero-shot posterior, (M,).
        weights: How much each entry counts, (M,); None for all alike.
    """

    channels: Tensor
    keys: Tensor
    counts: Tensor
    surprise: Tensor
    weights: Tensor | None = None

    @property
    def sizes(self) -> Tensor:
        """Summed weight of the entries of each class, (N,)."""
        if self.weights is None:
            return self.counts.to(self.keys.dtype)
        labels = torch.repeat_interleave(
            torch.arange(len(self.counts), device=self.counts.device), self.counts
        )
        return torch.bincount(labels, self.weights, minlength=len(self.counts)).to(self.keys.dtype)

    def problem(self, samples: Samples, scale: Tensor | None = None) -> "RefinedProblem":
        """Queries against this cache, ready for the search; see ``Cache.problem``."""
        features = normalize(samples.image[:, self.channels], dim=1)
        return RefinedProblem(samples.zero_shot, features, self, samples.labels, scale)


@dataclass
class RefinedProblem:
    """Queries against a refined cache.

    Attributes:
        zero_shot: (B, N).
        features: Queries on the chosen channels, (B, Q).
        cache: What classifies them.
        targets: (B,).
        scale: Factor of each class's evidence, (N,), for the cache of a fold; None for none.
    """

    zero_shot: Tensor
    features: Tensor
    cache: RefinedCache
    targets: Tensor
    scale: Tensor | None = None

    def blocks(self) -> Iterator[slice]:
        """Yield slices of queries whose affinities fit into memory."""
        yield from slices(len(self.features), len(self.cache.keys))

    def evidence(
        self, block: slice, pairs: Sequence[tuple[float, float]]
    ) -> Iterator[tuple[int, Tensor]]:
        """Yield the evidence (b, N) of each (β, g)."""
        cache = self.cache
        distance = 1 - self.features[block] @ cache.keys.T
        for at, (beta, g) in enumerate(pairs):
            shifted = distance - g / beta * cache.surprise
            found = class_evidence(shifted, cache.counts, beta, cache.weights)
            yield at, found if self.scale is None else found * self.scale


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
        device: Where it computes, such as ``cuda``; by default the CPU.

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
    random_state: int | np.random.RandomState | None = 0

    def _check_settings(self) -> None:
        super()._check_settings()
        check_number("channels", self.channels, 0, 1, above=True)
        check_number("similarity_share", self.similarity_share, 0, 1)
        check_grid("betas", self.betas, above=True)
        if self.alphas is not None:
            check_grid("alphas", self.alphas)

    def _learn(self, shots: Samples, val: Samples | None) -> None:
        full = self._build(shots)
        problems = []
        for split in splits(shots, val, cross=True, seed=self.seed_):
            if split.whole:
                problems.append(full.problem(split.test()))
                continue
            part = self._build(split.train())
            problems.append(part.problem(split.test(), growth(full.sizes, part.sizes)))
        grid = [(float(beta), g) for beta in self.betas for g in KL_WEIGHTS]
        choice = Choice((5.5, 0.0), 1.0, float("nan"))
        if problems:
            choice = search(problems, grid, self.alphas, self.selection)
        self.channels_, self.keys_ = full.channels.cpu().numpy(), full.keys.cpu().numpy()
        self.counts_, self.surprise_ = full.counts.cpu().numpy(), full.surprise.cpu().numpy()
        weights = np.zeros(0) if full.weights is None else full.weights.cpu().numpy()
        self.key_weights_ = weights
        self.alpha_, (self.beta_, self.kl_weight_) = choice.alpha, choice.sharpness
        self.validation_accuracy_ = choice.accuracy
        self._calibrate(*held_out(problems, choice))

    def _build(self, shots: Samples) -> RefinedCache:
        n = int(self.seen_.sum())
        cache = build_cache(shots, n)
        if self.text_.shape[1] == cache.keys.shape[1]:
            reference = self._seen_text(cache.keys)
        else:
            reference = class_centroids(cache.keys, cache.labels, n, cache.weights)
        keep = select_channels(reference, float(self.channels), float(self.similarity_share))
        order = torch.argsort(shots.labels, stable=True)
        posterior = log_softmax(shots.zero_shot[order], 1)
        surprise = -posterior.gather(1, cache.labels[:, None])[:, 0]
        return RefinedCache(
            keep,
            normalize(cache.keys[:, keep], dim=1),
            cache.counts,
            surprise / surprise.max().clamp_min(1e-12),
            cache.weights,
        )

    def evidence(self, samples: Samples) -> Tensor:
        """What the refined cache says, (n, S)."""
        like = samples.image
        weights = getattr(self, "key_weights_", np.zeros(0))
        cache = RefinedCache(
            tensor_like(self.channels_, like),
            tensor_like(self.keys_, like),
            tensor_like(self.counts_, like),
            tensor_like(self.surprise_, like),
            tensor_like(weights, like) if len(weights) else None,
        )
        problem, pair = cache.problem(samples), (float(self.beta_), float(self.kl_weight_))
        return torch.cat(
            [
                evidence
                for block in problem.blocks()
                for _, evidence in problem.evidence(block, [pair])
            ]
        )


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
        return torch.arange(keep, device=reference.device)
    total = reference.sum(0)
    similarity = (total.square() - reference.square().sum(0)) / (n * (n - 1))
    criterion = similarity_share * similarity - (1 - similarity_share) * reference.var(0)
    return criterion.topk(keep, largest=False).indices.sort().values
