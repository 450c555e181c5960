"""Adapters beside each other on one model, by name: what both models have in common."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from crome.adapter import CrossModalAdapter
from crome.errors import InputError


class TaskAdapters:
    """For a model with an `adapter` of its own and further ones in `task_adapters`.

    Attributes:
        task_adapters: Loaded adapters by name.
        active_adapter: The one that rows use by default; None for the model's own.
        adapter_enabled: False inside a block of `disable_adapter`.
    """

    task_adapters: nn.ModuleDict
    active_adapter: str | None = None
    adapter_enabled: bool = True

    def set_adapter(self, name: str | None) -> None:
        """Chooses the adapter rows use by default; None is the model's own.

        Raises:
            InputError: None of that name is loaded.
        """
        self._check_adapter(name)
        self.active_adapter = name

    def get_adapter(self, name: str | None) -> CrossModalAdapter | None:
        """The adapter module of a name, the model's own for None; none while disabled.

        Raises:
            InputError: None of that name is loaded.
        """
        self._check_adapter(name)
        if not self.adapter_enabled:
            return None
        found: Any = getattr(self, "adapter", None) if name is None else self.task_adapters[name]
        return found

    def delete_adapter(self, name: str) -> None:
        """Unloads an adapter; where it was the active one, the model's own is.

        Raises:
            InputError: None of that name is loaded.
        """
        self._check_adapter(name)
        del self.task_adapters[name]
        if self.active_adapter == name:
            self.active_adapter = None

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """The model without any adapter, as long as the block lasts."""
        before, self.adapter_enabled = self.adapter_enabled, False
        try:
            yield
        finally:
            self.adapter_enabled = before

    def _check_adapter(self, name: str | None) -> None:
        if name is not None and name not in self.task_adapters:
            known = ", ".join(self.task_adapters) or "none"
            raise InputError(f"no adapter named {name!r} is loaded; loaded: {known}.")
