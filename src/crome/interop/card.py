"""An adapter or a base as a folder for the hub: its files and a card, without local paths.

The card has the base, the data and the settings, the scores with their protocol and the learning
curve, as far as the run's folder has them.
"""

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file

from crome.attached.families import THINKERS
from crome.attached.files import KIND
from crome.config_file import read_config
from crome.errors import InputError, JobError
from crome.model.adapter_files import ADAPTER_CONFIG, ADAPTER_FILE, read_adapter
from crome.model.hub import locate
from crome.model.modeling import CromeForConditionalGeneration
from crome.model.pretrained import bridge_state, save_bridge
from crome.model.processing import CromeProcessor
from crome.model.protocol import VisionLanguageModel
from crome.model.tensors import save_tensors
from crome.plot import line_plot
from crome.storage import read_object, write_json, write_text

USE_BASE = """from crome import CromeForConditionalGeneration, CromeProcessor

model = CromeForConditionalGeneration.from_pretrained("{base}")
processor = CromeProcessor.from_pretrained("{base}")"""
USE = (
    USE_BASE
    + """
model.load_adapter("USER/{name}", name="{name}")"""
)
USE_ATTACHED = """import crome
from transformers import {class_name}, AutoProcessor

vlm = {class_name}.from_pretrained("{base}", dtype="auto")
model, processor = crome.attach(vlm, AutoProcessor.from_pretrained("{base}"))
model.load_adapter("USER/{name}", name="{name}")"""
CARD, CURVE = "README.md", "curve.png"
KNOWN = ("crome_version", "base", "adapter", "shapes")  # the card has them elsewhere


def publish(
    model: VisionLanguageModel, adapter: Path, out: Path, scores: Path | None = None
) -> None:
    """Writes an adapter for the hub and loads it again.

    Args:
        model: The adapter's base.
        adapter: Folder of the adapter. The log of its run is expected beside it.
        out: Folder to write to, made if absent; its name is the title of the card.
        scores: `scores.json` of `crome evaluate` with this adapter, or its folder.

    Raises:
        InputError: The adapter belongs to another base, `out` is the adapter's own folder, or the
            scores are not of this adapter.
        JobError: What was written is not what was read.
    """
    if out.resolve() == adapter.resolve():
        raise InputError(f"{out} is the adapter itself; expected another folder with --out.")
    score_table = score_lines(scores, adapter)
    model.load_adapter(adapter, "source")
    read_adapter(adapter, "base", "adapter", "shapes")  # refuses a description without them
    config = without_paths(read_object(adapter / ADAPTER_CONFIG))
    # The base's names as the model knows them now: others look the base up by them.
    config["base"] = {**config["base"], **named_parts(model)}
    tensors = load_file(adapter / ADAPTER_FILE)
    save_tensors(tensors, out / ADAPTER_FILE, {"crome_version": str(config.get("crome_version"))})
    write_json(out / ADAPTER_CONFIG, config)
    base, name = config["base"], out.resolve().name
    numbers = sum(torch.Size(shape).numel() for shape in config["shapes"].values())
    record = {k: v for k, v in config.items() if k not in KNOWN and v}
    towers, place = where(base)
    lead = (
        f"A task adapter of crome: {numbers:,} parameters that sit {place}. It fits the base "
        f"`{public_name(base['checkpoint'])}` and refuses others."
    )
    template = USE_ATTACHED if base.get("kind") == KIND else USE
    kind = base.get("architecture")  # the part of a model that also talks has no automatic class
    loaded = kind if kind in THINKERS.values() else "AutoModelForImageTextToText"
    use = template.format(base=base["checkpoint"], name=name, class_name=loaded)
    curve = draw_curve(adapter.parent / "log.jsonl", out / CURVE)
    write_card(out, name, towers, lead, use, record, score_table, curve)
    model.load_adapter(out, "published")
    written = model.get_adapter("published").state_dict()
    if any(not torch.equal(written[name], tensor) for name, tensor in tensors.items()):
        raise JobError(f"{out} does not hold what {adapter} holds; the disk may be damaged.")


def named_parts(model: VisionLanguageModel) -> dict[str, Any]:
    """The names by which others look up a base's towers."""
    identity = model.base_identity()
    names = ("vision_model", "language_model")
    return {name: identity[name] for name in names if name in identity}


def where(base: dict[str, Any]) -> tuple[list[str], str]:
    """The frozen models of an adapter, and a phrase that says where among them it stands."""
    if base.get("kind") == KIND:
        name = base["checkpoint"]
        return [
            name
        ], f"right before the language model of `{public_name(name)}`, which stays frozen"
    towers = [base["vision_model"], base["language_model"]]
    return towers, f"between {between(towers)}"


