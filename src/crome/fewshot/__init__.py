"""Few-shot image classification on a frozen image-text encoder, as scikit-learn estimators."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from crome.fewshot.ape import APEClassifier
    from crome.fewshot.gda import GDAClassifier
    from crome.fewshot.linear_probe import LinearProbeClassifier
    from crome.fewshot.tip_adapter import TipAdapterClassifier
    from crome.fewshot.xmadapter import XMAdapterClassifier
    from crome.fewshot.zero_shot import ZeroShotClassifier

__all__ = [
    "APEClassifier",
    "GDAClassifier",
    "LinearProbeClassifier",
    "TipAdapterClassifier",
    "XMAdapterClassifier",
    "ZeroShotClassifier",
]
_HOMES = {
    "APEClassifier": "ape",
    "GDAClassifier": "gda",
    "LinearProbeClassifier": "linear_probe",
    "TipAdapterClassifier": "tip_adapter",
    "XMAdapterClassifier": "xmadapter",
    "ZeroShotClassifier": "zero_shot",
}


def __getattr__(name: str) -> Any:  # estimators load on first use: `crome --help` needs no torch
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
