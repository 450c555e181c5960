"""The cache of labelled images, and the training of its keys and text nets (XMAdapter 2.2, 2.5).

With γ = 1, η = 0 and no text nets, one training step is exactly Tip-Adapter-F's.
"""

import math
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from crome.fewshot import functional as fn
from crome.fewshot.base import Samples, mean_rows, within_class_scatter
from crome.fewshot.search import Choice, Problem


@dataclass(frozen=True)
class Whitening:
    """Image features in units of their spread within classes, as unit rows.

    Directions in which images of one class differ say little about the class; GDA's inverse
    covariance discounts them, a cosine does not. With Σ the pooled within-class covariance and τ
    its mean variance, rows x become L⁻¹(x − g), normalised, for LLᵀ = Σ + τI and g the mean of
    the class means. Not part of the paper.

    Attributes:
        mean: g, (C',).
        factor: L, (C', C'), lower triangular.
    """

    mean: Tensor
    factor: Tensor

    def __call__(self, rows: Tensor) -> Tensor:
        """Whiten rows (n, C'), as unit rows."""
        return normalize(self.coordinates(rows), dim=1)

    def coordinates(self, rows: Tensor) -> Tensor:
        """Whiten rows (n, C') and keep their lengths."""
        factor = self.factor.to(rows.dtype)
        centred = (rows - self.mean.to(rows.dtype)).T
        return torch.linalg.solve_triangular(factor, centred, upper=False).T


def fit_whitening(shots: Samples, n_classes: int) -> tuple[Whitening, Tensor]:
    """The spread within classes over all views of the shots, and whitened class means (N, C')."""
    means = mean_rows(whole_and_views(shots), shots.labels, n_classes)
    _, scatter, n = within_class_scatter(shots, n_classes)
    width = scatter.shape[0]
    covariance = scatter / n
    ridge = covariance.trace() / width
    ridge = ridge if ridge > 0 else torch.ones_like(ridge)  # one view of one image per class
    eye = torch.eye(width, dtype=scatter.dtype)
    whitening = Whitening(means.mean(0), torch.linalg.cholesky(covariance + ridge * eye))
    return whitening, whitening.coordinates(means)


