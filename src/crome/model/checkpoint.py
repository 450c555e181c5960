"""What is on disk: the bridge (a base checkpoint) and the adapter (a task), never the towers.

Tensors are written to a temporary file first and then moved into place, so a full disk or a killed
process leaves what was there before.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    StrictDataclassError,
)
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

import crome
from crome import assets
from crome.adapter import CrossModalAdapter
from crome.errors import InputError, JobError
from crome.model.configuration import CromeConfig, new_adapter
from crome.model.language import load_language_model
from crome.model.stages import TOWERS
from crome.model.vision import load_vision_model

if TYPE_CHECKING:
    from crome.model.modeling import CromeForConditionalGeneration

BRIDGE_FILE = "model.safetensors"
ADAPTER_FILE = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
HUB_FILES = ["*.json", "*.safetensors", "*.txt"]
PACKAGED = Path(__file__).parent.parent / "weights"
"""Trained bridges that ship with the package, a folder each."""


def locate(name: str | os.PathLike[str], revision: str | None = None) -> Path:
    """The folder of a checkpoint: a local one, a preset that has weights, or a hub id.

    Raises:
        InputError: None of the three.
    """
    if (folder := Path(name)).is_dir():
        return folder
    if (packaged := PACKAGED / str(name)).is_dir():
        return packaged
    try:
        return Path(snapshot_download(str(name), revision=revision, allow_patterns=HUB_FILES))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        absent = isinstance(error, HFValidationError | HfHubHTTPError)
        known = ", ".join(sorted(p.name for p in PACKAGED.glob("*"))) or "none"
        raise InputError(
            f"no checkpoint {str(name)!r}: not a folder, not a packaged base ({known}), and "
            f"{'not on the hub' if absent else 'the hub cannot be reached'}."
        ) from error


def tower_path(name: str) -> str:
    """Resolves an `asset:` name to its folder; other names are left to transformers."""
    return str(assets.resolve(name.removeprefix("asset:"))) if name.startswith("asset:") else name


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
    with assets.quiet_transformers() if packaged else assets.no_bars():
        with named("vision encoder", vision_model_id):
            path = tower_path(vision_model_id)
            vision = load_vision_model(path, dtype=dtype, **(vision_kwargs or {}))
        with named("language model", language_model_id):
            path = tower_path(language_model_id)
            language = load_language_model(path, dtype=dtype, **(language_kwargs or {}))
    return vision, language


@contextmanager
def named(part: str, name: str) -> Iterator[None]:
    """Says which part it was that a library could not load."""
    try:
        yield
    except InputError:
        raise
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        reason = str(error).strip().split("\n")[0][:300].rstrip(".")
        raise InputError(
            f"the {part} {name!r} cannot be loaded: {reason}. Expected a whole folder, or a hub id "
            "that can be reached."
        ) from error


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


# ---------------------------------------------------------------------- tensors


def bridge_state(model: "CromeForConditionalGeneration") -> dict[str, Tensor]:
    """Tensors of the bridge by name: all but the towers and loaded task adapters."""
    outside = tuple(f"{name}." for name in (*TOWERS, "task_adapters"))
    return {k: v for k, v in model.state_dict().items() if not k.startswith(outside)}


def save_tensors(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Writes safetensors whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        contiguous = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
        save_file(contiguous, temporary, {"format": "pt", **metadata})
        os.chmod(temporary, 0o644)  # a temporary file is its owner's alone; a checkpoint is shared
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        raise JobError(
            f"could not write {path}: {error}. What was there before is intact."
        ) from error
    finally:
        Path(temporary).unlink(missing_ok=True)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Reads a safetensors file, with one clear error when it is absent or damaged."""
    try:
        return load_file(path)
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist; is {path.parent} a checkpoint folder?") from error
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{path} cannot be read ({error}); it is damaged or was cut off while copying."
        ) from error


def save_bridge(
    model: "CromeForConditionalGeneration", folder: Path, state: dict[str, Tensor] | None = None
) -> None:
    """Writes the bridge and its config into `folder`."""
    tensors = bridge_state(model)
    if state is not None:  # gathered by a distributed engine
        tensors = {name: state[name] for name in tensors}
    save_tensors(tensors, folder / BRIDGE_FILE, {"crome_version": crome.__version__})
    config = model.config.to_dict() | {"crome_version": crome.__version__}
    for tower in ("vision_config", "text_config"):
        config[tower].pop("_name_or_path", None)  # a folder of this machine
        config[tower].pop("quantization_config", None)  # how a run held it, not what it is
    write_json(folder / "config.json", config)


def load_bridge(model: "CromeForConditionalGeneration", folder: Path) -> None:
    """Loads the bridge strictly: a missing, unexpected or misshapen tensor is an error."""
    load_strictly(model, load_tensors(folder / BRIDGE_FILE), bridge_state(model), folder)


def load_strictly(
    module: nn.Module, tensors: dict[str, Tensor], expected: dict[str, Tensor], source: Path
) -> None:
    """Copies `tensors` into a module after checking names and shapes against `expected`."""
    problems = [f"missing {name}" for name in expected.keys() - tensors.keys()]
    problems += [f"unexpected {name}" for name in tensors.keys() - expected.keys()]
    problems += [
        f"{name} is {tuple(tensors[name].shape)}, expected {tuple(expected[name].shape)}"
        for name in expected.keys() & tensors.keys()
        if tensors[name].shape != expected[name].shape
    ]
    if problems:
        shown = "; ".join(sorted(problems)[:5]) + (" …" if len(problems) > 5 else "")
        raise InputError(f"{source} does not fit this model: {shown}.")
    module.load_state_dict(tensors, strict=False)


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Writes JSON whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(json.dumps(value, indent=2, default=str) + "\n")
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise JobError(
            f"could not write {path}: {error}. What was there before is intact."
        ) from error


