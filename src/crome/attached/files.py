"""An attached adapter on disk: what it is, and which model with which prompts it belongs to."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from crome.adapter import CrossModalAdapter
from crome.errors import InputError
from crome.model.adapter_files import (
    ADAPTER_CONFIG,
    ADAPTER_FILE,
    locate_adapter,
    read_adapter,
    require_base,
    rounded_apart,
)
from crome.model.hub import whole_name
from crome.model.tensors import fingerprint, load_strictly, load_tensors, save_tensors
from crome.storage import write_json
from crome.version import __version__

KIND = "attached"


def identity(model: Any) -> dict[str, Any]:
    """What an adapter is valid for: the model, its weights, and the prompts.

    Worked out once: the model is frozen.
    """
    if model.identity is None:
        vlm = model.vlm
        quantised = getattr(vlm, "is_quantized", False)
        model.identity = {
            "kind": KIND,
            "checkpoint": whole_name(str(getattr(vlm.config, "_name_or_path", "") or "")),
            "revision": getattr(vlm.config, "_commit_hash", None),
            "architecture": type(vlm).__name__,
            "width": model.hidden_size,
            "model_fingerprint": None if quantised else fingerprint(vlm.state_dict()),
            "dtype": str(vlm.dtype).removeprefix("torch."),
        }
    return {**model.identity, "prompts": model.prompts}


def save(
    model: Any,
    folder: Path,
    metadata: Mapping[str, Any],
    adapter: nn.Module | None = None,
    state: Mapping[str, Tensor] | None = None,
) -> None:
    """Writes an adapter and what it belongs to.

    Args:
        model: Whose adapter it is.
        folder: Made if absent.
        metadata: Further fields of `adapter_config.json`.
        adapter: The active one when None.
        state: Tensors of the whole model, gathered by a distributed engine.
    """
    chosen = adapter or model.get_adapter(model.active_adapter)
    assert isinstance(chosen, CrossModalAdapter)
    tensors = dict(chosen.state_dict())
    if state is not None:
        tensors = {name: state[f"adapter.{name}"] for name in tensors}
    save_tensors(tensors, folder / ADAPTER_FILE, {"crome_version": __version__})
    config = {
        "crome_version": __version__,
        "base": identity(model),
        "adapter": settings_of(chosen, model.adapter_settings),
        "shapes": {name: list(tensor.shape) for name, tensor in tensors.items()},
        **metadata,
    }
    write_json(folder / ADAPTER_CONFIG, config)


def settings_of(adapter: CrossModalAdapter, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that build an adapter like this one."""
    down: Any = next(iter(adapter.down.values()))
    return {
        "bottleneck": down.weight.shape[0],
        "branches": list(adapter.down),
        "gated": len(adapter.gate) > 0,
        "shared_up": "shared" in adapter.up,
        "activation": getattr(adapter, "activation_name", settings["activation"]),
    }


def load(model: Any, path: str | os.PathLike[str]) -> CrossModalAdapter:
    """Builds the adapter in a folder, refusing one of another base.

    Raises:
        InputError: It belongs to another model, other weights or other prompts, or is damaged.
    """
    folder = locate_adapter(path)
    theirs, settings = read_adapter(folder, "base", "adapter")
    check(identity(model), theirs, folder)
    have = set(model.adapter_settings["branches"])
    if unknown := set(settings.get("branches", ())) - have:
        raise InputError(
            f"the adapter in {folder} has a branch for {', '.join(sorted(unknown))}; this model "
            f"was attached for {', '.join(sorted(have))}."
        )
    try:
        adapter = model.new_adapter(settings)
        adapter.activation_name = settings["activation"]
    except (KeyError, TypeError) as error:
        raise InputError(f"{folder} is not a task adapter: {ADAPTER_CONFIG}: {error!r}") from error
    load_strictly(adapter, load_tensors(folder / ADAPTER_FILE), adapter.state_dict(), folder)
    return adapter.to(model.place).requires_grad_(False).eval()


def check(ours: Mapping[str, Any], theirs: Mapping[str, Any], folder: Path) -> None:
    """Refuses an adapter of another base, by name.

    Raises:
        InputError: With what differs.
    """
    if theirs.get("kind") != KIND:
        raise InputError(
            f"the adapter in {folder} belongs to a CROME checkpoint "
            f"({theirs.get('checkpoint') or 'unnamed'}), and this is {ours['architecture']}; load "
            "its base."
        )
    skip = {"checkpoint", "revision", "prompts", "dtype"}
    prints = ours["model_fingerprint"], theirs.get("model_fingerprint")
    # Names must do where one of the two is quantised, or rounded otherwise.
    if None in prints or (rounded_apart(ours, theirs) and prints[0] != prints[1]):
        skip = {"model_fingerprint", "prompts", "dtype"}
    revision = f", revision {theirs['revision']}" if theirs.get("revision") else ""
    remedy = f"Load its base: {theirs.get('checkpoint') or 'unnamed'}{revision}."
    require_base(folder, ours, theirs, skip, remedy)
    prompts = theirs.get("prompts") or {}
    told = [
        f"{key} is {value!r} here and {prompts.get(key)!r} there"
        for key, value in ours["prompts"].items()
        if prompts and prompts.get(key) != value
    ]
    if told:
        raise InputError(
            f"the adapter in {folder} was trained with other prompts: {'; '.join(told)}. Attach "
            "with the same system_prompt and the processor of the same checkpoint."
        )
