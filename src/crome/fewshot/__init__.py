"""Few-shot image classification on a frozen image-text encoder, as scikit-learn estimators.

Pictures become rows of features (``encoders``, ``features``), and an estimator learns from a few
labelled rows (``classifier``, then ``methods``); ``functional`` holds the equations, ``search`` the
choice of settings, ``data`` the picture sets, ``commands`` the verbs. Read in this order.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from crome.fewshot.encoders import load_encoder
    from crome.fewshot.features import class_features, image_features, view_features
    from crome.fewshot.methods.ape import APEClassifier
    from crome.fewshot.methods.gda import GDAClassifier
    from crome.fewshot.methods.linear_probe import LinearProbeClassifier
    from crome.fewshot.methods.tip_adapter import TipAdapterClassifier
    from crome.fewshot.methods.xmadapter import XMAdapterClassifier
    from crome.fewshot.methods.zero_shot import ZeroShotClassifier
    from crome.fewshot.saving import load_classifier, save_classifier
    from crome.fewshot.transformer import ImageFeatures

__all__ = [
    "APEClassifier",
    "GDAClassifier",
    "ImageFeatures",
    "LinearProbeClassifier",
    "TipAdapterClassifier",
    "XMAdapterClassifier",
    "ZeroShotClassifier",
    "class_features",
    "image_features",
    "load_classifier",
    "load_encoder",
    "save_classifier",
    "view_features",
]
# The classifiers by name, and the file of each: what a saved classifier may name.
CLASSIFIERS = {
    "APEClassifier": "methods.ape",
    "GDAClassifier": "methods.gda",
    "LinearProbeClassifier": "methods.linear_probe",
    "TipAdapterClassifier": "methods.tip_adapter",
    "XMAdapterClassifier": "methods.xmadapter",
    "ZeroShotClassifier": "methods.zero_shot",
}
_HOMES = CLASSIFIERS | {
    "ImageFeatures": "transformer",
    "class_features": "features",
    "image_features": "features",
    "load_classifier": "saving",
    "load_encoder": "encoders",
    "save_classifier": "saving",
    "view_features": "features",
}


def __getattr__(name: str) -> Any:  # names load on first use: `crome --help` needs no torch
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