def publish_base(
    model: CromeForConditionalGeneration,
    processor: CromeProcessor,
    checkpoint: str,
    out: Path,
    scores: Path | None = None,
) -> None:
    """Writes a base for the hub: the bridge, its configuration and tokenizer, and a card.

    Args:
        model: The base.
        processor: The model's own.
        checkpoint: Where it came from; a run's folder has `run.yaml` and `log.jsonl`.
        out: Folder to write to, made if absent; its name is the title of the card.
        scores: `scores.json` of `crome evaluate` with this base, or its folder.

    Raises:
        InputError: `out` is the base's own folder, or the scores are not of this base.
    """
    source = locate(checkpoint)
    if out.resolve() == source.resolve():
        raise InputError(f"{out} is the base itself; expected another folder with --out.")
    score_table = score_lines(scores, source)
    save_bridge(model, out)
    processor.save_pretrained(out)
    run = source / "run.yaml"
    record = without_paths(read_config(run)) if run.exists() else {}
    towers = [str(model.config.vision_model_id), str(model.config.language_model_id)]
    numbers = sum(tensor.numel() for tensor in bridge_state(model).values())
    name = out.resolve().name
    lead = (
        f"A base of crome: the trained bridge, {numbers:,} parameters between {between(towers)}. "
        "The towers are not in this folder; they are loaded from where they are published."
    )
    curve = draw_curve(source / "log.jsonl", out / CURVE)
    use = USE_BASE.format(base=f"USER/{name}")
    write_card(out, name, towers, lead, use, record, score_table, curve)


def without_paths(value: Any) -> Any:
    """A record in which every path is cut to its last part, since others have other folders."""
    if isinstance(value, dict):
        return {key: without_paths(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_paths(item) for item in value]
    # A text may be longer than any name of a file, of which `Path` would raise an error.
    local = isinstance(value, str) and (Path(value).is_absolute() or os.path.exists(value))
    return Path(value).name if local and value else value


def write_card(
    out: Path,
    name: str,
    towers: list[str],
    lead: str,
    use: str,
    record: dict[str, Any],
    scores: list[str],
    curve: bool,
) -> None:
    """Writes the README: metadata for the hub, how to load the folder, scores, and settings."""
    front = {
        "library_name": "crome",
        "pipeline_tag": "image-text-to-text",
        "tags": ["crome", "cross-modal-adapter"],
        # Only names that others can look up; a list, as both towers stay frozen.
        "base_model": [t for t in towers if t.count("/") == 1 and not Path(t).exists()],
    }
    record = {key: value for key, value in record.items() if value not in (None, "", {})}
    parts = [
        f"---\n{yaml.safe_dump({k: v for k, v in front.items() if v}, sort_keys=False)}---",
        f"# {name}",
        lead,
        f"```python\n{use}\n```",
        "## Scores",
        "\n".join(scores) or "Not measured.",
        "## What made it",
        f"```yaml\n{yaml.safe_dump(record, sort_keys=False)}```" if record else "Not recorded.",
    ]
    if curve:
        parts.append(f"![Loss by step]({CURVE})")
    write_text(out / CARD, "\n\n".join(parts) + "\n")


def score_lines(scores: Path | None, model: Path) -> list[str]:
    """The lines of a table of what `crome evaluate` measured, with protocol, rows and intervals.

    Args:
        scores: `scores.json` or its folder; None for no table.
        model: Folder of the adapter or base that the scores must belong to.

    Raises:
        InputError: There is no such file, it has another form, or belongs to another model.
    """
    if scores is None:
        return []
    file = scores / "scores.json" if scores.is_dir() else scores
    try:
        content = read_object(file)
        measured = content.get("adapter") or content["checkpoint"]
        lines = [
            f"| {s['run']} | {s['group']} | {s['n']:,} | {s['value']:.1%} "
            f"| {s['low']:.1%} to {s['high']:.1%} |"
            for s in content["scores"]
        ]
        protocol, data = content["protocol"], Path(content["data"]).name
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{file} holds no scores ({error!r}); expected the folder of `crome evaluate --data`."
        ) from error
    if Path(measured).resolve() != model.resolve() and measured != model.name:
        raise InputError(f"{file} has the scores of {measured}; expected those of {model}.")
    head = ["| run | rows of | n | score | 95 % interval |", "|---|---|---:|---:|---:|"]
    return [f"`{protocol}` on {content['rows']:,} rows of `{data}`:", "", *head, *lines]


def draw_curve(log: Path, file: Path) -> bool:
    """Draws the losses of a run as PNG; returns False where the log has fewer than two."""
    if not log.is_file():
        return False
    points = []
    for text in log.read_text(encoding="utf-8", errors="replace").splitlines():
        with suppress(ValueError, KeyError, TypeError):  # a truncated line, or one without a loss
            line = json.loads(text)
            points.append((float(line["step"]), float(line["loss"])))
    if len(points) < 2:
        return False
    steps, losses = zip(*points, strict=True)
    line_plot({"loss": losses}, steps, file, title="Loss by step", log_x=False, x_label="step")
    return file.is_file()


def between(towers: list[str]) -> str:
    """A phrase that names both towers."""
    return (
        f"a frozen vision encoder (`{public_name(towers[0])}`) and a frozen language model "
        f"(`{public_name(towers[1])}`)"
    )


def public_name(tower: str) -> str:
    """A model's name without folders of this machine."""
    return Path(tower).name if Path(tower).is_absolute() else tower.removeprefix("asset:")
