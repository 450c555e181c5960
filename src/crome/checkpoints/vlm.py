"""A vision-language model of transformers by its name, with the adapter attached to it."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest.mock import patch

import transformers
from transformers import AutoModelForImageTextToText, AutoProcessor, ProcessorMixin
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
from transformers.models.auto.video_processing_auto import AutoVideoProcessor
from transformers.utils.hub import cached_file

from crome.attached import AttachedModel, AttachedProcessor, attach
from crome.attached.families import THINKERS, check_kind
from crome.attached.files import KIND
from crome.errors import InputError
from crome.model.adapter_files import read_adapter
from crome.model.hub import PACKAGED, named, reach_hub
from crome.model.pretrained import ADAPTER_CONFIG
from crome.model.tensors import require_sound
from crome.storage import read_object
from crome.verbosity import no_bars

SETTINGS = tuple(
    name for name, parameter in inspect.signature(attach).parameters.items()
    if parameter.kind is parameter.KEYWORD_ONLY
)  # fmt: skip
"""Keywords of `crome.attach`."""


def is_vlm(name: str) -> bool:
    """Whether a name stands for a vision-language model of transformers.

    Args:
        name: A folder, a hub id, or a preset. Of a hub id only `config.json` is fetched.
    """
    kind = str(config_of(name).get("model_type"))
    return kind in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES or kind in THINKERS


def refuse_vlm(name: str, verb: str) -> None:
    """Refuses a vision-language model where a verb takes the bridge of a CROME checkpoint apart.

    Raises:
        InputError: The name stands for one, or for an adapter of one.
    """
    if is_vlm(name) or (Path(name).is_dir() and base_of(Path(name))):
        raise InputError(
            f"{verb} takes the bridge of a CROME checkpoint apart, and {name} is a vision-language "
            "model of transformers, which has none; give another --checkpoint."
        )


def config_of(name: str) -> dict[str, Any]:
    """The `config.json` behind a name; empty where there is none that can be read."""
    try:
        if Path(name).is_dir():
            path: str | None = str(Path(name) / "config.json")
        elif (PACKAGED / name).is_dir():
            return {}  # a base of this package
        else:
            reach_hub()
            path = cached_file(name, "config.json", _raise_exceptions_for_missing_entries=False)
        return read_object(Path(path)) if path else {}
    except (OSError, ValueError):
        return {}  # loading it will say what is wrong


def base_of(folder: Path) -> dict[str, Any] | None:
    """The base that a folder's adapter of a vision-language model names; None for other folders.

    Raises:
        InputError: The folder holds an adapter of another library.
    """
    if not (folder / ADAPTER_CONFIG).is_file() or (folder / "config.json").is_file():
        return None
    try:
        saved = read_object(folder / ADAPTER_CONFIG)
    except (OSError, ValueError):
        return None  # loading it will say what is wrong
    if "peft_type" in saved:
        raise InputError(
            f"{folder} holds a {saved['peft_type']} adapter of PEFT; expected a checkpoint, or an "
            "adapter of crome. Merge it into its model (merge_and_unload) and name that."
        )
    base = saved.get("base")
    return base if isinstance(base, dict) and base.get("kind") == KIND else None


def base_name(folder: Path, base: dict[str, Any]) -> str:
    """Where the base of an adapter is.

    Raises:
        InputError: The adapter does not say.
    """
    name = base.get("checkpoint")
    if not isinstance(name, str) or not name:
        raise InputError(
            f"{folder} holds an adapter that does not say where its base is; give --checkpoint the "
            "base, and --adapter this folder."
        )
    return name


def load_vlm(
    name: str, keywords: dict[str, Any], **settings: Any
) -> tuple[AttachedModel, AttachedProcessor]:
    """Loads a vision-language model and attaches the adapter.

    Args:
        name: A folder or a hub id of the model, or the folder of an adapter trained on one, whose
            base is then loaded with it.
        keywords: Keywords of the model's `from_pretrained` (`dtype`, `quantization_config`, …).
        settings: Keywords of `crome.attach` (`bottleneck`, `branches`, …).

    Raises:
        InputError: The model cannot be loaded, its family is not supported, or a setting is
            unknown.
    """
    base = base_of(Path(name)) if Path(name).is_dir() else None
    if base is not None:
        (saved,) = read_adapter(Path(name), "adapter")
        prompt = (base.get("prompts") or {}).get("system_prompt")
        model, processor = load_vlm(
            base_name(Path(name), base), keywords, **{"system_prompt": prompt, **saved, **settings}
        )
        model.load_trained(Path(name))
        return model, processor
    config = config_of(name)
    kind = str(config.get("model_type"))
    check_kind(kind)
    if unknown := settings.keys() - SETTINGS:
        raise InputError(
            f"{', '.join(sorted(unknown))} is no setting of an attached adapter; these are: "
            f"{', '.join(SETTINGS)}."
        )
    if "quantization_config" in config:  # quantised when it was saved, with parts in its own type
        keywords = {**keywords, "dtype": "auto"}
    with named("vision-language model", name), no_bars():
        vlm, found = class_of(kind).from_pretrained(
            name, output_loading_info=True, trust_remote_code=False, **keywords
        )
        require_sound(vlm, found["missing_keys"])
    return attach(vlm, load_processor(name), **settings)


def class_of(kind: str) -> Any:
    """What loads a model of a type: of one that also talks, the part that answers."""
    thinker = THINKERS.get(kind)
    return AutoModelForImageTextToText if thinker is None else getattr(transformers, thinker)


def load_processor(name: str) -> Any:
    """A model's own processor, without its part for videos where torchvision is absent."""
    videos = nullcontext() if find_spec("torchvision") is not None else without_videos()
    with named("processor of", name), videos:
        return AutoProcessor.from_pretrained(name, trust_remote_code=False)


@contextmanager
def without_videos() -> Iterator[None]:
    """Makes processors whose `video_processor` is None.

    transformers reads pictures with Pillow, but its processors of videos need torchvision, and a
    processor cannot be loaded without all of its parts. Most models read videos, and most people
    ask about pictures.
    """
    check = ProcessorMixin.check_argument_for_proper_class

    def check_if_there(self: Any, name: str, argument: Any) -> Any:
        absent = name == "video_processor" and argument is None
        return None if absent else check(self, name, argument)

    with (
        patch.object(AutoVideoProcessor, "from_pretrained", lambda *_, **__: None),
        patch.object(ProcessorMixin, "check_argument_for_proper_class", check_if_there),
    ):
        yield
