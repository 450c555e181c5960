"""What a run starts from: a checkpoint, an adapter on it, or an untrained bridge."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crome.checkpoints.loading import load, new_bridge, new_tiny
from crome.errors import InputError
from crome.hints import meant
from crome.model.configuration import CromeConfig
from crome.model.hub import whole_name

TINY = "crome-tiny"


@dataclass(frozen=True)
class Start:
    """What a run starts from; see `train`.

    Raises:
        InputError: Settings contradict each other, or would be left out.
    """

    checkpoint: str
    adapter: Path | None
    fresh: bool
    vision_model: str | None
    language_model: str | None
    settings: dict[str, Any]

    def __post_init__(self) -> None:
        if bool(self.vision_model) != bool(self.language_model):
            raise InputError("--vision_model and --language_model go together; give both or none.")
        towers = bool(self.vision_model)
        if self.fresh and towers:
            raise InputError("--fresh starts crome-tiny; leave it out where two towers are named.")
        new = "--fresh" if self.fresh else "two towers"
        if self.new and self.checkpoint != TINY:
            raise InputError(f"{new} starts anew, and --checkpoint does not; give one of them.")
        if self.new and self.adapter is not None:
            raise InputError(f"{new} starts anew; an adapter belongs to a checkpoint.")
        if self.fresh and self.settings:
            raise InputError(
                "--settings belongs to a new model of two towers, and --fresh names none."
            )
        known = list(CromeConfig.__dataclass_fields__)
        if wrong := [name for name in self.settings if towers and name not in known]:
            raise InputError(
                f"settings: the model's configuration has no {wrong[0]}{meant(wrong[0], known)}."
            )

    @property
    def new(self) -> bool:
        """Whether the bridge is untrained."""
        return self.fresh or bool(self.vision_model)

    def load(self, **held: Any) -> tuple[Any, Any]:
        """The model and its processor; see `crome.checkpoints.loading.load`."""
        if self.vision_model and self.language_model:
            return new_bridge(
                whole_name(self.vision_model),
                whole_name(self.language_model),
                **held,
                **self.settings,
            )
        if self.fresh:
            return new_tiny(**held)
        model, processor = load(self.checkpoint, **held, **self.settings)
        if self.adapter is not None:
            take_over(model, self.adapter)
        return model, processor


def bottleneck(weights: dict[str, Any]) -> int:
    """Of an adapter, from its weights."""
    return next(len(weight) for name, weight in weights.items() if name.startswith("down."))


def take_over(model: Any, folder: Path) -> None:
    """Gives the adapter that trains the weights of a task adapter.

    Raises:
        InputError: It belongs to another base, or has another shape.
    """
    model.load_adapter(folder, name="start")
    weights = model.get_adapter("start").state_dict()
    model.delete_adapter("start")
    model.set_adapter(None)
    own = model.get_adapter(None)
    shapes = [{k: tuple(v.shape) for k, v in one.items()} for one in (weights, own.state_dict())]
    if shapes[0] != shapes[1]:
        raise InputError(
            f"the adapter in {folder} has other sizes than the one that would train; start from a "
            "checkpoint of its bottleneck and branches, or on a vision-language model give those "
            f"of its adapter_config.json, as --settings '{{bottleneck: {bottleneck(weights)}}}'."
        )
    own.load_state_dict(weights)
