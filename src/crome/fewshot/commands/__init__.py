"""The verbs of ``crome fewshot``: a classifier from a few images, and the papers' tables.

One verb a file; ``saved`` opens a classifier with its encoder, ``gathering`` turns a draw into
features, ``terminal`` prints. Heavy imports (torch, scikit-learn) are inside the functions, since
``--help`` must not pay for them.
"""

from crome.fewshot.commands.benchmark import benchmark
from crome.fewshot.commands.evaluate import evaluate
from crome.fewshot.commands.explain import explain
from crome.fewshot.commands.fit import DEFAULT_METHOD, fit
from crome.fewshot.commands.predict import predict
from crome.fewshot.commands.quickstart import quickstart

__all__ = [
    "DEFAULT_METHOD",
    "benchmark",
    "evaluate",
    "explain",
    "fit",
    "predict",
    "quickstart",
]
