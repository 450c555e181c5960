"""`crome convert`: published InstructBLIP and BLIVA weights as the start of a bridge.

Two kinds of checkpoint are read, in which tensors have different names. Of a transformers
checkpoint (safetensors) only the files of the bridge are fetched and opened, not those of the
language model. A LAVIS checkpoint (a `.pth` file) is read without executing what it may contain.
The report accounts for every tensor: taken from the source, new, or left behind.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub import is_offline_mode
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from crome.checkpoints.presets import on_meta
from crome.errors import InputError
from crome.model.configuration import CromeConfig, new_adapter
from crome.model.encoders import vision_width
from crome.model.hub import reach_hub
from crome.model.pretrained import bridge_state, save_bridge
from crome.model.tensors import by_prefix
from crome.storage import library_writes, write_json

TRANSFORMERS = [
    (r"^language_projection\.", "query_projection."),
]
LAVIS = [
    (r"^Qformer\.bert\.embeddings\.LayerNorm\.", "qformer.embeddings.layernorm."),
    (r"^Qformer\.bert\.", "qformer."),
    (r"\.(attention|crossattention)\.self\.", r".\1.attention."),
    (r"^(llm|t5)_proj\.", "query_projection."),
    (r"^vision_project\.", "patch_projection."),
]
PREFIXES = ("query_tokens", "qformer.", "language_projection.")
MAY_BE_NEW = ("patch_projection", "adapter")
BERT = "google-bert/bert-base-uncased"
"""LAVIS takes its Q-Former's tokenizer from here and keeps none in its checkpoints."""


class Source(NamedTuple):
    """A checkpoint: tensors that a bridge may need, under CROME's names, and the other names."""

    tensors: dict[str, Tensor]
    left: list[str]


class Report(NamedTuple):
    """The numbers of tensors and parameters that a conversion took, made new, and left behind."""

    taken: dict[str, tuple[int, int]]
    new: dict[str, tuple[int, int]]
    left: dict[str, int]


def convert(
    source: str,
    preset: str,
    out: Path,
    settings: dict[str, Any] | None = None,
    qformer_tokenizer: str | None = None,
    revision: str | None = None,
    seed: int = 0,
) -> None:
    """Make a CROME base from published weights: InstructBLIP's or BLIVA's, without their towers.

    The towers stay where the preset says they come from. What the source lacks (the adapter, the
    patch projection of InstructBLIP) starts anew. Nothing is guessed: a part that is incomplete or
    of another width is an error.

    Args:
        source: Hub id or folder of an InstructBLIP checkpoint in safetensors, or a BLIVA `.pth`.
        preset: The preset with the sizes and towers to use, such as crome-vicuna-7b; see
            `crome params`.
        out: Folder for the base, to be given to `crome train --checkpoint`.
        settings: Fields of the model's configuration that differ from the preset, such as
            adapter_bottleneck.
        qformer_tokenizer: Tokenizer of the Q-Former's input; by default the source's own, and for a
            `.pth` file google-bert/bert-base-uncased.
        revision: Revision of the source on the hub.
        seed: Seed of the parts that start anew.
    """
    torch.manual_seed(seed)
    model = on_meta(preset, **(settings or {}))
    if not Path(source).is_dir():  # a .pth file, too, has its tokenizer from the hub
        reach_hub()
    found = read_lavis(Path(source)) if is_lavis(source) else read_transformers(source, revision)
    new = fresh_parts(model.config)
    state, report = assemble(bridge_state(model), found, new, source)
    tokenizer = load_tokenizer(source, qformer_tokenizer, revision)
    if len(tokenizer) > model.config.qformer_config.vocab_size:
        raise InputError(
            f"the Q-Former's tokenizer has {len(tokenizer)} entries and its embeddings "
            f"{model.config.qformer_config.vocab_size}; give --qformer_tokenizer its own."
        )
    save_bridge(model, out, state)
    with library_writes(out / "qformer_tokenizer"):
        tokenizer.save_pretrained(out / "qformer_tokenizer")
    write_json(out / "conversion.json", {"source": source, "preset": preset, **report._asdict()})
    Console().print(report_table(report, source, preset))


def is_lavis(source: str) -> bool:
    """Whether a source is a LAVIS file by its name."""
    return source.endswith((".pth", ".pt"))


# ---------------------------------------------------------------------- reading


def read_lavis(path: Path) -> Source:
    """Reads a LAVIS `.pth` file, in which a state dict is the entry "model".

    Raises:
        InputError: It is not there, is damaged, or holds more than tensors.
    """
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # whatever a damaged pickle makes its reader trip over
        reason = str(error).strip().split("\n")[0].rstrip(".") or type(error).__name__
        raise InputError(
            f"{path} cannot be read as weights: {reason}. Expected a whole LAVIS .pth file."
        ) from error
    state = saved.get("model", saved) if isinstance(saved, dict) else {}
    state = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    wanted = {name: renamed(name, LAVIS) for name in state}
    return Source(
        {wanted[name]: tensor for name, tensor in state.items() if wanted[name] != name}
        | {name: state[name] for name in ("query_tokens",) if name in state},
        [name for name in state if wanted[name] == name and name != "query_tokens"],
    )


