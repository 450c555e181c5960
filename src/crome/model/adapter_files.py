"""Task adapters on disk, with the base that they were trained on."""

import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError

from crome.adapter import SHARED, CrossModalAdapter
from crome.errors import InputError
from crome.model.configuration import CromeConfig, new_adapter
from crome.model.hub import locate
from crome.model.pretrained import ADAPTER_CONFIG as ADAPTER_CONFIG
from crome.model.pretrained import bridge_tensors, without_adapter
from crome.model.tensors import fingerprint, load_strictly, load_tensors, save_tensors
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
        "base": model.base_identity(),
        "adapter": {**adapter_settings(model.config), **settings_of(adapter)},
        "shapes": {name: list(tensor.shape) for name, tensor in tensors.items()},
        **metadata,
    }
    write_json(folder / ADAPTER_CONFIG, config)


def require_base(
    folder: Path,
    ours: Mapping[str, Any],
    theirs: Mapping[str, Any],
    unknown: Collection[str],
    remedy: str,
) -> None:
    """Refuses an adapter of another base.

    Args:
        folder: Folder of the adapter.
        ours: The identity of the base at hand.
        theirs: The identity of the adapter's base.
        unknown: Keys that are not compared.
        remedy: What to do, as a sentence.

    Raises:
        InputError: The two differ; the message says in what, and ends with the remedy.
    """
    wrong = [key for key in ours if key not in unknown and theirs.get(key) != ours[key]]
    if wrong:
        differences = (f"{key} is {ours[key]} here and {theirs.get(key)} there" for key in wrong)
        raise InputError(
            f"the adapter in {folder} was trained on another base: {'; '.join(differences)}. "
            + remedy
        )


def rounded_apart(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> bool:
    """Whether one of two bases alone is in float16.

    It rounds small weights, so that their fingerprints differ even if they are the same base.
    """
    types = ours["dtype"], theirs.get("dtype")
    return "float16" in types and types[0] != types[1]


def load_adapter(model: Any, folder: Path) -> CrossModalAdapter:
    """Builds the adapter in `folder`, refusing one that was trained on another base."""
    theirs, settings = read_adapter(folder, "base", "adapter")
    ours = model.base_identity()
    unknown = {"checkpoint", "dtype"}
    if None in (ours["language_fingerprint"], theirs.get("language_fingerprint", "")):
        unknown.add("language_fingerprint")  # one of the two language models is quantised
    if rounded_apart(ours, theirs):  # names and the bridge's fingerprint must do
        unknown |= {"vision_fingerprint", "language_fingerprint"}
    remedy = f"Load its base first: {theirs.get('checkpoint') or 'the run beside it'}."
    require_base(folder, ours, theirs, unknown, remedy)
    try:
        adapter = new_adapter(CromeConfig.from_dict(model.config.to_dict() | settings))
    except (TypeError, StrictDataclassError) as error:
        raise InputError(f"{folder} is not a task adapter: {ADAPTER_CONFIG}: {error!r}") from error
    load_strictly(adapter, load_tensors(folder / ADAPTER_FILE), adapter.state_dict(), folder)
    return adapter.to(bridge_device(model)).requires_grad_(False).eval()


def bridge_device(model: Any) -> torch.device:
    """The device of the projections, whose outputs an adapter takes."""
    for name in ("query_projection", "patch_projection"):
        if (projection := getattr(model, name, None)) is not None:
            return projection.weight.device
    raise AssertionError("a bridge has a branch")


def settings_of(adapter: CrossModalAdapter) -> dict[str, Any]:
    """An adapter's settings as fields of the config; a loaded one may differ from the base's."""
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
        revision: Revision of a repository on the hub.
        subfolder: Where in it the adapter is.

    Raises:
        InputError: There is no such folder or repository, or it holds no adapter.
    """
    expected = (
        f"expected a folder with {ADAPTER_CONFIG} and {ADAPTER_FILE}, as OUT/adapter of a run"
    )

    def check(folder: Path) -> None:
        if not (folder / subfolder / ADAPTER_CONFIG).is_file():
            raise InputError(f"{name} is not a task adapter; {expected}.")

    try:
        folder = locate(name, revision, check) / subfolder
    except InputError as error:
        if error.__cause__ is None:  # it is there, and the check refused it
            raise
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
        InputError: The file is missing or damaged, or lacks one of the fields.
    """
    try:
        saved = read_object(folder / ADAPTER_CONFIG)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{folder} is not a task adapter: {ADAPTER_CONFIG}: {error}. Copy the folder anew."
        ) from error
    if "peft_type" in saved:
        raise InputError(
            f"{folder} holds a {saved['peft_type']} adapter of PEFT; expected an adapter of crome. "
            "Merge it into its model (merge_and_unload) and train an adapter on that."
        )
    for field in fields:
        if not isinstance(saved.get(field), dict):
            raise InputError(
                f"{folder} is not a task adapter: {ADAPTER_CONFIG} has no object {field!r}. Copy "
                "the folder anew."
            )
    return [saved[field] for field in fields]


def require_bridge(checkpoint: str, folder: Path) -> None:
    """Refuses an adapter that was trained on another bridge, before anything large is loaded.

    The towers, which take their time, are compared when they are loaded.

    Args:
        checkpoint: Name of a CROME checkpoint.
        folder: The adapter.

    Raises:
        InputError: The adapter belongs to another base.
    """
    (base,) = read_adapter(folder, "base")
    ours = fingerprint(without_adapter(bridge_tensors(locate(checkpoint))))
    if (theirs := base.get("bridge_fingerprint")) != ours:
        raise InputError(
            f"the adapter in {folder} was trained on another base: bridge_fingerprint is {ours} in "
            f"{checkpoint} and {theirs} there. Give --checkpoint its base: "
            f"{base.get('checkpoint') or 'the run beside it'}."
        )


def adapter_settings(config: CromeConfig) -> dict[str, Any]:
    """The config fields that shape an adapter."""
    return {name: getattr(config, name) for name in config.to_dict() if name.startswith("adapter_")}
