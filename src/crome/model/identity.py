"""What an adapter is valid for: fingerprints of the frozen parts that it was trained on."""

from typing import Any

from crome.model.fingerprint import fingerprint as fingerprint
from crome.model.pretrained import bridge_state


def base_identity(model: Any) -> dict[str, Any]:
    """What an adapter of a model is valid for; names of fingerprints end in `_fingerprint`."""
    identity: dict[str, Any] = model.base_identity()
    return identity


def crome_identity(model: Any) -> dict[str, Any]:
    """What an adapter of CROME is valid for: both towers and the bridge without its adapter."""
    config = model.config
    bridge = {k: v for k, v in bridge_state(model).items() if not k.startswith("adapter.")}
    return {
        "checkpoint": config.name_or_path,
        "vision_model": config.vision_model_id,
        "language_model": config.language_model_id,
        "width": config.hidden_size,
        **(model.tower_fingerprints or tower_fingerprints(model)),
        "bridge_fingerprint": fingerprint(bridge),
    }


def tower_fingerprints(model: Any) -> dict[str, str | None]:
    """Of both towers; None for a quantised language model, whose values are not those on disk."""
    language_model = model.language_model
    language: str | None = getattr(language_model, "crome_fingerprint", None)
    if language is None and not getattr(language_model, "is_quantized", False):
        language = fingerprint(language_model.state_dict())
    return {
        "vision_fingerprint": fingerprint(model.vision_model.state_dict()),
        "language_fingerprint": language,
    }