def whole_and_views(shots: Samples) -> Tensor:
    """Unit rows (n, C'): each image counts as much as all its views, if it has any.

    Queries are seen whole, never cropped or flipped; keys of views alone are a little off.
    """
    views = shots.views[0] if shots.views else shots
    return normalize(shots.image + views.image, dim=1)


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
        whitening: What queries pass through before they meet the keys, if anything.
        means: Whitened class means (N, C') for Gaussian evidence beside the cache, if any.
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

    def to(self, dtype: torch.dtype) -> "Cache":
        """This cache in another precision."""

        def cast(value: Any) -> Any:
            if isinstance(value, Tensor) and value.is_floating_point():
                return value.to(dtype)
            return value

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

    def text(self, samples: Samples) -> Tensor | None:
        """Text affinity (n, N), scaled."""
        if self.class_text is None or self.meta is None or self.img2txt is None:
            return None
        factor, offset = self.text_scale
        a = fn.text_affinity(samples.joint @ self.img2txt, self.class_text @ self.meta)
        return factor * a + offset

    def problem(self, samples: Samples) -> Problem:
        """The samples and this cache, ready for the search."""
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
        return torch.ones(len(values), dtype=values.dtype)
    top = values.topk(2, 1).values
    return top[:, 0] - top[:, 1]


def build_cache(
    shots: Samples, n_classes: int, *, whiten: bool = False, gaussian: bool = False
) -> Cache:
    """Cache the shots; a key is the normalised mean of its image's raw views where there are any.

    Args:
        shots: Training images.
        n_classes: N.
        whiten: Whether keys and queries are whitened; the image itself then counts, too.
        gaussian: Whether Gaussian evidence joins the cache's; it needs the whitening.
    """
    order = torch.argsort(shots.labels, stable=True)
    source = shots.views[0] if shots.views else shots
    cache = Cache(source.image[order], shots.labels[order], n_classes)
    if not whiten:
        return cache
    whitening, means = fit_whitening(shots, n_classes)
    return replace(
        cache,
        keys=whitening(whole_and_views(shots)[order]),
        whitening=whitening,
        means=means if gaussian else None,
    )


def add_text(cache: Cache, text: Tensor, width: int, init: str, seed: int) -> Cache:
    """Give a cache its text side.

    Args:
        cache: An image cache.
        text: Unit class features, (N, C).
        width: Bottleneck D.
        init: ``text`` starts both nets from the top right singular vectors of the class features,
            so that at full rank the untrained text affinity ranks classes as the encoder does;
            ``random`` is the literal reading.
        seed: Seed of the random start.
    """
    if init == "text":
        basis = torch.linalg.svd(text, full_matrices=False).Vh[:width].T  # (C, D)
        return replace(cache, class_text=text, meta=basis, img2txt=basis)
    generator = torch.Generator().manual_seed(seed)
    shape = (text.shape[1], min(width, text.shape[1]))
    meta, img = (
        torch.randn(shape, generator=generator, dtype=text.dtype) / math.sqrt(shape[0])
        for _ in range(2)
    )
    return replace(cache, class_text=text, meta=meta, img2txt=img)


@dataclass(frozen=True)
class Training:
    """How a cache is trained; defaults are Tip-Adapter-F's.

    Attributes:
        epochs: Passes over the shots.
        batch_size: Images per step.
        learning_rate: Start of the cosine decay to 0.
        eta: Strength of hard-sample weighting; 0 weighs all alike.
        disagreement: How hardness is measured.
        seed: Order of the images.
        temperature: Divides the logits in the loss; 1 as published.
    """

    epochs: int = 20
    batch_size: int = 256
    learning_rate: float = 1e-3
    eta: float = 0.0
    disagreement: fn.Disagreement = "zdiff"
    seed: int = 0
    temperature: float = 1.0


class CacheModule(nn.Module):
    """Trainable keys, text nets and γ; α and β stay fixed (Tip-Adapter-F; XMAdapter 1.7)."""

    def __init__(self, cache: Cache, start: Choice, learn_gamma: bool):
        super().__init__()
        self.start, self.frozen = start, cache
        self.keys = nn.Parameter(cache.keys.clone())
        self.gamma_logit: nn.Parameter | None = None
        if cache.meta is not None and cache.img2txt is not None:
            self.meta = nn.Parameter(cache.meta.clone())
            self.img2txt = nn.Parameter(cache.img2txt.clone())
            if learn_gamma:
                share = torch.tensor(min(max(start.gamma, 0.02), 0.98), dtype=cache.keys.dtype)
                self.gamma_logit = nn.Parameter(torch.logit(share))

    def forward(self, samples: Samples) -> tuple[Tensor, Tensor, Tensor | None]:
        """Logits (B, N), image affinity (B, M) and text affinity (B, N)."""
        cache = self.cache()
        s, a = fn.image_affinity(samples.image, cache.keys), cache.text(samples)
        evidence = fn.cache_logits(s, a, cache.labels, cache.n_classes, self.start.beta, self.gamma)
        return fn.logits(samples.zero_shot, evidence, self.start.alpha), s, a

    @property
    def gamma(self) -> Tensor | float:
        """Share of the image cache."""
        return self.start.gamma if self.gamma_logit is None else self.gamma_logit.sigmoid()

    def cache(self) -> Cache:
        """The cache with this module's parameters in it."""
        cache = replace(self.frozen, keys=self.keys)
        if cache.meta is None:
            return cache
        return replace(cache, meta=self.meta, img2txt=self.img2txt)


def train_cache(
    cache: Cache, shots: Samples, start: Choice, how: Training, *, learn_gamma: bool = False
) -> Cache:
    """Train keys, and text nets and γ where there are any, on the shots that made the cache.

    Args:
        cache: Made of ``shots`` by ``build_cache``.
        shots: Training images; epoch e takes their view e.
        start: α, β and γ during training.
        how: Optimiser settings.
        learn_gamma: Whether γ trains along.

    Returns:
        The trained cache.
    """
    module = CacheModule(cache, start, learn_gamma)
    optimizer = torch.optim.AdamW(module.parameters(), lr=how.learning_rate, eps=1e-4, fused=True)
    steps = how.epochs * math.ceil(len(shots) / how.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(how.seed)
    place = torch.argsort(torch.argsort(shots.labels, stable=True))  # image -> its cache entry
    views = [replace(v, image=cache.image(v)) for v in shots.views[1:] or (shots,)]
    for epoch in range(how.epochs):
        for batch in torch.randperm(len(shots), generator=generator).split(how.batch_size):
            samples = views[epoch % len(views)][batch]
            logits, s, a = module(samples)
            loss = cross_entropy(logits / how.temperature, samples.labels, reduction="none")
            if how.eta and a is not None:
                means = fn.class_means(s.detach(), cache.labels, cache.n_classes, place[batch])
                loss = loss * fn.hard_weights(fn.disagreement(means, a, how.disagreement), how.eta)
            optimizer.zero_grad()
            loss.mean().backward()
            optimizer.step()
            schedule.step()
    trained = module.cache()
    weights = {k: getattr(trained, k) for k in ("keys", "meta", "img2txt")}
    return replace(trained, **{k: v.detach() for k, v in weights.items() if v is not None})


def match_scale(cache: Cache, shots: Samples) -> Cache:
    """Carry the text affinity to the image affinity's mean and deviation on the shots."""
    text = cache.text(shots)
    if text is None:
        return cache
    image = fn.image_affinity(cache.image(shots), cache.keys)
    factor = float(image.std(correction=0) / text.std(correction=0).clamp_min(1e-6))
    return replace(cache, text_scale=(factor, float(image.mean() - factor * text.mean())))
