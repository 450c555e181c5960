"""The model: configuration, the composite, its processor, and what trains when."""

from crome.model import efficientnet as efficientnet  # registers the packaged encoder
from crome.model.configuration import CromeConfig
from crome.model.modeling import CromeForConditionalGeneration
from crome.model.processing import CromeProcessor

__all__ = ["CromeConfig", "CromeForConditionalGeneration", "CromeProcessor"]
