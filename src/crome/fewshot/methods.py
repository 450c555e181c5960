"""Method names of the command line and of tables, and the classifier each one makes."""

from collections.abc import Callable
from typing import Any

from crome.fewshot.ape import APEClassifier
from crome.fewshot.base import FewShotClassifier
from crome.fewshot.gda import GDAClassifier
from crome.fewshot.linear_probe import LinearProbeClassifier
from crome.fewshot.tip_adapter import TipAdapterClassifier
from crome.fewshot.xmadapter import XMAdapterClassifier
from crome.fewshot.zero_shot import ZeroShotClassifier


def _centroid(class_features: Any, **keywords: Any) -> FewShotClassifier:
    return ZeroShotClassifier(None, **keywords)


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
    "xmadapter": XMAdapterClassifier,
}


def _variant(**settings: Any) -> Callable[..., FewShotClassifier]:
    return lambda class_features, **keywords: XMAdapterClassifier(
        class_features, **settings, **keywords
    )


ABLATIONS: dict[str, Callable[..., FewShotClassifier]] = {
    "default": XMAdapterClassifier,
}