def read_transformers(source: str, revision: str | None = None) -> Source:
    """Reads the bridge's tensors of a transformers InstructBLIP checkpoint.

    Raises:
        InputError: It cannot be reached, or holds no safetensors.
    """
    try:
        tensors, names = by_prefix(source, PREFIXES, revision)
    except InputError as error:
        if Path(source).is_dir() or not is_offline_mode():
            raise
        raise InputError(
            f"{source} is no folder, and the hub cannot be reached to fetch it; check the network, "
            "or give the folder of a copy."
        ) from error
    return Source(
        {renamed(name, TRANSFORMERS): tensor for name, tensor in tensors.items()},
        [name for name in names if name not in tensors],
    )


def renamed(name: str, rules: list[tuple[str, str]]) -> str:
    """The name that CROME has for a tensor."""
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def load_tokenizer(source: str, name: str | None, revision: str | None) -> PreTrainedTokenizerBase:
    """The tokenizer of the Q-Former's input."""
    own: dict[str, Any] = {}
    if name is None and not is_lavis(source):
        own = {"subfolder": "qformer_tokenizer", "revision": revision}
    name = name or (source if own else BERT)
    try:
        return AutoTokenizer.from_pretrained(name, **own)
    except (OSError, ValueError) as error:
        raise InputError(
            f"no tokenizer for the Q-Former in {name}; give --qformer_tokenizer a folder, or a hub "
            "id that can be reached."
        ) from error


# ---------------------------------------------------------------------- joining


def fresh_parts(config: CromeConfig) -> dict[str, Tensor]:
    """The parts that no predecessor has: a small random projection and an identity adapter."""
    parts: dict[str, nn.Module] = {}
    if "patch" in config.branches:
        width = vision_width(config.vision_config)
        parts["patch_projection"] = nn.Linear(width, config.hidden_size)
    if config.adapter_bottleneck is not None:
        parts["adapter"] = new_adapter(config)
    return {
        f"{part}.{name}": tensor
        for part, module in parts.items()
        for name, tensor in module.state_dict().items()
    }


def assemble(
    expected: dict[str, Tensor], found: Source, fresh: dict[str, Tensor], source: str
) -> tuple[dict[str, Tensor], Report]:
    """A whole bridge from the tensors of a source and new parts.

    Args:
        expected: The bridge's tensors, for their names and shapes.
        found: The source's tensors.
        fresh: Parts that may be new.
        source: The source's name, for messages.

    Raises:
        InputError: A part is incomplete, absent, or of another width.
    """
    state: dict[str, Tensor] = {}
    new: list[str] = []
    for part, names in grouped(expected):
        have = [name for name in names if name in found.tensors]
        if not have and part in MAY_BE_NEW:
            state |= {name: fresh[name] for name in names}
            new.append(part)
            continue
        problems = [f"{name} is missing" for name in names if name not in found.tensors]
        problems += [
            f"{name} is {tuple(found.tensors[name].shape)}, expected {tuple(expected[name].shape)}"
            for name in have
            if found.tensors[name].shape != expected[name].shape
        ]
        if problems:
            first = "; ".join(problems[:3]) + (" …" if len(problems) > 3 else "")
            raise InputError(
                f"{source} does not fit: {first}. Choose the preset of its own size and family."
            )
        state |= {name: found.tensors[name].float() for name in names}
    unused = [name for name in found.tensors if name not in expected]
    return state, Report(
        taken={p: size(state, ns) for p, ns in grouped(expected) if p not in new},
        new={p: size(state, ns) for p, ns in grouped(expected) if p in new},
        left=dict(Counter(name.split(".")[0] for name in [*found.left, *unused])),
    )


def grouped(names: Mapping[str, Tensor]) -> Iterator[tuple[str, list[str]]]:
    """Names grouped by part, which is the text before their first dot."""
    for part in dict.fromkeys(name.split(".")[0] for name in names):
        yield part, [name for name in names if name.split(".")[0] == part]


def size(state: dict[str, Tensor], names: list[str]) -> tuple[int, int]:
    """The number of tensors and the number of their parameters."""
    return len(names), sum(state[name].numel() for name in names)


def report_table(report: Report, source: str, preset: str) -> Table:
    """The report as a table."""
    table = Table(title=f"{source} → {preset}", title_justify="left")
    table.add_column("part")
    table.add_column("tensors", justify="right")
    table.add_column("parameters", justify="right")
    table.add_column("")
    for word, parts in (("taken", report.taken), ("[bold]new[/]", report.new)):
        for part, (tensors, parameters) in parts.items():
            table.add_row(part, f"{tensors:,}", f"{parameters:,}", word)
    for part, tensors in report.left.items():
        table.add_row(part, f"{tensors:,}", "", "[dim]left[/]")
    return table
