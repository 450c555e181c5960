"""The classifiers, one a file, and the names that the command line and tables have for them.

Read ``tip_adapter`` and ``cache_classifier`` first, then ``xmadapter``; the others stand alone.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from crome.fewshot.classifier import FewShotClassifier
from crome.fewshot.methods.ape import APEClassifier
from crome.fewshot.methods.gda import GDAClassifier
from crome.fewshot.methods.linear_probe import LinearProbeClassifier
from crome.fewshot.methods.tip_adapter import TipAdapterClassifier
from crome.fewshot.methods.xmadapter import PUBLISHED, XMAdapterClassifier
from crome.fewshot.methods.zero_shot import ZeroShotClassifier

Maker = Callable[..., FewShotClassifier]

METHODS: dict[str, Maker] = {
    "zero-shot": ZeroShotClassifier,
    "nearest-centroid": lambda class_features, **settings: ZeroShotClassifier(None, **settings),
    "linear-probe": LinearProbeClassifier,
    "tip-adapter": TipAdapterClassifier,
    "tip-adapter-f": partial(TipAdapterClassifier, epochs=20),
    "ape": APEClassifier,
    "gda": GDAClassifier,
    "xmadapter-published": partial(XMAdapterClassifier, **PUBLISHED),
    "xmadapter": XMAdapterClassifier,
}

# Ours beside the paper's method in our readings, each with one thing changed.
_SETTINGS: dict[str, dict[str, Any]] = {
    "xmadapter": {},
    "xmadapter, gamma=1": {"gamma": 1.0},
    "xmadapter, gamma=0": {"gamma": 0.0},
    "xmadapter, gamma per query": {"gamma": "query"},
    "xmadapter, no gaussians": {"gaussian": False},
    "xmadapter, no gaussians, no whitening": {"gaussian": False, "whiten": False},
    "xmadapter, trained": {"epochs": 20},
    "xmadapter, text scale matched": {"text_scale": "match"},
    "xmadapter-published": PUBLISHED,
    "xmadapter-published, gamma=1": PUBLISHED | {"gamma": 1.0},
    "xmadapter-published, gamma=0": PUBLISHED | {"gamma": 0.0},
    "xmadapter-published, gamma per query": PUBLISHED | {"gamma": "query"},
    "xmadapter-published, eta=0": PUBLISHED | {"eta": 0.0},
    "xmadapter-published, abs": PUBLISHED | {"disagreement": "abs"},
    "xmadapter-published, posterior": PUBLISHED | {"disagreement": "posterior"},
    "xmadapter-published, gamma=1, eta=0 (Tip-Adapter-F)": PUBLISHED | {"gamma": 1.0, "eta": 0},
    "xmadapter-published, random nets": PUBLISHED | {"init": "random"},
    "xmadapter-published, selected on accuracy": PUBLISHED | {"selection": "accuracy"},
}
ABLATIONS: dict[str, Maker] = {
    name: partial(XMAdapterClassifier, **settings) for name, settings in _SETTINGS.items()
}
