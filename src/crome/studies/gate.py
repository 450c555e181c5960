"""`crome gate`: what a trained adapter's gate and its shared up-projection do.

Measured on the adapter while it answers held-out questions: how far its gates are open, by branch
and by token; how much it changes each token; which of the m directions of `W_u` each branch uses;
and what is lost when it leaves one branch alone.

Shapes: B questions, I pictures, N tokens of a branch, m inner width, d width of the language model.
"""

import json
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from rich.table import Table
from torch import Tensor

from crome.adapter import SHARED, CrossModalAdapter
from crome.checkpoints.devices import device_named
from crome.checkpoints.loading import load
from crome.checkpoints.vlm import refuse_vlm
from crome.data.packaged import TASKS, by_picture
from crome.errors import InputError, positive
from crome.evaluation.predict import batches
from crome.features.verbs import enable, prepare
from crome.intervals import mean_interval
from crome.model.batch import PromptBatch
from crome.model.language import embed_words
from crome.rows import Row
from crome.storage import write_json
from crome.studies.differences import difference
from crome.studies.gate_plot import gate_plot
from crome.studies.runs import exact_matches
from crome.training.progress import console

NAME = "task"


class BranchSums(NamedTuple):
    """Sums over the tokens of one branch.

    Attributes:
        open: (N,) share of gates above a half, the sigmoid's, by token.
        gate: (N,) mean of SiLU(x W_g).
        before: (N,) root mean square of a token's numbers.
        after: (N,) root mean square of a token's numbers behind the adapter.
        change: (N,) length of what the adapter adds, relative to the token's.
        energy: (m,) mean square of what goes through each direction of `W_u`.
    """

    open: Tensor
    gate: Tensor
    before: Tensor
    after: Tensor
    change: Tensor
    energy: Tensor


def gate(
    adapter: Path,
    out: Path = Path("crome-gate"),
    checkpoint: str = "crome-tiny",
    task: Literal["easy-vqa", "textile"] = "easy-vqa",
    test_questions: int = 600,
    dtype: Literal["bfloat16", "float32"] = "bfloat16",
    device: str = "auto",
) -> None:
    """Look into a trained adapter: its gates, its shared up-projection, and each branch alone.

    Args:
        adapter: Folder of a trained adapter, such as `crome quickstart` writes.
        out: Folder for `gate.json` and `gate.png`.
        checkpoint: The base it belongs to.
        task: The task whose held-out questions are answered.
        test_questions: Least number of questions; pictures are taken with all their questions.
        dtype: Type of the frozen towers.
        device: cpu, cuda, cuda:N or mps; by default a GPU of CUDA if there is one.
    """
    positive(test_questions=test_questions)
    refuse_vlm(checkpoint, "crome gate")
    device_named(device)
    tested = by_picture(TASKS[task]("test"), test_questions, seed=0)
    model, processor = load(checkpoint, dtype, device=device)
    model.load_adapter(adapter, name=NAME)
    model.set_adapter(NAME)
    whole = model.get_adapter(NAME)
    if whole is None or not whole.gate or SHARED not in whole.up:
        raise InputError(f"{adapter} has no gate or no shared up-projection to look into.")
    processor = enable(model, processor)
    branches = look(model, processor, whole, tested)
    scale = word_scale(model)
    right = {name: scores(model, processor, whole, tested, kept)
             for name, kept in kept_branches(whole).items()}  # fmt: skip
    pictures = [str(row.images) for row in tested]
    both = right["both branches"]
    found: dict[str, Any] = {
        "adapter": str(adapter), "checkpoint": checkpoint, "task": task,
        "questions": len(tested), "pictures": len(set(pictures)), "word_scale": scale,
        "overlap": overlap(branches),
        "branches": {name: {k: v.tolist() for k, v in sums._asdict().items()}
                     for name, sums in branches.items()},
        "accuracy": {name: {"value": float(np.mean(values)),
                            "interval": mean_interval(values, pictures),
                            "loss": difference([values], [both], pictures)._asdict()}
                     for name, values in right.items()},
    }  # fmt: skip
    write_json(out / "gate.json", found)
    gate_plot(out / "gate.png", found)
    console.print(table(found))
    print(json.dumps({name: value["value"] for name, value in found["accuracy"].items()}))


