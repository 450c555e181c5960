"""The equations of cache-based few-shot classification, and nothing else.

Legend: B queries, M cache entries, N classes, C feature width, D bottleneck width;
s image affinity (B, M), a text affinity (B, N), y label of an entry or a query.
Sources: Tip-Adapter (arXiv 2207.09519) and XMAdapter (arXiv 2404.12588). The paper leaves parts
of XMAdapter open; the reading that a function takes is named in its docstring and in
``docs/explanation/xmadapter.md``.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize, softmax

Disagreement = Literal["zdiff", "abs", "posterior"]


def image_affinity(features: Tensor, keys: Tensor) -> Tensor:
    """Cosine (B, M) of queries (B, C) with cached images (M, C) (Tip-Adapter eq. 4; XMAdapter 2.3).

    Queries are unit rows. Trained keys are not renormalised, as in Tip-Adapter-F, so the value may
    then exceed 1.
    """
    return features @ keys.T


def text_affinity(image_to_text: Tensor, meta_to_text: Tensor) -> Tensor:
    """Cosine (B, N) of queries (B, D) with class texts (N, D) in the bottleneck (XMAdapter 2.2).

    The paper repeats a class's text key for each of its cached images. Those rows are equal, so
    one column per class says the same, and the (M, D) matrix of text keys is never built. Column
    ``y_k`` belongs to cache entry k. Both sides are normalised here: without that the affinity has
    no bound and the exponential overflows (a reading, not stated).
    """
    return normalize(image_to_text, dim=-1) @ normalize(meta_to_text, dim=-1).T


def modulate(affinity: Tensor, beta: float) -> Tensor:
    """Sharpened affinity φ = exp(−β (1 − A)) (Tip-Adapter eq. 4), same shape."""
    return torch.exp(-beta * (1 - affinity))


def class_sum(entries: Tensor, labels: Tensor, n_classes: int) -> Tensor:
    """Sum the columns (B, M) of each class, (B, N): φ L for one-hot L, without building L."""
    return entries.new_zeros(len(entries), n_classes).index_add(1, labels, entries)


def cache_logits(
    s: Tensor,
    a: Tensor | None,
    labels: Tensor,
    n_classes: int,
    beta: float,
    gamma: Tensor | float,
    weights: Tensor | None = None,
) -> Tensor:
    """Both caches' evidence per class, factorised.

    exp(−β(1 − γ s − (1−γ) a)) = exp(−βγ(1 − s)) · exp(−β(1−γ)(1 − a)), and the second factor is
    the same for all entries of a class: the text cache gates the image cache class by class. So
    the result (B, N) equals ``class_sum(modulate(A, beta), labels, N)`` for the fused affinity
    A = γ s + (1 − γ) a of each entry (XMAdapter 2.3, "adaptive scaling").

    Args:
        s: Image affinity, (B, M).
        a: Text affinity, (B, N), or None for an image cache alone.
        labels: (M,).
        n_classes: N.
        beta: Sharpness.
        gamma: Share of the image affinity, a number or (B, 1).
        weights: How much each entry counts, (M,); None for 1.
    """
    image = modulate(s, beta) if a is None else torch.exp(-beta * gamma * (1 - s))
    evidence = class_sum(image if weights is None else image * weights, labels, n_classes)
    if a is None:
        return evidence
    return evidence * torch.exp(-beta * (1 - gamma) * (1 - a))


def logits(zero_shot: Tensor, cache: Tensor, alpha: float) -> Tensor:
    """Zero-shot logits plus α times the cache's evidence (Tip-Adapter eq. 5), (B, N)."""
    return zero_shot + alpha * cache


def class_means(s: Tensor, labels: Tensor, n_classes: int, own: Tensor | None = None) -> Tensor:
    """Mean image affinity to each class, (B, N); NaN for a class with no entry left.

    For queries that are training images ``own`` (B,) is their own entry, which is left out.
    """
    sums = class_sum(s, labels, n_classes)
    counts = torch.bincount(labels, minlength=n_classes).to(s.dtype).repeat(len(s), 1)
    if own is not None:
        rows = torch.arange(len(s), device=s.device)
        sums[rows, labels[own]] -= s[rows, own]
        counts[rows, labels[own]] -= 1
    return sums / counts


def disagreement(image: Tensor, text: Tensor, kind: Disagreement = "zdiff") -> Tensor:
    """How far the two affinities of a query differ: its hardness (XMAdapter 2.5, a reading).

    The paper judges hardness by this difference and gives no formula. Both affinities are per
    class, (B, N); the result (B,) is detached. ``zdiff`` compares rankings free of scale: each row
    is standardised over classes first. ``abs`` is the literal mean absolute difference; where
    image cosines spread wider than image-text cosines it is nearly constant. ``posterior`` is the
    total variation between the two softmaxes.
    """
    image, text = image.detach(), text.detach()
    if kind == "posterior":
        return (softmax(image, -1) - softmax(text, -1)).abs().sum(-1) / 2
    if kind == "zdiff":
        image, text = _standardise(image), _standardise(text)
    return (image - text).abs().mean(-1)


def _standardise(rows: Tensor) -> Tensor:
    spread = rows.std(-1, correction=0, keepdim=True)
    return (rows - rows.mean(-1, keepdim=True)) / (spread + 1e-8)


def hard_weights(d: Tensor, eta: float) -> Tensor:
    """Loss weights w = (1 + η d / mean d) / (1 + η): harder samples count more (a reading).

    The weights (B,) are detached and have the mean 1. NaN marks a sample whose disagreement is
    undefined, as for the only image of its class; it gets weight 1. With η = 0 all weigh alike.
    """
    d = d.detach()
    known = ~d.isnan()
    weights = torch.ones_like(d)
    if known.any() and d[known].mean() > 0:
        weights[known] = (1 + eta * d[known] / d[known].mean()) / (1 + eta)
    return weights
