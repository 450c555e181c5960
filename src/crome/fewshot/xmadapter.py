"""XMAdapter (arXiv 2404.12588): image cache and text cache, blended, with hard-sample weights."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import ArrayLike

from crome.fewshot import functional as fn
from crome.fewshot.base import Samples
from crome.fewshot.cache import (
    Cache,
    Training,
    Whitening,
    add_text,
    build_cache,
    match_scale,
    train_cache,
)
from crome.fewshot.search import Choice
from crome.fewshot.tip_adapter import BETAS, CacheClassifier

IMAGE_SHARPNESS = BETAS
TEXT_SHARPNESS = (0.0, *(0.25 * 2**i for i in range(8)))  # 0, 0.25 to 32


class XMAdapterClassifier(CacheClassifier):
    """XMAdapter."""

    def __init__(
        self,
        class_features: ArrayLike | None = None,
        *,
        classes: ArrayLike | None = None,
        logit_scale: float = 100.0,
        gamma: float | Literal["learned", "query"] = "learned",
        eta: float = 1.0,
        disagreement: fn.Disagreement = "zdiff",
        bottleneck: int = 256,
        init: Literal["text", "random"] = "text",
        text_scale: Literal["raw", "match"] = "raw",
        whiten: bool = True,
        epochs: int = 20,
        batch_size: int = 256,
        learning_rate: float = 1e-3,
        alphas: Sequence[float] | None = None,
        betas: Sequence[float] = BETAS,
        random_state: int = 0,
    ) -> None:
        self.class_features = class_features
        self.classes = classes
        self.logit_scale = logit_scale
        self.gamma = gamma
        self.eta = eta
        self.disagreement = disagreement
        self.bottleneck = bottleneck
        self.init = init
        self.text_scale = text_scale
        self.whiten = whiten
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.alphas = alphas
        self.betas = betas
        self.random_state = random_state

    def _build(self, shots: Samples) -> Cache:
        cache = build_cache(shots, len(self.classes_), whiten=self.whiten)
        if not self.text_.shape[1]:
            return cache
        cache = add_text(cache, self._text(shots), self.bottleneck, self.init, self.random_state)
        cache = replace(cache, per_query=self.gamma == "query")
        return match_scale(cache, shots) if self.text_scale == "match" else cache

    def _sharpness(self) -> list[tuple[float, float]]:
        if not self.text_.shape[1]:
            return [(beta, 0.0) for beta in self.betas]
        if self.gamma == "learned":
            return [(b, t) for b in self.betas for t in TEXT_SHARPNESS]
        if self.gamma == "query":
            return [(beta, beta) for beta in self.betas]
        return [(beta * self.gamma, beta * (1 - self.gamma)) for beta in self.betas]

    def _train(self, cache: Cache, shots: Samples, start: Choice) -> Cache:
        how = Training(
            self.epochs,
            self.batch_size,
            self.learning_rate,
            self.eta,
            self.disagreement,
            self.random_state,
        )
        learn = self.gamma == "learned"
        return train_cache(cache, shots, start, how, learn_gamma=learn)

    def _keep(self, cache: Cache, choice: Choice) -> None:
        super()._keep(cache, choice)
        if cache.whitening is not None:
            self.whitening_mean_ = cache.whitening.mean.numpy()
            self.whitening_factor_ = cache.whitening.factor.numpy()
        if cache.img2txt is not None and cache.meta is not None:
            self.img2txt_, self.meta_ = cache.img2txt.numpy(), cache.meta.numpy()
            self.text_scale_ = np.asarray(cache.text_scale)

    def cache(self) -> Cache:
        """The fitted cache, both sides."""
        cache = super().cache()
        if self.whiten:
            factor = torch.from_numpy(self.whitening_factor_)
            cache.whitening = Whitening(torch.from_numpy(self.whitening_mean_), factor)
        if not self.text_.shape[1]:
            return cache
        return replace(
            cache,
            class_text=torch.from_numpy(self.text_).to(cache.keys.dtype),
            img2txt=torch.from_numpy(self.img2txt_),
            meta=torch.from_numpy(self.meta_),
            text_scale=tuple(self.text_scale_.tolist()),
            per_query=self.gamma == "query",
        )