@torch.inference_mode()
def look(
    model: Any, processor: Any, adapter: CrossModalAdapter, rows: Sequence[Row]
) -> dict[str, BranchSums]:
    """Means over the tokens that the adapter is given for rows, by branch and place."""
    prepare(model, processor, rows)
    seen: dict[str, list[BranchSums]] = {branch: [] for branch in adapter.down}
    weights: dict[str, list[int]] = {branch: [] for branch in adapter.down}

    def keep(_: Any, given: tuple[dict[str, Tensor]]) -> None:
        for branch, tokens in given[0].items():
            seen[branch].append(sums_of(adapter, branch, tokens))
            weights[branch].append(len(tokens))

    hook = adapter.register_forward_pre_hook(keep)
    for batch in batches(rows, 64):
        model.prompts(PromptBatch(**processor.encode(batch)))
    hook.remove()
    return {branch: joined(found, weights[branch]) for branch, found in seen.items()}


def sums_of(adapter: CrossModalAdapter, branch: str, x: Tensor) -> BranchSums:
    """The sums for tokens (B, N, d) of one branch."""
    score = adapter.gate[branch](x)
    activated = adapter.activation(score)
    z = activated * adapter.down[branch](x)
    up: Any = adapter.up[SHARED]
    added = up(z)
    lengths = up.weight.norm(dim=0)  # of each direction
    return BranchSums(
        (score > 0).float().mean((0, 2)),
        activated.mean((0, 2)),
        x.pow(2).mean((0, 2)).sqrt(),
        (x + added).pow(2).mean((0, 2)).sqrt(),
        (added.norm(dim=-1) / x.norm(dim=-1)).mean(0),
        (z * lengths).pow(2).mean((0, 1)),
    )


def joined(found: Sequence[BranchSums], weights: Sequence[int]) -> BranchSums:
    """The mean over batches of different sizes."""
    share = torch.tensor(weights, dtype=torch.float) / sum(weights)
    return BranchSums(*(
        torch.einsum("b,bn->n", share, torch.stack(values).float())
        for values in zip(*found, strict=True)
    ))  # fmt: skip


def overlap(branches: dict[str, BranchSums]) -> dict[str, Any]:
    """Whether branches use the same directions of `W_u`.

    Returns:
        "cosine" of the two vectors of energies, where 1 is the same use, and "half", how many
        directions carry half of each branch's energy.
    """
    energies = {name: sums.energy for name, sums in branches.items()}
    first, *rest = energies.values()
    cosine = torch.nn.functional.cosine_similarity(first, rest[0], dim=0).item() if rest else None
    half = {
        name: int((energy.sort(descending=True).values.cumsum(0) < energy.sum() / 2).sum()) + 1
        for name, energy in energies.items()
    }
    return {"cosine": cosine, "half": half}


def word_scale(model: Any) -> float:
    """Root mean square of the language model's word embeddings."""
    ids = torch.arange(min(4096, model.config.text_config.vocab_size))
    return float(embed_words(model.language_model, ids).float().pow(2).mean().sqrt())


def kept_branches(adapter: CrossModalAdapter) -> dict[str, tuple[str, ...]]:
    """Ways to answer → the branches that the adapter then works on."""
    branches = tuple(adapter.down)
    alone = {f"{branch} alone": (branch,) for branch in branches}
    return {"both branches": branches} | alone | {"neither": ()}


def scores(
    model: Any, processor: Any, whole: CrossModalAdapter, rows: Sequence[Row], kept: Sequence[str]
) -> list[float]:
    """Exact match with the adapter at work on some branches alone."""
    model.task_adapters[NAME] = only_on(whole, kept)
    right = exact_matches(model, processor, rows)
    model.task_adapters[NAME] = whole
    return right


def only_on(adapter: CrossModalAdapter, kept: Sequence[str]) -> CrossModalAdapter:
    """A copy that is the identity on the branches that are not kept."""
    copy = deepcopy(adapter)
    for branch, down in copy.down.items():
        if branch not in kept:
            for weight in down.parameters():
                torch.nn.init.zeros_(weight)
    return copy


def table(found: dict[str, Any]) -> Table:
    """Accuracy by branch, for people."""
    made = Table(title="The adapter at work on …", title_justify="left")
    for name in ("", "accuracy", "against both"):
        made.add_column(name, justify="right" if name else "left")
    for name, value in found["accuracy"].items():
        low, high = value["loss"]["interval"]
        made.add_row(name, f"{value['value']:.1%}", f"{100 * low:+.1f} to {100 * high:+.1f}")
    return made
