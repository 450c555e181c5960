"""The cache of labelled images, and its text side (XMAdapter 2.2, 2.3)."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from crome.fewshot import functional as fn
from crome.fewshot.folds import Split
from crome.fewshot.problems import Problem, growth
from crome.fewshot.samples import Samples, whole_and_views
from crome.fewshot.whitening import Whitening, fit_whitening


@dataclass
class Cache:
    """Keys sorted by class, and the two nets of the text cache.

    Attributes:
        keys: (M, C').
        labels: Sorted class indices, (M,).
        n_classes: N.
        class_text: Unit class features, (N, C), or None without a text cache.
        meta: Weight of MetaNet, (C, D): class texts into the bottleneck.
        img2txt: Weight of Img2TxtNet, (C, D): images into the bottleneck.
        text_scale: Factor and offset that carry the text affinity to the image affinity's range.
        per_query: Whether γ is set for each query from the margins of the two caches.
        whitening: The map that queries go through before they are compared with keys, if any.
        means: Whitened class means (N, C') for Gaussian evidence beside the cache, if any.
        weights: How much each entry counts, (M,); None for all alike.
    """

    keys: Tensor
    labels: Tensor
    n_classes: int
    class_text: Tensor | None = None
    meta: Tensor | None = None
    img2txt: Tensor | None = None
    text_scale: tuple[float, float] = (1.0, 0.0)
    per_query: bool = False
    whitening: Whitening | None = None
    means: Tensor | None = None
    weights: Tensor | None = None

    def like(self, tensor: Tensor) -> "Cache":
        """This cache on the device and in the precision of a tensor."""

        def cast(value: Any) -> Any:
            if isinstance(value, Whitening):
                return Whitening(cast(value.mean), cast(value.factor))
            if not isinstance(value, Tensor):
                return value
            return value.to(tensor) if value.is_floating_point() else value.to(tensor.device)

        return replace(self, **{f.name: cast(getattr(self, f.name)) for f in fields(self)})

    def prior(self, samples: Samples) -> Tensor | None:
        """Log-likelihoods of unit Gaussians around the whitened class means, (n, N).

        These are the logits of Gaussians with one covariance; what is the same for all classes of
        a query is left out.
        """
        if self.means is None or self.whitening is None:
            return None
        rows = self.whitening.coordinates(samples.image)
        return rows @ self.means.T - self.means.square().sum(1) / 2

    def image(self, samples: Samples) -> Tensor:
        """Queries in the keys' space, (n, C')."""
        return samples.image if self.whitening is None else self.whitening(samples.image)

    @property
    def counts(self) -> Tensor:
        """Entries of each class, (N,)."""
        return torch.bincount(self.labels, minlength=self.n_classes)

    @property
    def sizes(self) -> Tensor:
        """Summed weight of the entries of each class, (N,)."""
        sizes = torch.bincount(self.labels, self.weights, minlength=self.n_classes)
        return sizes.to(self.keys.dtype)

    def text(self, samples: Samples) -> Tensor | None:
        """Text affinity (n, N), scaled."""
        if self.class_text is None or self.meta is None or self.img2txt is None:
            return None
        factor, offset = self.text_scale
        a = fn.text_affinity(samples.joint @ self.img2txt, self.class_text @ self.meta)
        return factor * a + offset

    def problem(self, samples: Samples, scale: Tensor | None = None) -> Problem:
        """Queries and this cache, ready for the search; ``scale`` (N,) is that of ``growth``."""
        text = self.text(samples)
        return Problem(
            samples.zero_shot,
            self.image(samples),
            self.keys,
            self.counts,
            samples.labels,
            text,
            self.query_gamma(samples, text) if self.per_query else None,
            self.prior(samples),
            self.weights,
            scale,
        )

    def query_gamma(self, samples: Samples, text: Tensor | None) -> Tensor:
        """γ of each query, (n, 1): the image cache's share of the two margins (a reading)."""
        if text is None:
            return samples.zero_shot.new_ones(len(samples), 1)
        means = fn.class_means(
            fn.image_affinity(self.image(samples), self.keys), self.labels, self.n_classes
        ).nan_to_num(-1)
        image, text_margin = _margin(means), _margin(text)
        return (image / (image + text_margin).clamp_min(1e-12))[:, None]


def _margin(values: Tensor) -> Tensor:
    if values.shape[1] < 2:
        return torch.ones_like(values[:, 0])
    top = values.topk(2, 1).values
    return top[:, 0] - top[:, 1]


def build_cache(
    shots: Samples,
    n_classes: int,
    *,
    whiten: bool = False,
    gaussian: bool = False,
    spread: float = 0.0,
) -> Cache:
    """Cache the shots; a key is the normalised mean of its image's raw views where there are any.

    With ``whiten``, keys and queries are whitened, and a key is the mean of the image itself and
    its views. With ``gaussian``, the evidence of Gaussians is added to that of the whitened cache.
    ``spread`` is for shots without any spread of their own; see ``fit_whitening``.
    """
    order = torch.argsort(shots.labels, stable=True)
    source = shots if shots.mean_view is None else shots.mean_view
    weights = None if shots.weights is None else shots.weights[order]
    cache = Cache(source.image[order], shots.labels[order], n_classes, weights=weights)
    if not whiten:
        return cache
    whitening, means = fit_whitening(shots, n_classes, spread)
    return replace(
        cache,
        keys=whitening(whole_and_views(shots)[order]),
        whitening=whitening,
        means=means if gaussian else None,
    )


def add_text(cache: Cache, text: Tensor, width: int, init: str, seed: int) -> Cache:
    """Give a cache its text side: unit class features (N, C) and two nets into ``width`` columns.

    With ``init="text"`` both nets start from the top right singular vectors of the class features,
    so that at full rank the untrained text affinity ranks classes as the encoder does; ``random``
    is the literal reading.
    """
    if init == "text":
        basis = torch.linalg.svd(text, full_matrices=False).Vh[:width].T  # (C, D)
        return replace(cache, class_text=text, meta=basis, img2txt=basis)
    generator = torch.Generator("cpu").manual_seed(seed)
    shape = (text.shape[1], min(width, text.shape[1]))
    meta, img = (
        torch.randn(shape, generator=generator, dtype=text.dtype, device="cpu").to(text.device)
        / math.sqrt(shape[0])
        for _ in range(2)
    )
    return replace(cache, class_text=text, meta=meta, img2txt=img)


def held_out_problems(
    full: Cache, parts: Sequence[Split], build: Callable[[Samples], Cache]
) -> list[Problem]:
    """Held-out queries against the cache of what they are held out from.

    A fold's cache is smaller than the whole one and has less evidence in proportion. It is brought
    to the same size here, so that what is chosen on folds fits the whole cache.
    """
    problems = []
    for split in parts:
        cache = full if split.whole else build(split.train())
        scale = None if split.whole else growth(full.sizes, cache.sizes)
        problems.append(cache.problem(split.test(), scale))
    return problems


def match_scale(cache: Cache, shots: Samples) -> Cache:
    """Carry the text affinity to the image affinity's mean and deviation on the shots."""
    text = cache.text(shots)
    if text is None:
        return cache
    image = fn.image_affinity(cache.image(shots), cache.keys)
    factor = float(image.std(correction=0) / text.std(correction=0).clamp_min(1e-6))
    return replace(cache, text_scale=(factor, float(image.mean() - factor * text.mean())))
