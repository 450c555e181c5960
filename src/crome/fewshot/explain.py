"""Why an image got its label: which cached images spoke for it, and how far its text did."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike

from crome.errors import InputError
from crome.fewshot import functional as fn
from crome.fewshot.methods.cache_classifier import CacheClassifier


@dataclass(frozen=True)
class Explanation:
    """The evidence that decided one prediction.

    Attributes:
        label: Predicted label.
        probability: Probability of that class.
        runner_up: Second most likely label.
        text_margin: What the text adds to the log-odds of the prediction over the runner-up.
        image_margin: What the images add; both sum to the log-odds.
        neighbours: Index into the cache and affinity of the predicted class's images, largest
            first; none for a class without images.
    """

    label: Any
    probability: float
    runner_up: Any
    text_margin: float
    image_margin: float
    neighbours: tuple[tuple[int, float], ...]


def explain(classifier: CacheClassifier, X: ArrayLike, top: int = 5) -> list[Explanation]:
    """Explain the predictions of a fitted cache classifier.

    Args:
        classifier: Tip-Adapter or XMAdapter.
        X: Features, (n_samples, n_features).
        top: Cached images listed per sample.

    Raises:
        InputError: The classifier has no image cache.
    """
    if not isinstance(classifier, CacheClassifier):
        raise InputError(
            f"{type(classifier).__name__} keeps no images; expected a tip-adapter or xmadapter."
        )
    probabilities = classifier.predict_proba(X)
    samples = classifier.samples(X)
    cache = classifier.cache().like(samples.image)
    with torch.inference_mode():
        affinity = fn.image_affinity(cache.image(samples), cache.keys).cpu().numpy()
        both = (classifier.logits(samples) / classifier.temperature_).cpu().numpy()
    text = samples.zero_shot.cpu().numpy() / classifier.temperature_
    found = []
    for row in range(len(probabilities)):
        order = probabilities[row].argsort()[::-1]
        best, second = order[0], order[min(1, len(order) - 1)]
        mine = np.flatnonzero(classifier.key_labels_ == best)
        ranked = mine[affinity[row, mine].argsort()[::-1][:top]]
        text_margin = text[row, best] - text[row, second]
        found.append(
            Explanation(
                classifier.classes_[best].item(),
                float(probabilities[row, best]),
                classifier.classes_[second].item(),
                float(text_margin),
                float(both[row, best] - both[row, second] - text_margin),
                tuple((int(i), float(affinity[row, i])) for i in ranked),
            )
        )
    return found
