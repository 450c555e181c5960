"""Adapt frozen vision-language models to a task by training only a small cross-modal adapter.

The public names are imported when they are first used, so that `import crome` is quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from crome.version import __version__ as __version__

if TYPE_CHECKING:
    from crome.adapter import CrossModalAdapter
    from crome.attached import attach
    from crome.model.configuration import CromeConfig
    from crome.model.modeling import CromeForConditionalGeneration
    from crome.model.processing import CromeProcessor

__all__ = [
    "CromeConfig",
    "CromeForConditionalGeneration",
    "CromeProcessor",
    "CrossModalAdapter",
    "attach",
]

_HOMES = {
    "CromeConfig": "crome.model",
    "CromeForConditionalGeneration": "crome.model",
    "CromeProcessor": "crome.model",
    "CrossModalAdapter": "crome.adapter",
    "attach": "crome.attached",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'crome' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
