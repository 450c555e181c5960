"""A base checkpoint on disk: the bridge and its configuration, never the towers.

A run that trains the adapter alone changes nothing else, so its checkpoint holds the adapter and
names the base that the rest is in: `base.json` beside `model.safetensors` has the base's
fingerprint.
"""

import os
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Self

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from transformers import PreTrainedModel

from crome.errors import InputError
from crome.model.configuration import CromeConfig
from crome.model.hub import locate, named, tower_path, upload_folder
from crome.model.language import load_language_model
from crome.model.stages import TOWERS
from crome.model.tensors import fingerprint, load_strictly, load_tensors, save_tensors
from crome.model.vision import load_vision_model
from crome.storage import read_object, write_json
from crome.verbosity import no_bars, quiet_transformers
from crome.version import __version__

BASE_FILE, BRIDGE_FILE = "base.json", "model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER = "adapter."
"""How the names of an adapter's tensors begin."""
IDLE_IN_LOADING = {
    *("adapter_kwargs", "low_cpu_mem_usage", "use_safetensors", "weights_only"),
    *("code_revision", "use_fast", "backend"),
}
"""Keywords of transformers that a loader of safetensors may ignore."""
FOR_LANGUAGE = {
    *("attn_implementation", "device_map", "quantization_config", "max_memory"),
    *("offload_folder", "offload_buffers", "offload_state_dict", "experts_implementation"),
}
"""Keywords of transformers that are meant for the largest part, the language model."""
FOR_THE_HUB = {"token", "cache_dir", "force_download", "local_files_only"}
"""Keywords that say how files of the checkpoint and of both towers are fetched."""


def write_base(folder: Path, base: str, bridge: dict[str, Tensor]) -> None:
    """Writes down which base a checkpoint's adapter belongs to.

    Args:
        folder: The checkpoint.
        base: Name of the base: a folder, a hub id, or a preset. Where that is a checkpoint which
            itself names a base, the latter is written.
        bridge: Tensors of the base's bridge.
    """
    if Path(base).is_dir():
        base = os.fspath(Path(base).resolve())
        if (further := read_base(Path(base))) is not None:
            base = further["checkpoint"]
    found = fingerprint(without_adapter(bridge))
    write_json(folder / BASE_FILE, {"checkpoint": base, "bridge_fingerprint": found})


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
    """The tensors of a bridge that training the adapter alone does not change."""
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(ADAPTER)}