# ---------------------------------------------------------------------- task adapters


def save_adapter(
    model: "CromeForConditionalGeneration", folder: Path, metadata: dict[str, Any]
) -> None:
    """Writes the active adapter and what it belongs to."""
    adapter = model.get_adapter(model.active_adapter)
    if adapter is None:
        raise InputError("this configuration has no adapter to save (adapter_bottleneck is None).")
    tensors = adapter.state_dict()
    save_tensors(tensors, folder / ADAPTER_FILE, {"crome_version": crome.__version__})
    config = {
        "crome_version": crome.__version__,
        "base": base_identity(model),
        "adapter": adapter_settings(model.config),
        "shapes": {name: list(tensor.shape) for name, tensor in tensors.items()},
        **metadata,
    }
    write_json(folder / ADAPTER_CONFIG, config)


def load_adapter(model: "CromeForConditionalGeneration", folder: Path) -> CrossModalAdapter:
    """Builds the adapter in `folder`, refusing one that was trained on another base."""
    theirs, settings = read_adapter(folder, "base", "adapter")
    ours = base_identity(model)
    unknown = {"checkpoint"}
    if None in (ours["language_fingerprint"], theirs.get("language_fingerprint", "")):
        unknown.add("language_fingerprint")  # one of the two language models is quantised
    wrong = [key for key in ours if key not in unknown and theirs.get(key) != ours[key]]
    if wrong:
        raise InputError(
            f"the adapter in {folder} was trained on another base: "
            + "; ".join(f"{key} is {ours[key]} here and {theirs.get(key)} there" for key in wrong)
            + f". Load its base first: {theirs.get('checkpoint') or 'the run beside it'}."
        )
    adapter = new_adapter(CromeConfig.from_dict(model.config.to_dict() | settings))
    load_strictly(adapter, load_tensors(folder / ADAPTER_FILE), adapter.state_dict(), folder)
    device = next(model.get_output_embeddings().parameters()).device
    return adapter.to(device).requires_grad_(False).eval()


def locate_adapter(name: str | os.PathLike[str]) -> Path:
    """The folder of a task adapter: a local one, or a hub id.

    Raises:
        InputError: Neither, or it holds something else.
    """
    expected = (
        f"expected a folder with {ADAPTER_CONFIG} and {ADAPTER_FILE}, as OUT/adapter of a run"
    )
    try:
        folder = locate(name)
    except InputError as error:
        raise InputError(
            f"no adapter {str(name)!r}: not a folder, and not to be had from the hub; {expected}."
        ) from error
    if not (folder / ADAPTER_CONFIG).is_file():
        inside = folder / "adapter"
        near = f" (meant {inside}?)" if (inside / ADAPTER_CONFIG).is_file() else ""
        raise InputError(f"{folder} is not a task adapter{near}; {expected}.")
    return folder


def read_adapter(folder: Path, *fields: str) -> list[dict[str, Any]]:
    """Fields of an adapter's description.

    Raises:
        InputError: It has none, or not these.
    """
    try:
        saved = json.loads((folder / ADAPTER_CONFIG).read_text())
        return [saved[field] for field in fields]
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{folder} is not a task adapter: {ADAPTER_CONFIG}: {error!r}") from error


def adapter_of(checkpoint: str, adapter: Path) -> Path:
    """The folder of a task adapter, told from one of another base before either is loaded.

    The bridge says which base it is; the towers, which take their time, are compared on loading.

    Raises:
        InputError: There is no adapter, or it belongs to another base.
    """
    folder = locate_adapter(adapter)
    (base,) = read_adapter(folder, "base")
    bridge = load_tensors(locate(checkpoint) / BRIDGE_FILE)
    ours = fingerprint({k: v for k, v in bridge.items() if not k.startswith("adapter.")})
    if (theirs := base.get("bridge_fingerprint")) != ours:
        raise InputError(
            f"the adapter in {folder} was trained on another base: bridge_fingerprint is {ours} in "
            f"{checkpoint} and {theirs} there. Give --checkpoint its base: "
            f"{base.get('checkpoint') or 'the run beside it'}."
        )
    return folder


def adapter_settings(config: CromeConfig) -> dict[str, Any]:
    """The config fields that shape an adapter."""
    return {name: getattr(config, name) for name in config.to_dict() if name.startswith("adapter_")}


def base_identity(model: "CromeForConditionalGeneration") -> dict[str, Any]:
    """What an adapter is valid for: both towers and the bridge without its adapter."""
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


def tower_fingerprints(model: "CromeForConditionalGeneration") -> dict[str, str | None]:
    """Of both towers; None for a quantised language model, whose values are not those on disk."""
    quantised = getattr(model.language_model, "is_quantized", False)
    return {
        "vision_fingerprint": fingerprint(model.vision_model.state_dict()),
        "language_fingerprint": None
        if quantised
        else fingerprint(model.language_model.state_dict()),
    }


def fingerprint(state: dict[str, Tensor]) -> str:
    """A short hash of tensor names, shapes and sampled values, the same in float32 and bfloat16.

    At most 64 values of a tensor are read, so that 13 B parameters take a moment; they are rounded
    to bfloat16, because a tower may be loaded in either type.
    """
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach()
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        if tensor.is_floating_point() and tensor.numel():
            flat = tensor.reshape(-1)
            samples = min(64, flat.numel())
            picks = torch.arange(samples) * (flat.numel() - 1) // max(1, samples - 1)
            sample = flat[picks.to(flat.device)].to(torch.bfloat16).cpu().float()
            digest.update(sample.numpy().tobytes())
    return digest.hexdigest()[:16]
