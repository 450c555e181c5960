"""The classifiers, one a file, and the names that the command line and tables have for them.

Read ``tip_adapter`` and ``cache_classifier`` first, then ``xmadapter``; the others stand alone.
"""

from collections.abc import Callable
from typing import Any

from crome.fewshot.classifier import FewShotClassifier
from crome.fewshot.methods.ape import APEClassifier
from crome.fewshot.methods.gda import GDAClassifier
from crome.fewshot.methods.linear_probe import LinearProbeClassifier
from crome.fewshot.methods.tip_adapter import TipAdapterClassifier
from crome.fewshot.methods.xmadapter import PUBLISHED, XMAdapterClassifier
from crome.fewshot.methods.zero_shot import ZeroShotClassifier


def _centroid(class_features: Any, **keywords: Any) -> FewShotClassifier:
    return ZeroShotClassifier(None, **keywords)


def _published(class_features: Any, **keywords: Any) -> FewShotClassifier:
    return XMAdapterClassifier(class_features, **PUBLISHED, **keywords)


def _tip_f(class_features: Any, **keywords: Any) -> FewShotClassifier:
    return TipAdapterClassifier(class_features, epochs=20, **keywords)


METHODS: dict[str, Callable[..., FewShotClassifier]] = {
    "zero-shot": ZeroShotClassifier,
    "nearest-centroid": _centroid,
    "linear-probe": LinearProbeClassifier,
    "tip-adapter": TipAdapterClassifier,
    "tip-adapter-f": _tip_f,
    "ape": APEClassifier,
    "gda": GDAClassifier,
    "xmadapter-published": _published,
    "xmadapter": XMAdapterClassifier,
}


def _variant(**settings: Any) -> Callable[..., FewShotClassifier]:
    return lambda class_features, **keywords: XMAdapterClassifier(
        class_features, **settings, **keywords
    )


ABLATIONS: dict[str, Callable[..., FewShotClassifier]] = {
    "default": XMAdapterClassifier,
    "image only (gamma=1)": _variant(gamma=1.0),
    "text only (gamma=0)": _variant(gamma=0.0),
    "gamma per query": _variant(gamma="query"),
    "no gaussians": _variant(gaussian=False),
    "no gaussians, no whitening": _variant(gaussian=False, whiten=False),
    "trained": _variant(epochs=20),
    "text scale matched": _variant(text_scale="match"),
    "published": _variant(**PUBLISHED),
    "published, eta=0": _variant(**PUBLISHED, eta=0.0),
    "published, gamma=1 (Tip-Adapter-F)": _variant(**PUBLISHED, gamma=1.0, eta=0.0),
    "published, random nets": _variant(**PUBLISHED, init="random"),
    "published, selected on accuracy": _variant(**PUBLISHED, selection="accuracy"),
}
