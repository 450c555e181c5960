"""Task adapters that are loaded beside each other, and chosen row by row."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from crome.adapter import CrossModalAdapter
from crome.errors import InputError
from crome.model.adapter_files import locate_adapter
from crome.model.hub import upload_folder

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
