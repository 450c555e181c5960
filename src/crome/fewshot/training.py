"""Training of a cache's keys, text nets and γ (Tip-Adapter-F; XMAdapter 2.5).

With γ = 1, η = 0 and no text nets, one training step is exactly Tip-Adapter-F's.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from crome.fewshot import functional as fn
from crome.fewshot.cache import Cache
from crome.fewshot.samples import Samples
from crome.fewshot.search import Choice


@dataclass(frozen=True)
class Training:
    """How a cache is trained; defaults are Tip-Adapter-F's.

    Attributes:
        epochs: Passes over the shots.
        batch_size: Images per step.
        learning_rate: Start of the cosine decay to 0.
        eta: Strength of hard-sample weighting; 0 weighs all alike.
        disagreement: Measure of hardness.
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
                share = cache.keys.new_tensor(min(max(start.gamma, 0.02), 0.98))
                self.gamma_logit = nn.Parameter(torch.logit(share))

    def forward(self, samples: Samples) -> tuple[Tensor, Tensor, Tensor | None]:
        """Logits (B, N), image affinity (B, M) and text affinity (B, N)."""
        cache = self.cache()
        s, a = fn.image_affinity(samples.image, cache.keys), cache.text(samples)
        evidence = fn.cache_logits(
            s, a, cache.labels, cache.n_classes, self.start.beta, self.gamma, cache.weights
        )
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
    cache: Cache, shots: Samples, start: Choice, training: Training, *, learn_gamma: bool = False
) -> Cache:
    """Train keys, and text nets and γ where there are any, on the shots that made the cache.

    Epoch e takes view e of the shots; α and β stay at the start, and so does γ unless it is learnt.
    """
    module = CacheModule(cache, start, learn_gamma)
    optimizer = torch.optim.AdamW(
        module.parameters(),
        lr=training.learning_rate,
        eps=1e-4,
        fused=cache.keys.device.type != "mps",
    )
    steps = training.epochs * math.ceil(len(shots) / training.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator("cpu").manual_seed(training.seed)
    place = torch.argsort(torch.argsort(shots.labels, stable=True))  # image -> its cache entry
    views = [replace(view, image=cache.image(view)) for view in shots.views or (shots,)]
    for epoch in range(training.epochs):
        order = torch.randperm(len(shots), generator=generator, device="cpu").to(place.device)
        for batch in order.split(training.batch_size):
            samples = views[epoch % len(views)][batch]
            logits, s, a = module(samples)
            loss = cross_entropy(logits / training.temperature, samples.labels, reduction="none")
            if training.eta and a is not None:
                means = fn.class_means(s.detach(), cache.labels, cache.n_classes, place[batch])
                loss = loss * fn.hard_weights(
                    fn.disagreement(means, a, training.disagreement), training.eta
                )
            if shots.weights is not None:
                loss = loss * shots.weights[batch]
            optimizer.zero_grad()
            loss.mean().backward()
            optimizer.step()
            schedule.step()
    trained = module.cache()
    weights = {k: getattr(trained, k) for k in ("keys", "meta", "img2txt")}
    return replace(trained, **{k: v.detach() for k, v in weights.items() if v is not None})
