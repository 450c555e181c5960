"""What trains when: the three stages of CROME (arXiv 2408.06610, section 3.2 and Figure 3).

Structure decides, not name patterns: a stage is a list of the bridge's attributes.
"""

from typing import Any, Literal, get_args

from torch import nn

from crome.errors import InputError
from crome.model.quantised import keep_differentiable

Stage = Literal["pretrain", "instruct", "finetune"]

TOWERS = ("vision_model", "language_model")
"""Frozen always, never saved."""

BRIDGE = ("query_tokens", "qformer", "query_projection", "patch_projection", "adapter")
"""Everything else; it is the checkpoint."""

STAGES: dict[Stage, tuple[str, ...]] = {
    "pretrain": ("query_projection", "patch_projection", "adapter"),
    "instruct": BRIDGE,
    "finetune": ("adapter",),
}


def parts(model: Any) -> dict[str, nn.Module | nn.Parameter]:
    """The frozen and the trainable parts of a model, by name."""
    return dict(model.parts())


def count(part: nn.Module | nn.Parameter) -> int:
    """Number of parameters of a part."""
    if isinstance(part, nn.Parameter):
        return part.numel()
    return sum(p.numel() for p in part.parameters())


def apply_stage(model: Any, stage: Stage) -> None:
    """Makes exactly the parts of a stage trainable and freezes all else.

    Raises:
        InputError: An unknown stage, or one that would train nothing in this configuration.
    """
    if stage not in STAGES:
        raise InputError(f"stage is {stage!r}; expected one of {', '.join(get_args(Stage))}.")
    if stage not in model.stages:
        raise InputError(
            f"stage {stage!r} trains a bridge, and this model has none; expected "
            f"{', '.join(model.stages)}."
        )
    present = parts(model)
    trained = [name for name in STAGES[stage] if name in present]
    if not trained:
        raise InputError(
            f"stage {stage!r} trains {', '.join(STAGES[stage])}; this configuration has none of "
            "it; set adapter_bottleneck, or use stage 'instruct'."
        )
    model.requires_grad_(False)
    keep_differentiable(model.language_model)
    for name in trained:
        present[name].requires_grad_(True)
    model.train(model.training)


def stage_count(model: Any, stage: Stage) -> int:
    """Number of parameters a stage trains."""
    present = parts(model)
    return sum(count(present[name]) for name in STAGES[stage] if name in present)
