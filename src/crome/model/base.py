"""Checkpoints that hold the adapter alone and name the base that the rest of the bridge is in.

A run that trains the adapter changes nothing else, so what it saves has a hundredth of the bridge's
size. `base.json` beside `model.safetensors` names the base and has its fingerprint.
"""

import os
from pathlib import Path

from torch import Tensor

from crome.errors import InputError
from crome.model.fingerprint import fingerprint
from crome.model.hub import locate
from crome.model.tensors import load_tensors
from crome.storage import read_object, write_json

BASE_FILE, BRIDGE_FILE = "base.json", "model.safetensors"
ADAPTER = "adapter."


def write_base(folder: Path, base: str, bridge: dict[str, Tensor]) -> None:
    """Writes down which base a folder's adapter belongs to.

    Args:
        folder: Of the checkpoint.
        base: Name of the base: a folder, a hub id, or a preset. Of a checkpoint that itself names
            a base, that one is named.
        bridge: Tensors of its bridge.
    """
    if Path(base).is_dir():
        base = os.fspath(Path(base).resolve())
        if (further := read_base(Path(base))) is not None:
            base = further["checkpoint"]
    own = fingerprint(without_adapter(bridge))
    write_json(folder / BASE_FILE, {"checkpoint": base, "bridge_fingerprint": own})


def read_base(folder: Path) -> dict[str, str] | None:
    """The base that a checkpoint names; None for one that holds its whole bridge.

    Raises:
        InputError: The file is damaged.
    """
    path = folder / BASE_FILE
    if not path.is_file():
        return None
    try:
        base = read_object(path)
        return {key: str(base[key]) for key in ("checkpoint", "bridge_fingerprint")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is damaged; copy the folder anew.") from error


def without_adapter(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a bridge that a run of the adapter alone does not change."""
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(ADAPTER)}


def bridge_tensors(folder: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint's whole bridge, its base's among them.

    Args:
        folder: Of the checkpoint.

    Raises:
        InputError: A file cannot be read, or the base is gone or is another now.
    """
    tensors = load_tensors(folder / BRIDGE_FILE)
    if (base := read_base(folder)) is None:
        return tensors
    try:
        rest = without_adapter(bridge_tensors(locate(base["checkpoint"])))
    except InputError as error:
        raise InputError(
            f"{folder} holds an adapter, and its base {base['checkpoint']} cannot be read: {error} "
            f"Put the base back, or name its place in {folder / BASE_FILE}."
        ) from error
    if fingerprint(rest) != base["bridge_fingerprint"]:
        raise InputError(
            f"{folder} holds an adapter of the base {base['checkpoint']}, which has other weights "
            "now; put back the base that it was trained on."
        )
    return rest | tensors
