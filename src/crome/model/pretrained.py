"""A base checkpoint on disk: the bridge and its configuration, never the towers."""

import json
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from transformers import PreTrainedModel

from crome.errors import InputError
from crome.model.configuration import CromeConfig
from crome.model.hub import named, tower_path
from crome.model.language import load_language_model
from crome.model.stages import TOWERS
from crome.model.tensors import load_strictly, load_tensors, save_tensors
from crome.model.vision import load_vision_model
from crome.storage import write_json
from crome.verbosity import no_bars, quiet_transformers
from crome.version import __version__

BRIDGE_FILE = "model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"


def load_towers(
    vision_model_id: str | None,
    language_model_id: str | None,
    dtype: torch.dtype | str,
    vision_kwargs: dict[str, Any] | None,
    language_kwargs: dict[str, Any] | None,
) -> tuple[Any, PreTrainedModel]:
    """Loads both frozen towers; only the language model is ever quantised."""
    if not vision_model_id or not language_model_id:
        raise InputError(
            "the config names no towers (vision_model_id, language_model_id); set both to a hub "
            "id, a folder or an asset."
        )
    packaged = vision_model_id.startswith("asset:") and language_model_id.startswith("asset:")
    with quiet_transformers() if packaged else no_bars():
        with named("vision encoder", vision_model_id):
            path = tower_path(vision_model_id)
            vision = load_vision_model(path, dtype=dtype, **(vision_kwargs or {}))
        with named("language model", language_model_id):
            path = tower_path(language_model_id)
            language = load_language_model(path, dtype=dtype, **(language_kwargs or {}))
    return vision, language


def read_config(folder: Path, overrides: dict[str, Any]) -> CromeConfig:
    """Reads and checks `config.json`."""
    if (folder / ADAPTER_CONFIG).exists() and not (folder / "config.json").exists():
        base = json.loads((folder / ADAPTER_CONFIG).read_text())["base"]["checkpoint"]
        raise InputError(
            f"{folder} holds a task adapter; load its base ({base}) and then the adapter "
            "(`--adapter`, or model.load_adapter)."
        )
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{folder} has no readable config.json: {error}") from error
    if config.get("model_type") != CromeConfig.model_type:
        raise InputError(
            f"{folder}/config.json is a {config.get('model_type')!r} model; expected 'crome'."
        )
    # Auto classes hand over keywords of their own (`config`, `trust_remote_code`, …).
    fields = CromeConfig.__dataclass_fields__
    try:
        return CromeConfig.from_dict(config | {k: v for k, v in overrides.items() if k in fields})
    except InputError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError, StrictDataclassError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{folder}/config.json does not describe a model: {reason}") from error


def bridge_state(model: Any) -> dict[str, Tensor]:
    """Tensors of the bridge by name: all but the towers and loaded task adapters."""
    outside = tuple(f"{name}." for name in (*TOWERS, "task_adapters"))
    return {k: v for k, v in model.state_dict().items() if not k.startswith(outside)}


def save_bridge(model: Any, folder: Path, state: dict[str, Tensor] | None = None) -> None:
    """Writes the bridge and its config into `folder`."""
    tensors = bridge_state(model)
    if state is not None:  # gathered by a distributed engine
        tensors = {name: state[name] for name in tensors}
    save_tensors(tensors, folder / BRIDGE_FILE, {"crome_version": __version__})
    config = model.config.to_dict() | {"crome_version": __version__}
    for tower in ("vision_config", "text_config"):
        config[tower].pop("_name_or_path", None)  # a folder of this machine
        config[tower].pop("quantization_config", None)  # how a run held it, not what it is
    write_json(folder / "config.json", config)


def load_bridge(model: Any, folder: Path) -> None:
    """Loads the bridge strictly: a missing, unexpected or misshapen tensor is an error."""
    load_strictly(model, load_tensors(folder / BRIDGE_FILE), bridge_state(model), folder)
