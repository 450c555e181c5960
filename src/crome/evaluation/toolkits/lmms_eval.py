"""The plug-in's door: what `lmms-eval` finds under the entry point `lmms_eval.models`.

Nothing here is imported unless lmms-eval asks, and CROME does not depend on it.
"""

from typing import Any


def manifest() -> Any:
    """The `ModelManifest` of the model name `crome`."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(
        "crome", simple_class_path="crome.evaluation.toolkits.lmms_eval_model.CromeForLmmsEval"
    )
