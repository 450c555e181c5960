"""APE, training-free (arXiv 2304.01195): a cache on the channels that tell classes apart."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import log_softmax, normalize

from crome.fewshot.cache import Cache, build_cache, held_out_problems
from crome.fewshot.classifier import FewShotClassifier
from crome.fewshot.folds import splits
from crome.fewshot.methods.cache_classifier import BETAS
from crome.fewshot.methods.zero_shot import class_centroids
from crome.fewshot.problems import Problem, class_evidence, whole_evidence
from crome.fewshot.samples import Samples, tensor_like
from crome.fewshot.search import Choice, Selection, held_out, search
from crome.fewshot.settings import check_number

KL_WEIGHTS = (-1.0, 0.0, 1.0)
"""Weights g of the surprise that are tried."""
UNSELECTED = Choice((5.5, 0.0), 1.0, float("nan"))
"""β, g and α where there are no images to select them on."""


@dataclass(kw_only=True)
class RefinedProblem(Problem):
    """Queries against a cache in which each entry has the weight exp(g · surprise).

    Attributes:
        surprise: KL of each entry's label from its zero-shot posterior, (M,).
    """

    surprise: Tensor

    def evidence(
        self, block: slice, pairs: Sequence[tuple[float, float]]
    ) -> Iterator[tuple[int, Tensor]]:
        """Yield the evidence (b, N) of each (β, g)."""
        distance = self.distance(block)
        for at, (beta, g) in enumerate(pairs):
            weights = torch.exp(g * self.surprise)
            weights = weights if self.weights is None else weights * self.weights
            found = class_evidence(distance, self.counts, beta, weights)
            yield at, found if self.scale is None else found * self.scale


@dataclass(kw_only=True)
class RefinedCache(Cache):
    """A cache on some channels (Q,), with the surprise of each entry (M,)."""

    channels: Tensor
    surprise: Tensor

    def problem(self, samples: Samples, scale: Tensor | None = None) -> RefinedProblem:
        """Queries against this cache, ready for the search."""
        features = normalize(samples.image[:, self.channels], dim=1)
        return RefinedProblem(
            samples.zero_shot, features, self.keys, self.counts, samples.labels,
            weights=self.weights, scale=scale, surprise=self.surprise,
        )  # fmt: skip


@dataclass(repr=False, eq=False, kw_only=True)
class APEClassifier(FewShotClassifier):
    """Zero-shot logits + α × a cache on selected channels, its entries weighted by surprise.

    Channels are kept by a criterion in which a small product over pairs of classes and a large
    variance over classes are weighted by ``similarity_share``. Each entry has the weight
    exp(g · KL), where the KL divergence says how far the text misjudges it. As published, except
    that the channels of image-only features are judged on class means.

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
        device: The device to compute on, such as ``cuda``; by default the CPU.

    Attributes:
        classes_: Sorted labels.
        channels_: Indices of the kept channels.
        keys_: (n_cached, n_channels).
        alpha_: Chosen weight.
        beta_: Chosen sharpness.
        kl_weight_: Chosen g.
        temperature_: Divides the logits in ``predict_proba``.
        validation_accuracy_: Accuracy of the chosen settings; NaN without validation images.
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

    def _learn(self, shots: Samples, val: Samples | None) -> None:
        full = self._build(shots)
        parts = splits(shots, val, cross=True, seed=self.seed_)
        problems = held_out_problems(full, parts, self._build)
        choice = UNSELECTED
        if problems:
            grid = [(float(beta), g) for beta in self.betas for g in KL_WEIGHTS]
            choice = search(problems, grid, self.alphas, self.selection)
        self.channels_, self.keys_ = full.channels.cpu().numpy(), full.keys.cpu().numpy()
        self.counts_, self.surprise_ = full.counts.cpu().numpy(), full.surprise.cpu().numpy()
        self.key_weights_ = np.zeros(0) if full.weights is None else full.weights.cpu().numpy()
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
        posterior = log_softmax(shots.zero_shot[torch.argsort(shots.labels, stable=True)], 1)
        surprise = -posterior.gather(1, cache.labels[:, None])[:, 0]
        keys = normalize(cache.keys[:, keep], dim=1)
        surprise = surprise / surprise.max().clamp_min(1e-12)
        return RefinedCache(
            keys, cache.labels, n, weights=cache.weights, channels=keep, surprise=surprise
        )

    def evidence(self, samples: Samples) -> Tensor:
        """The refined cache's evidence for each class, (n, S)."""
        like = samples.image
        labels = torch.from_numpy(np.repeat(np.arange(len(self.counts_)), self.counts_))
        weights = getattr(self, "key_weights_", np.zeros(0))
        cache = RefinedCache(
            tensor_like(self.keys_, like),
            labels.to(like.device),
            len(self.counts_),
            weights=tensor_like(weights, like) if len(weights) else None,
            channels=tensor_like(self.channels_, like),
            surprise=tensor_like(self.surprise_, like),
        )
        return whole_evidence(cache.problem(samples), (float(self.beta_), float(self.kl_weight_)))


def select_channels(reference: Tensor, share: float, similarity_share: float) -> Tensor:
    """Sorted indices of a share of the channels of one row per class, (N, C').

    Channels with little similarity between classes and much variance over them are kept.
    """
    n, width = reference.shape
    keep = min(width, max(2, round(share * width)))  # one unit channel would be a mere sign
    if n < 2:
        return torch.arange(keep, device=reference.device)
    total = reference.sum(0)
    similarity = (total.square() - reference.square().sum(0)) / (n * (n - 1))
    criterion = similarity_share * similarity - (1 - similarity_share) * reference.var(0)
    return criterion.topk(keep, largest=False).indices.sort().values
