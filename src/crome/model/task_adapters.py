"""Task adapters: on disk with the base they were trained on, and loaded beside each other."""

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn

from crome.adapter import SHARED, CrossModalAdapter
from crome.errors import InputError
from crome.model.configuration import CromeConfig, new_adapter
from crome.model.hub import locate, upload_folder
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


def load_adapter(model: Any, folder: Path) -> CrossModalAdapter:
    """Builds the adapter in `folder`, refusing one that was trained on another base."""
    theirs, settings = read_adapter(folder, "base", "adapter")
    ours = model.base_identity()
    unknown = {"checkpoint"}
    if None in (ours["language_fingerprint"], theirs.get("language_fingerprint", "")):
        unknown.add("language_fingerprint")  # one of the two language models is quantised
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


PREFIX = "name:"


class NamedAdapters(nn.ModuleDict):
    """Adapters by name, which may have dots or be the name of one of a module's own attributes."""

    @staticmethod
    def _key(name: str) -> str:
        return PREFIX + name.replace("%", "%25").replace(".", "%2E")

    @staticmethod
    def _name(key: str) -> str:
        return key.removeprefix(PREFIX).replace("%2E", ".").replace("%25", "%")

    def __getitem__(self, name: str) -> nn.Module:
        return super().__getitem__(self._key(name))

    def __setitem__(self, name: str, module: nn.Module) -> None:
        super().__setitem__(self._key(name), module)

    def __delitem__(self, name: str) -> None:
        super().__delitem__(self._key(name))

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self._key(name) in self._modules

    def __iter__(self) -> Iterator[str]:
        return map(self._name, self._modules)

    def pop(self, name: str) -> nn.Module:
        """Removes an adapter and returns it."""
        module = self[name]
        del self[name]
        return module

    def keys(self) -> Any:
        """The names, in the order in which they came."""
        return dict.fromkeys(self).keys()

    def items(self) -> Any:
        """Names and adapters."""
        return {name: self[name] for name in self}.items()


class TaskAdapters:
    """Methods of a model with an `adapter` of its own and further ones in `task_adapters`.

    The model creates `task_adapters`, and defines how an adapter is written and read.

    Attributes:
        task_adapters: Loaded adapters by name.
        active_adapter: The one that rows use by default; None for the model's own.
        adapter_enabled: False inside a block of `disable_adapter`.
    """

    task_adapters: NamedAdapters
    active_adapter: str | None = None
    adapter_enabled: bool = True

    def write_adapter(
        self, folder: Path, adapter: CrossModalAdapter, metadata: dict[str, Any]
    ) -> None:
        """Writes an adapter and what it belongs to into a folder."""
        raise NotImplementedError

    def read_adapter(self, folder: Path) -> CrossModalAdapter:
        """Builds the adapter in a folder, refusing one of another base."""
        raise NotImplementedError

    def save_adapter(
        self,
        path: str | os.PathLike[str],
        *,
        push_to_hub: bool | str = False,
        **metadata: Any,
    ) -> None:
        """Writes the active adapter: `adapter_model.safetensors` and `adapter_config.json`.

        Args:
            path: Folder, made if absent.
            push_to_hub: Whether to upload the folder too: True for a repository of the folder's
                name, or the repository's id.
            metadata: Anything worth keeping beside it (training data, metrics); must be JSON.

        Raises:
            InputError: The model has no adapter.
        """
        adapter = self.get_adapter(self.active_adapter)
        if adapter is None:
            raise InputError(
                "this configuration has no adapter to save (adapter_bottleneck is None)."
            )
        self.write_adapter(Path(path), adapter, metadata)
        if push_to_hub:
            upload_folder(Path(path), push_to_hub)

    def load_adapter(
        self,
        path: str | os.PathLike[str],
        name: str = "task",
        *,
        revision: str | None = None,
        subfolder: str = "",
    ) -> None:
        """Loads a task adapter beside the base's own and makes it the active one.

        Args:
            path: A folder or a hub id.
            name: Any text, by which rows and `set_adapter` choose the adapter.
            revision: Revision of a repository on the hub.
            subfolder: Where in the folder or repository the adapter is.

        Raises:
            InputError: The adapter belongs to another base, or its file is damaged.
        """
        folder = locate_adapter(path, revision, subfolder)
        self.task_adapters[name] = self.read_adapter(folder)
        self.set_adapter(name)

    def set_adapter(self, name: str | None) -> None:
        """Chooses the adapter rows use by default; None is the base's own."""
        self.require_adapter(name)
        self.active_adapter = name

    def delete_adapter(self, name: str) -> None:
        """Unloads a task adapter; where it was the active one, the base's own is.

        Raises:
            InputError: There is none of that name.
        """
        self.require_adapter(name)
        del self.task_adapters[name]
        if self.active_adapter == name:
            self.active_adapter = None

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """Uses the model without any adapter, whatever rows ask for, while the block lasts.

        This holds for all threads that use the model. Where several do, name an adapter for each
        row instead.
        """
        before, self.adapter_enabled = self.adapter_enabled, False
        try:
            yield
        finally:
            self.adapter_enabled = before

    def get_adapter(self, name: str | None) -> CrossModalAdapter | None:
        """The adapter module of that name, the base's own for None; none while disabled.

        Raises:
            InputError: There is none of that name.
        """
        self.require_adapter(name)
        if not self.adapter_enabled:
            return None
        found: Any = getattr(self, "adapter", None) if name is None else self.task_adapters[name]
        return found

    def require_adapter(self, name: str | None) -> None:
        """Refuses a name that no adapter has.

        Raises:
            InputError: There is none of that name; the message lists those there are.
        """
        if name is not None and name not in self.task_adapters:
            known = ", ".join(self.task_adapters) or "none"
            raise InputError(f"no adapter named {name!r} is loaded; loaded: {known}.")

    def names_of_rows(
        self, adapter_names: Sequence[str | None] | None, rows: int
    ) -> list[str | None]:
        """The adapter of each row: as asked for, else the active one.

        Raises:
            InputError: There are more or fewer names than rows.
        """
        if adapter_names is None:
            return [self.active_adapter] * rows
        if len(adapter_names) != rows:
            raise InputError(f"{len(adapter_names)} adapter names for {rows} rows; give one a row.")
        for name in set(adapter_names):
            self.require_adapter(name)
        return list(adapter_names)

    def adapt_by_name(
        self, tokens: dict[str, Tensor], names: Sequence[str | None]
    ) -> dict[str, Tensor]:
        """Each row's tokens through the adapter of its name.

        Rows are sorted by the name of their adapter, and back: the rows of an adapter are then a
        slice, and any number of adapters costs one indexing each way.

        Args:
            tokens: Branch → (rows, ·, d).
            names: The name for each row.
        """
        if not names:  # of rows without pictures
            return tokens
        rows_of: dict[str | None, list[int]] = {}
        for row, name in enumerate(names):
            rows_of.setdefault(name, []).append(row)
        order = torch.tensor(list(chain.from_iterable(rows_of.values())))
        order = order.to(next(iter(tokens.values())).device)
        counts = [len(rows) for rows in rows_of.values()]
        slices = zip(*(x[order].split(counts) for x in tokens.values()), strict=True)
        parts: list[dict[str, Tensor]] = []
        for name, of_name in zip(rows_of, slices, strict=True):
            adapter, own = self.get_adapter(name), dict(zip(tokens, of_name, strict=True))
            parts.append(own if adapter is None else adapter(own))
        back = order.argsort()
        return {branch: torch.cat([part[branch] for part in parts])[back] for branch in tokens}
