"""Task adapters on disk: five tensors and a description of the base they were trained on."""

import os
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError

from crome.adapter import SHARED, CrossModalAdapter
from crome.errors import InputError
from crome.model.base import bridge_tensors
from crome.model.configuration import CromeConfig, new_adapter
from crome.model.hub import locate
from crome.model.identity import base_identity, fingerprint
from crome.model.pretrained import ADAPTER_CONFIG as ADAPTER_CONFIG
from crome.model.tensors import load_strictly, load_tensors, save_tensors
from crome.storage import read_object, write_json
from crome.version import __version__

ADAPTER_FILE = "adapter_model.safetensors"


def save_adapter(
    model: Any, folder: Path, adapter: CrossModalAdapter, metadata: dict[str, Any]
) -> None:
    """Writes an adapter of a model and what it belongs to."""
    tensors = adapter.state_dict()
    save_tensors(tensors, folder / ADAPTER_FILE, {"crome_version": __version__})
    config = {
        "crome_version": __version__,
        "base": base_identity(model),
        "adapter": {**adapter_settings(model.config), **settings_of(adapter)},
        "shapes": {name: list(tensor.shape) for name, tensor in tensors.items()},
        **metadata,
    }
    write_json(folder / ADAPTER_CONFIG, config)


def load_adapter(model: Any, folder: Path) -> CrossModalAdapter:
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
    try:
        adapter = new_adapter(CromeConfig.from_dict(model.config.to_dict() | settings))
    except (TypeError, StrictDataclassError) as error:
        raise InputError(f"{folder} is not a task adapter: {ADAPTER_CONFIG}: {error!r}") from error
    load_strictly(adapter, load_tensors(folder / ADAPTER_FILE), adapter.state_dict(), folder)
    return adapter.to(bridge_device(model)).requires_grad_(False).eval()


def bridge_device(model: Any) -> torch.device:
    """Where the projections are, whose tokens an adapter takes."""
    for name in ("query_projection", "patch_projection"):
        if (projection := getattr(model, name, None)) is not None:
            device: torch.device = projection.weight.device
            return device
    raise AssertionError("a bridge has a branch")


def settings_of(adapter: CrossModalAdapter) -> dict[str, Any]:
    """What an adapter is, in the config's words; one that was loaded may differ from the base's."""
    down: Any = next(iter(adapter.down.values()))
    return {
        "adapter_bottleneck": down.weight.shape[0],
        "adapter_gated": len(adapter.gate) > 0,
        "adapter_shared_up": SHARED in adapter.up,
        "adapter_activation": adapter.activation_name,
    }


def locate_adapter(
    name: str | os.PathLike[str], revision: str | None = None, subfolder: str = ""
) -> Path:
    """The folder of a task adapter: a local one, or a hub id.

    Args:
        name: A folder or a hub id.
        revision: Of a repository on the hub.
        subfolder: Where in it the adapter is.

    Raises:
        InputError: Neither, or it holds something else.
    """
    expected = (
        f"expected a folder with {ADAPTER_CONFIG} and {ADAPTER_FILE}, as OUT/adapter of a run"
    )
    try:
        folder = locate(name, revision) / subfolder
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
        saved = read_object(folder / ADAPTER_CONFIG)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{folder} is not a task adapter: {ADAPTER_CONFIG}: {error}. Copy the folder anew."
        ) from error
    for field in fields:
        if not isinstance(saved.get(field), dict):
            raise InputError(
                f"{folder} is not a task adapter: {ADAPTER_CONFIG} has no object {field!r}. Copy "
                "the folder anew."
            )
    return [saved[field] for field in fields]


def adapter_of(checkpoint: str, adapter: Path) -> Path:
    """The folder of a task adapter, told from one of another base before either is loaded.

    The bridge says which base it is; the towers, which take their time, are compared on loading.

    Raises:
        InputError: There is no adapter, or it belongs to another base.
    """
    folder = locate_adapter(adapter)
    (base,) = read_adapter(folder, "base")
    bridge = bridge_tensors(locate(checkpoint))
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
