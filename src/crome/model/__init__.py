"""The model: its configuration, the composite, its processor, and what trains when.

Read `modeling` first (what is computed), then `splicing` and `prefix` (what the language model
reads), `stages` (what trains) and `answering` (rows to answers).
"""

from crome.assets import efficientnet as efficientnet  # registers the packaged encoder
from crome.model.configuration import CromeConfig
from crome.model.modeling import CromeForConditionalGeneration
from crome.model.processing import CromeProcessor

__all__ = ["CromeConfig", "CromeForConditionalGeneration", "CromeProcessor"]
