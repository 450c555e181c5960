"""What an ablation compares: the rows of a grid, and how a base is made ready for one of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from crome.errors import InputError, positive
from crome.model.configuration import new_adapter
from crome.model.modeling import CromeForConditionalGeneration
from crome.studies.tuning import Way


@dataclass(frozen=True)
class Variant:
    """One row of the table.

    Attributes:
        train: What learns the task: `adapter` alone, the whole `bridge`, the `projections` with
            the adapter where there is one, `lora` of about the adapter's size on the language
            model's attention, `lora-all` of rank 16 on all its linear layers, `prompt` of 100 free
            vectors, `prompt-long` of as many as have the adapter's size, or `full`, the language
            model itself.
        adapter: Whether there is one; without it the model is BLIVA.
        gated: Whether the adapter has its gate.
        shared_up: Whether both branches share the up-projection.
        bottleneck: Inner width m.
        pretrain: Whether projections and adapter learn a few rows first.
        data: Factor on the number of steps, and so on the rows that are seen.
        rows: Distinct rows to learn from, repeated to fill the steps; None for all.
    """

    train: Way = "bridge"
    adapter: bool = True
    gated: bool = True
    shared_up: bool = True
    bottleneck: int = 256
    pretrain: bool = True
    data: float = 1
    rows: int | None = None

    def __post_init__(self) -> None:
        positive(bottleneck=self.bottleneck, data=self.data, rows=self.rows)
        if self.train == "adapter" and not self.adapter:
            raise InputError("a variant without adapter cannot train the adapter alone.")


# The rows of Table 5 that train the bridge, then those that tune a task, then Table 7, and last
# what people do instead.
PAPER: dict[str, Variant] = {
    "no adapter (BLIVA)": Variant(adapter=False),
    "ungated": Variant(gated=False),
    "gated": Variant(),
    "gated without pretraining": Variant(pretrain=False),
    "gated with data ×4": Variant(data=4),
    "adapter alone": Variant("adapter"),
    "adapter alone ungated": Variant("adapter", gated=False),
    "adapter alone with two up-projections": Variant("adapter", shared_up=False),
    "adapter alone with data ×4": Variant("adapter", data=4),
    "adapter alone m = 64": Variant("adapter", bottleneck=64),
    "adapter alone m = 128": Variant("adapter", bottleneck=128),
    "adapter alone m = 512": Variant("adapter", bottleneck=512),
    "projections alone": Variant("projections", adapter=False),
    "LoRA": Variant("lora", adapter=False),
    "LoRA r = 16 on all layers": Variant("lora-all", adapter=False),
    "prompt tuning, 100 tokens": Variant("prompt", adapter=False),
    "prompt tuning, 1,280 tokens": Variant("prompt-long", adapter=False),
}

WAYS: dict[str, Variant] = {
    "adapter alone": Variant("adapter", pretrain=False),
    "LoRA": Variant("lora", adapter=False, pretrain=False),
    "whole bridge": Variant("bridge", pretrain=False),
}
"""The variants of the grid `rows`."""

STEPS_OF: dict[int, float] = {25: 0.5, 50: 0.5, 100: 0.5, 400: 1, 1600: 2, 6400: 4}
"""Rows to learn from → how many times the steps: few rows are seen often, many hardly twice."""

Grid = Literal["paper", "rows"]


def grid_of(name: Grid) -> dict[str, Variant]:
    """The variants of a grid by name."""
    if name == "paper":
        return PAPER
    return {
        f"{way}, {rows} rows": Variant(**(vars(variant) | {"rows": rows, "data": times}))
        for rows, times in STEPS_OF.items()
        for way, variant in WAYS.items()
    }


def chosen(variants: Mapping[str, Variant], only: Sequence[str] | None) -> dict[str, Variant]:
    """The variants of those names, all by default.

    Raises:
        InputError: There is none of a name.
    """
    if unknown := [name for name in only or () if name not in variants]:
        raise InputError(f"no variant {unknown[0]!r}; there are {', '.join(variants)}.")
    return {name: v for name, v in variants.items() if only is None or name in only}


def dress(model: CromeForConditionalGeneration, variant: Variant, seed: int) -> None:
    """Gives a base a fresh adapter of the variant's kind, or none."""
    config = model.config
    config.adapter_bottleneck = variant.bottleneck if variant.adapter else None
    config.adapter_gated, config.adapter_shared_up = variant.gated, variant.shared_up
    if hasattr(model, "adapter"):
        del model.adapter
    if variant.adapter:
        torch.manual_seed(seed)
        model.adapter = new_adapter(config).to(model.device)


def slug(name: str) -> str:
    """A file name for a variant."""
    return "".join(c if c.isalnum() else "-" for c in name.replace("×", "x")).strip("-")
