"""A task adapter as a folder for the hub: two files and a model card, nothing of this machine."""

import json
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file

from crome.errors import InputError, JobError
from crome.model.checkpoint import ADAPTER_CONFIG, ADAPTER_FILE, save_tensors, write_json
from crome.model.modeling import CromeForConditionalGeneration

USE = """from crome import CromeForConditionalGeneration, CromeProcessor

model = CromeForConditionalGeneration.from_pretrained("{base}")
processor = CromeProcessor.from_pretrained("{base}")
model.load_adapter("USER/{name}", name="{name}")"""


def publish(model: CromeForConditionalGeneration, adapter: Path, out: Path) -> None:
    """Writes an adapter for the hub and loads it again.

    Args:
        model: Its base.
        adapter: Folder of the adapter.
        out: Folder to write to, made if absent; its name is the title of the card.

    Raises:
        InputError: The adapter belongs to another base, or `out` is the adapter's own folder.
        JobError: What was written is not what was read.
    """
    if out.resolve() == adapter.resolve():
        raise InputError(f"{out} is the adapter itself; expected another folder with --out.")
    model.load_adapter(adapter, "source")
    config = without_paths(json.loads((adapter / ADAPTER_CONFIG).read_text()))
    # The towers' names are part of what the adapter refuses or accepts.
    config["base"]["vision_model"] = model.config.vision_model_id
    config["base"]["language_model"] = model.config.language_model_id
    tensors = load_file(adapter / ADAPTER_FILE)
    save_tensors(tensors, out / ADAPTER_FILE, {"crome_version": config["crome_version"]})
    write_json(out / ADAPTER_CONFIG, config)
    (out / "README.md").write_text(card(out.resolve().name, config), encoding="utf-8")
    model.load_adapter(out, "published")
    written = model.task_adapters["published"].state_dict()
    if any(not torch.equal(written[name], tensor) for name, tensor in tensors.items()):
        raise JobError(f"{out} does not hold what {adapter} holds; the disk may be damaged.")


def without_paths(value: Any) -> Any:
    """A record with the last part of every path: folders of a machine are nobody else's affair."""
    if isinstance(value, dict):
        return {key: without_paths(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_paths(item) for item in value]
    local = isinstance(value, str) and (Path(value).is_absolute() or Path(value).exists())
    return Path(value).name if local and value else value


def card(name: str, config: dict[str, Any]) -> str:
    """The README of an adapter: metadata the hub reads, how to load it, what made it."""
    base = config["base"]
    towers = [base["vision_model"], base["language_model"]]
    numbers = sum(torch.Size(shape).numel() for shape in config["shapes"].values())
    known = {"crome_version", "base", "adapter", "shapes"}
    record = {key: value for key, value in config.items() if key not in known and value}
    front = {
        "library_name": "crome",
        "pipeline_tag": "image-text-to-text",
        "tags": ["crome", "cross-modal-adapter"],
        # Only names that others can look up; a list, as both towers stay frozen.
        "base_model": [t for t in towers if t.count("/") == 1 and not Path(t).exists()],
    }
    parts = [
        f"---\n{yaml.safe_dump({k: v for k, v in front.items() if v}, sort_keys=False)}---",
        f"# {name}",
        f"A task adapter of crome: {numbers:,} parameters that sit between a frozen vision encoder "
        f"(`{shown(towers[0])}`) and a frozen language model (`{shown(towers[1])}`). It fits the "
        f"base `{base['checkpoint']}` and refuses others.",
        f"```python\n{USE.format(base=base['checkpoint'], name=name)}\n```",
        "## What made it",
        f"```yaml\n{yaml.safe_dump(record, sort_keys=False)}```" if record else "Not recorded.",
    ]
    return "\n\n".join(parts) + "\n"


def shown(tower: str) -> str:
    """A tower's name without the folders of this machine."""
    return Path(tower).name if Path(tower).is_absolute() else tower.removeprefix("asset:")