def bridge_tensors(folder: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint's whole bridge, including those that only its base has.

    Args:
        folder: The checkpoint.

    Raises:
        InputError: A file cannot be read, or the base is gone or has changed.
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


@dataclass(frozen=True)
class Loading:
    """The keywords of a `from_pretrained`, sorted by the part that they concern.

    Attributes:
        dtype: Type of the frozen towers.
        revision: Revision of the checkpoint on the hub.
        fields: Fields of the configuration to change.
        vision: Keywords of the encoder's `from_pretrained`.
        language: Keywords of the language model's `from_pretrained`.
        base: A whole configuration that replaces the folder's.
        hub: Keywords that say how files are fetched from the hub.
    """

    dtype: torch.dtype | str
    revision: str | None
    fields: dict[str, Any]
    vision: dict[str, Any]
    language: dict[str, Any]
    base: dict[str, Any] | None
    hub: dict[str, Any]

    @classmethod
    def sort(
        cls,
        dtype: torch.dtype | str,
        vision: dict[str, Any] | None,
        language: dict[str, Any] | None,
        keywords: dict[str, Any],
    ) -> Self:
        """Sorts keywords.

        Raises:
            InputError: A keyword is unknown, or cannot be honoured.
        """
        left = {k: v for k, v in keywords.items() if not k.startswith("_")}
        for name in IDLE_IN_LOADING & left.keys():
            del left[name]
        if (older := left.pop("torch_dtype", None)) is not None and dtype == "auto":
            dtype = older  # the name in older versions of transformers
        revision, base = left.pop("revision", None), left.pop("config", None)
        hub = {name: left.pop(name) for name in FOR_THE_HUB & left.keys()}
        hub = {name: value for name, value in hub.items() if value}
        for_vision, for_language = dict(hub), dict(hub)
        for name in FOR_LANGUAGE & left.keys():
            if (value := left.pop(name)) is not None:
                for_language[name] = value
        if isinstance(attention := for_language.get("attn_implementation"), dict):
            for part, key in ((for_language, "text_config"), (for_vision, "vision_config")):
                part["attn_implementation"] = attention.get(key, attention.get(""))
        if "trust_remote_code" in left:
            trusted = left.pop("trust_remote_code")
            for_vision["trust_remote_code"] = for_language["trust_remote_code"] = trusted
        require_fields(left)
        for_vision |= vision or {}
        for_language |= language or {}
        return cls(dtype, revision, left, for_vision, for_language, whole_config(base), hub)


def require_fields(settings: dict[str, Any]) -> None:
    """Refuses settings that are not fields of the configuration.

    Raises:
        InputError: The message names the first of them and the nearest field.
    """
    known = CromeConfig.__dataclass_fields__.keys()
    for name in settings.keys() - known:
        near = get_close_matches(name, known, 1)
        hint = f"did you mean {near[0]}?" if near else "`CromeConfig` lists the fields."
        raise InputError(
            f"{name!r} is neither a field of the model's configuration nor a keyword that loading "
            f"it can honour; {hint}"
        )


def whole_config(base: Any) -> dict[str, Any] | None:
    """The fields of a whole configuration, which may be an object or the name of a checkpoint."""
    if base is None:
        return None
    if not isinstance(base, CromeConfig):
        base = read_config(locate(base), {})
    return {k: v for k, v in base.to_dict().items() if k != "dtype"}  # each tower has its own


def locate_checkpoint(
    name: str | os.PathLike[str], revision: str | None = None, **hub: Any
) -> Path:
    """The folder of a checkpoint.

    Of one on the hub `config.json` is fetched and checked first, so that a wrong name costs a few
    kilobytes and not the weights of another model.

    Raises:
        InputError: There is no such checkpoint, or it is another model's.
    """
    return locate(name, revision, check=lambda folder: read_config(folder, {}), **hub)


def load_towers(
    vision_model_id: str | None,
    language_model_id: str | None,
    dtype: torch.dtype | str,
    vision_kwargs: dict[str, Any],
    language_kwargs: dict[str, Any],
) -> tuple[Any, PreTrainedModel]:
    """Loads both frozen towers; only the language model is ever quantised."""
    if not vision_model_id or not language_model_id:
        raise InputError(
            "the config names no towers (vision_model_id, language_model_id); set both to a hub "
            "id, a folder or an asset."
        )
    packaged = vision_model_id.startswith("asset:") and language_model_id.startswith("asset:")
    with quiet_transformers() if packaged else no_bars():
        with named("vision encoder", vision_model_id):
            path = tower_path(vision_model_id)
            vision = load_vision_model(path, dtype=dtype, **vision_kwargs)
        with named("language model", language_model_id):
            path = tower_path(language_model_id)
            language = load_language_model(path, dtype=dtype, **language_kwargs)
    return vision, language


def describe_adapter(folder: Path) -> str:
    """Says what a folder with `adapter_config.json` and no `config.json` holds, and the remedy."""
    try:
        saved = read_object(folder / ADAPTER_CONFIG)
        base = saved["base"]["checkpoint"]
    except (OSError, ValueError):
        return f"has no readable {ADAPTER_CONFIG}; copy the folder anew."
    except (KeyError, TypeError):
        return (
            "holds an adapter of another library, such as a LoRA of PEFT; expected a CROME "
            "checkpoint: a folder with config.json and model.safetensors."
        )
    return (
        f"holds a task adapter; load its base ({base}) and then the adapter "
        "(`--adapter`, or model.load_adapter)."
    )


def read_config(
    folder: Path, overrides: dict[str, Any], base: dict[str, Any] | None = None
) -> CromeConfig:
    """Reads and checks `config.json`.

    Args:
        folder: A checkpoint.
        overrides: Fields to change.
        base: A whole configuration that replaces the file's.

    Raises:
        InputError: The file is absent, damaged, or another model's.
    """
    if (folder / ADAPTER_CONFIG).exists() and not (folder / "config.json").exists():
        raise InputError(f"{folder} {describe_adapter(folder)}")
    if (folder / "run.yaml").exists() and not (folder / "config.json").exists():
        saved = sorted(folder.glob("checkpoint-*"), key=lambda path: path.stat().st_mtime)
        raise InputError(
            f"{folder} holds a run without a result. Let its command go on with it"
            f"{f', or give {saved[-1]}' if saved else ''}."
        )
    try:
        config = read_object(folder / "config.json")
    except (OSError, ValueError) as error:
        raise InputError(f"{folder} has no readable config.json: {error}") from error
    if config.get("model_type") != CromeConfig.model_type:
        raise InputError(
            f"{folder}/config.json is a {config.get('model_type')!r} model; expected 'crome', or a "
            "vision-language model of transformers. A language model or an encoder alone goes into "
            "--language_model or --vision_model of `crome train`."
        )
    try:
        return CromeConfig.from_dict((base or config) | overrides)
    except InputError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError, StrictDataclassError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{folder}/config.json does not describe a model: {reason}") from error


def bridge_state(model: Any) -> dict[str, Tensor]:
    """Tensors of the bridge by name: all but the towers and loaded task adapters."""
    outside = tuple(f"{name}." for name in (*TOWERS, "task_adapters"))
    return {k: v for k, v in model.state_dict().items() if not k.startswith(outside)}


def save_bridge(
    model: Any, folder: Path, state: dict[str, Tensor] | None = None, base: str | None = None
) -> None:
    """Writes the bridge and its config into `folder`.

    Args:
        model: The model with the bridge.
        folder: Made if absent.
        state: The model's tensors, if a distributed engine gathered them.
        base: A checkpoint that has all of the bridge but the adapter. Only the adapter is then
            written, and the base named.
    """
    tensors = bridge_state(model)
    if state is not None:
        tensors = {name: state[name] for name in tensors}
    if base is not None:
        folder.mkdir(parents=True, exist_ok=True)
        write_base(folder, base, tensors)
        tensors = {name: tensor for name, tensor in tensors.items() if name.startswith(ADAPTER)}
    save_tensors(tensors, folder / BRIDGE_FILE, {"crome_version": __version__})
    config = model.config.to_dict() | {"crome_version": __version__}
    for tower in ("vision_config", "text_config"):
        config[tower].pop("_name_or_path", None)  # a folder of this machine
        config[tower].pop("quantization_config", None)  # a choice of this run
    write_json(folder / "config.json", config)


def refuse_keywords(what: str, keywords: dict[str, Any]) -> None:
    """Refuses keywords of transformers' `save_pretrained` that would change nothing here.

    Raises:
        InputError: With what cannot be honoured.
    """
    idle = {"is_main_process", "max_shard_size", "safe_serialization", "token", "save_peft_format"}
    refused = {k for k, v in keywords.items() if k not in idle and v is not None}
    refused |= {"safe_serialization"} if keywords.get("safe_serialization") is False else set()
    if refused:
        raise InputError(
            f"{what} is one file of safetensors and cannot honour {', '.join(sorted(refused))}; "
            "leave it out."
        )


def save_with(
    model: Any,
    folder: Path,
    state: dict[str, Tensor] | None,
    push_to_hub: bool | str,
    keywords: dict[str, Any],
    base: str | None = None,
) -> None:
    """Saves a bridge with the keywords of `save_pretrained`.

    Raises:
        InputError: A keyword cannot be honoured.
    """
    refuse_keywords("a CROME checkpoint", keywords)
    if keywords.get("is_main_process", True):
        save_bridge(model, folder, state, base)
        if push_to_hub:
            upload_folder(folder, push_to_hub)


def load_bridge(model: Any, folder: Path) -> None:
    """Loads the bridge strictly: a missing, unexpected or misshapen tensor is an error."""
    state, base = bridge_state(model), read_base(folder)
    rest = without_adapter(state)
    if base is not None and fingerprint(rest) == base["bridge_fingerprint"]:
        tensors = rest | load_tensors(folder / BRIDGE_FILE)  # the model has its base already
    else:
        tensors = bridge_tensors(folder)
    load_strictly(model, tensors, state, folder)
