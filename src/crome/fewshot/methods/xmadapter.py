"""XMAdapter (arXiv 2404.12588): image cache and text cache, blended, and what goes beyond it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.utils.validation import check_is_fitted

from crome.errors import InputError
from crome.fewshot import functional as fn
from crome.fewshot.cache import Cache, add_text, build_cache, match_scale
from crome.fewshot.methods.cache_classifier import BETAS, CacheClassifier
from crome.fewshot.samples import Samples, as_array
from crome.fewshot.search import Choice
from crome.fewshot.settings import check_number, check_whole
from crome.fewshot.training import Training, train_cache
from crome.fewshot.whitening import Whitening

WHITENED_BETAS = (2.0, 4.0)
"""Image sharpnesses βγ that are tried on whitened affinities."""
TEXT_SHARPNESS = (0.0, 1.0)
"""Text sharpnesses β(1 − γ) that are tried with each of them where γ is learned."""

PUBLISHED: dict[str, Any] = {"whiten": False, "gaussian": False, "epochs": 20, "betas": BETAS}
"""What the paper describes, in the recommended readings: no whitening, no Gaussians, trained."""


@dataclass(repr=False, eq=False, kw_only=True)
class XMAdapterClassifier(CacheClassifier):
    """Zero-shot logits + α × (image cache gated by text cache, + Gaussians at equal spread).

    The cache is XMAdapter's: affinities A = γ s + (1 − γ) a of a query to each cached image and to
    its class's text, sharpened by exp(−β(1 − A)) and summed per class. By default the keys are
    whitened by the spread within classes and the evidence of Gaussians with one covariance joins
    the cache; both go beyond the paper, measure better than its trained keys, and need no
    training. ``XMAdapterClassifier(text, **PUBLISHED)`` is the paper's method in the readings of
    ``docs/explanation/xmadapter.md``.

    Args:
        class_features: Text features, (n_classes, width), rows in sorted label order; None for an
            image cache alone.
        classes: Label of each row of ``class_features``, when some have no images or the order
            differs.
        logit_scale: Factor on the image-text cosine; 100 is CLIP's.
        gamma: Share γ of the image affinity: ``learned`` starts from the searched value, trains
            with the keys if they train, and is searched again; ``query`` sets it for each query
            from the two caches' margins; a number fixes it (1 image only, 0 text only).
        whiten: Whether image features are whitened by the spread within classes.
        gaussian: Whether Gaussian evidence joins the cache's.
        bottleneck: Width D of the text cache's space; at most the features' width.
        init: Start of both nets: ``text``, the top right singular vectors of the class features,
            or ``random``.
        text_scale: ``raw`` text affinities, or ``match``: carried to the image affinities' mean and
            deviation on the shots.
        eta: Strength of hard-sample weighting in training; 0 weighs all alike.
        disagreement: Measure of hardness: ``zdiff``, ``abs`` or ``posterior``.
        epochs: Training epochs of keys, nets and γ; 0 trains nothing.
        batch_size: Images per training step.
        learning_rate: AdamW's, with cosine decay.
        alphas: Weights of the evidence to try; by default a range relative to the logits' spread.
        betas: Image sharpnesses βγ to try (β where γ is fixed).
        selection: ``log_loss`` or, as published, ``accuracy`` on the validation images.
        random_state: Seed of folds, training order and random starts.
        device: The device to compute on, such as ``cuda``; by default the CPU.

    Attributes:
        classes_: Sorted labels, (n_classes,).
        keys_: Cache keys, (n_cached, width).
        key_labels_: Class index of each key, sorted.
        alpha_: Chosen weight of the evidence.
        beta_: Chosen sharpness.
        gamma_: Chosen share of the image affinity.
        temperature_: Divides the logits in ``predict_proba``.
        validation_accuracy_: Accuracy of the chosen settings; NaN without validation images.
    """

    gamma: float | Literal["learned", "query"] = "learned"
    whiten: bool = True
    gaussian: bool = True
    bottleneck: int = 256
    init: Literal["text", "random"] = "text"
    text_scale: Literal["raw", "match"] = "raw"
    eta: float = 1.0
    disagreement: fn.Disagreement = "zdiff"
    betas: Sequence[float] = WHITENED_BETAS

    def _check_settings(self) -> None:
        super()._check_settings()
        number = isinstance(self.gamma, Real) and not isinstance(self.gamma, bool | np.bool_)
        share = number and 0 <= float(self.gamma) <= 1
        if not share and self.gamma not in ("learned", "query"):
            raise InputError(
                f"gamma={self.gamma!r}; expected learned, query or a number from 0 to 1."
            )
        check_whole("bottleneck", self.bottleneck, 1)
        check_number("eta", self.eta, 0)
        if self.gaussian and not self.whiten:
            raise InputError("gaussian=True needs whiten=True, where its Gaussians live; set both.")

    def _build(self, shots: Samples, spread: float = 0.0) -> Cache:
        n = int(self.seen_.sum())
        cache = build_cache(shots, n, whiten=self.whiten, gaussian=self.gaussian, spread=spread)
        if not self.text_.shape[1]:
            return cache
        text = self._seen_text(shots.joint)
        cache = add_text(cache, text, self.bottleneck, self.init, self.seed_)
        cache = replace(cache, per_query=self.gamma == "query")
        return match_scale(cache, shots) if self.text_scale == "match" else cache

    def _sharpness(self) -> list[tuple[float, float]]:
        betas = [float(beta) for beta in self.betas]
        if not self.text_.shape[1]:
            return [(beta, 0.0) for beta in betas]
        if self.gamma == "learned":
            return [(b, t) for b in betas for t in TEXT_SHARPNESS]
        if self.gamma == "query":
            return [(beta, beta) for beta in betas]
        share = float(self.gamma)
        return [(beta * share, beta * (1 - share)) for beta in betas]

    def _train(self, cache: Cache, shots: Samples, start: Choice) -> Cache:
        training = Training(
            self.epochs,
            self.batch_size,
            self.learning_rate,
            self.eta,
            self.disagreement,
            self.seed_,
        )
        return train_cache(cache, shots, start, training, learn_gamma=self.gamma == "learned")

    def _keep(self, cache: Cache, choice: Choice) -> None:
        super()._keep(cache, choice)
        if cache.whitening is not None:
            self.whitening_mean_ = cache.whitening.mean.cpu().numpy()
            self.whitening_factor_ = cache.whitening.factor.cpu().numpy()
        if cache.means is not None:
            self.means_, self.mean_counts_ = cache.means.cpu().numpy(), cache.sizes.cpu().numpy()
        if cache.img2txt is not None and cache.meta is not None:
            self.img2txt_, self.meta_ = cache.img2txt.cpu().numpy(), cache.meta.cpu().numpy()
            self.text_scale_ = np.asarray(cache.text_scale)

    def add_images(
        self, X: ArrayLike, y: ArrayLike, class_features: ArrayLike | None = None
    ) -> Self:
        """Add shots of known or new classes to cache and class means, and refit nothing.

        Args:
            X: Features of the new images, (n_samples, n_features).
            y: Their labels.
            class_features: Text features of the labels that are new, in sorted order.

        Raises:
            InputError: A new label has no text features while the other classes have.
        """
        check_is_fitted(self)
        old = self.classes_[self.seen_]
        super().add_images(X, y, class_features)
        if not self.gaussian:
            return self
        samples = self.samples(np.asarray(as_array(X), self.means_.dtype), as_array(y))
        whitening = self.cache().like(samples.image).whitening
        assert whitening is not None  # `gaussian` comes with it
        self.means_, self.mean_counts_ = self.grown_means(
            self.means_,
            self.mean_counts_,
            old,
            whitening.coordinates(samples.image),
            samples.labels,
        )
        return self

    def cache(self) -> Cache:
        """The fitted cache, both sides."""
        cache = super().cache()
        if self.whiten:
            factor = torch.from_numpy(self.whitening_factor_)
            cache.whitening = Whitening(torch.from_numpy(self.whitening_mean_), factor)
        if self.gaussian:
            cache.means = torch.from_numpy(self.means_)
        if not self.text_.shape[1]:
            return cache
        return replace(
            cache,
            class_text=self._seen_text(cache.keys),
            img2txt=torch.from_numpy(self.img2txt_),
            meta=torch.from_numpy(self.meta_),
            text_scale=tuple(self.text_scale_.tolist()),
            per_query=self.gamma == "query",
        )
