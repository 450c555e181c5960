"""`crome export`: what other runtimes need of a trained model.

ONNX and torch.export get the front end (`crome.interop.front_end`), whose output any runtime feeds
to its own copy of the language model. The hub gets the task adapter or the base, with a card. A
front end is read back and compared with the model before the command says that it is done.
"""

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from crome.attached import AttachedModel
from crome.checkpoints.devices import device_named
from crome.checkpoints.loading import PLAINLY, Holding, adapter_for, load
from crome.errors import InputError, JobError
from crome.interop.card import publish, publish_base
from crome.interop.front_end import FrontEnd
from crome.model.modeling import CromeForConditionalGeneration
from crome.model.processing import CromeProcessor
from crome.storage import library_writes, write_json
from crome.version import __version__

Batch = dict[str, Any]  # of tensors
Run = Callable[[Batch], tuple[Tensor, Tensor]]

QUESTIONS = ("What is shown?", "How many circles are there, and what colour are they?", "Why?")
OUTPUTS = ("inputs_embeds", "embeds_mask")
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.05}
"""Largest difference allowed, as a share of the largest value: other kernels add in another order.
The largest measured in float32 is 3e-6; bfloat16 rounds to 8 bits in each of some twenty layers."""
SUFFIX = {"onnx": "onnx", "torch": "pt2"}


def export(
    out: Path,
    checkpoint: str = "crome-tiny",
    adapter: Path | None = None,
    to: Literal["onnx", "torch", "hub"] = "onnx",
    dtype: Literal["float32", "bfloat16"] = "float32",
    scores: Path | None = None,
    device: str = "cpu",
    holding: Holding = PLAINLY,
) -> None:
    """Write what other runtimes need, and check that it computes the same.

    Args:
        out: Folder to write to, made if absent.
        checkpoint: A folder, a hub id, or a preset that has weights.
        adapter: Folder of a task adapter to build in, or with `--to hub` to publish; without one
            the base's own, or the base itself.
        to: "onnx" or "torch" for the front end (image and question in, prompt embeddings out) as
            ONNX or as a torch.export program; "hub" for the adapter or the base with a model card.
        dtype: Type of the front end's frozen parts and of the embeddings.
        scores: For the card: folder of a `crome evaluate --data` with what is published.
        device: Where the model is while `--to hub` checks the adapter on it; a front end is always
            written on the CPU.
        holding: How a language model that is too large for the plain way is kept in memory.

    Raises:
        InputError: The model cannot be exported in this form, or a package is missing.
        JobError: What was written does not compute what the model computes.
    """
    if to == "onnx" and not (find_spec("onnxscript") and find_spec("onnxruntime")):
        raise InputError("ONNX needs further packages: pip install 'crome[export]'.")
    if scores is not None and to != "hub":
        raise InputError("--scores go into the card of the hub; leave them out, or give --to hub.")
    holding.check_answering()
    place = device_named(device)
    if to != "hub" and (place.type != "cpu" or holding.device_map):
        raise InputError(
            f"--to {to} is written on the CPU; leave --device and --holding.device_map out."
        )
    if adapter is not None:
        adapter = adapter_for(checkpoint, adapter)
    model, processor = load(checkpoint, dtype, holding=holding, device=device)
    if isinstance(model, AttachedModel) and (to != "hub" or adapter is None):
        raise InputError(
            f"{checkpoint} is a vision-language model of transformers, of which only an adapter is "
            "exported: give --to hub and --adapter FOLDER."
        )
    if to == "hub":
        if adapter is None:
            publish_base(model, processor, checkpoint, out, scores)
        else:
            publish(model, adapter, out, scores)
        what = "base" if adapter is None else "adapter"
        print(f"{out} holds the {what} and its card: `hf upload USER/{out.name} {out}`.")
        return
    if adapter is not None:
        model.load_adapter(adapter)
    difference = write_front_end(model, processor, out, to, dtype)
    print(f"{out / f'front_end.{SUFFIX[to]}'}: differs from the model by at most {difference:.1e}.")


def write_front_end(
    model: CromeForConditionalGeneration,
    processor: CromeProcessor,
    out: Path,
    to: Literal["onnx", "torch"],
    dtype: str = "float32",
) -> float:
    """Writes the front end with the active adapter, its preprocessing and a description.

    Args:
        model: On the CPU.
        processor: The model's own.
        out: Folder, made if absent.
        to: The form to write.
        dtype: Type of the model's towers, which decides how large a difference rounding can make.

    Returns:
        The largest difference from the model, as a share of the largest value.
    """
    out.mkdir(parents=True, exist_ok=True)
    front_end = FrontEnd(model, model.active_adapter).eval()
    path = out / f"front_end.{SUFFIX[to]}"
    with quiet(), library_writes(path):
        program = trace(front_end, example(model, processor, rows=3))
        run = write_onnx(program, path) if to == "onnx" else write_torch(program, path)
    difference = max(compare(run, model, example(model, processor, rows)) for rows in (1, 2, 3))
    if not difference <= TOLERANCE[dtype]:
        raise JobError(
            f"{path} differs from the model by {difference:.1e} of the largest value; expected at "
            f"most {TOLERANCE[dtype]:.0e}. Do not use it."
        )
    with library_writes(out):
        processor.image_processor.save_pretrained(out)
        processor.tokenizer.save_pretrained(out / "tokenizer")
    processor.save_pretrained(out)
    write_json(out / "front_end.json", description(model, processor, program, difference))
    return difference


def example(model: CromeForConditionalGeneration, processor: CromeProcessor, rows: int) -> Batch:
    """The processor's tensors for questions about noise; the first two of three share an image."""
    noise = np.random.default_rng(0).integers(0, 256, (2, 48, 64, 3), dtype=np.uint8)
    images = [Image.fromarray(pixels) for pixels in noise]
    shared = [images[0], images[0], images[1]][-rows:]
    batch = dict(processor(images=shared, text=QUESTIONS[-rows:]))
    unread = () if hasattr(model, "qformer") else ("qformer_input_ids", "qformer_attention_mask")
    return {name: tensor for name, tensor in batch.items() if name not in unread}


def trace(front_end: FrontEnd, batch: Batch) -> torch.export.ExportedProgram:
    """One graph for every number of rows B, images I, text tokens T and instruction tokens S."""
    rows, images, text = (torch.export.Dim(name) for name in ("B", "I", "T"))
    dynamic = {
        "input_ids": {0: rows, 1: text},
        "attention_mask": {0: rows, 1: text},
        "visual_position": {0: rows},
        "pixel_values": {0: images},
        "image_index": {0: rows},
    }
    if "qformer_input_ids" in batch:
        longest = front_end.bridge.config.qformer_config.max_position_embeddings
        instruction = torch.export.Dim("S", min=2, max=longest)
        for name in ("qformer_input_ids", "qformer_attention_mask"):
            dynamic[name] = {0: rows, 1: instruction}
    with torch.no_grad():
        return torch.export.export(
            front_end, (), batch, dynamic_shapes={name: dynamic[name] for name in batch}
        )


def write_torch(program: torch.export.ExportedProgram, path: Path) -> Run:
    """Saves a torch.export program and returns a function that runs the saved one."""
    torch.export.save(program, path)
    module = torch.export.load(path).module()
    return lambda batch: module(**batch)


def write_onnx(program: torch.export.ExportedProgram, path: Path) -> Run:
    """Saves ONNX with its weights beside it, and returns a function that runs the saved one."""
    import onnxruntime

    torch.onnx.export(
        program, f=path, output_names=OUTPUTS, external_data=True, verbose=False, dynamo=True
    )
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(batch: Batch) -> tuple[Tensor, Tensor]:
        embeds, mask = session.run(list(OUTPUTS), {k: v.numpy() for k, v in batch.items()})
        return torch.from_numpy(embeds), torch.from_numpy(mask)

    return run


@torch.no_grad()
def compare(run: Run, model: CromeForConditionalGeneration, batch: Batch) -> float:
    """Largest difference of the embeddings as a share of the largest value; masks must be equal."""
    expected, mask = model.prompt_embeddings(**batch, side="right")
    embeds, ours = run(batch)
    length = mask.shape[1]  # rows may be padded further
    if not torch.equal(ours[:, :length].bool(), mask.bool()) or ours[:, length:].any():
        return float("inf")
    real = mask.bool()
    difference = (embeds[:, :length][real].float() - expected[real].float()).abs().max()
    return float(difference / expected[real].float().abs().max())


def description(
    model: CromeForConditionalGeneration,
    processor: CromeProcessor,
    program: torch.export.ExportedProgram,
    difference: float,
) -> dict[str, Any]:
    """What a program must know to run the front end."""
    batch = example(model, processor, rows=1)
    inputs = {
        name: {"shape": shape, "dtype": str(batch[name].dtype).removeprefix("torch.")}
        for name, shape in {
            "input_ids": ["B", "T"],
            "attention_mask": ["B", "T"],
            "visual_position": ["B"],
            "pixel_values": ["I", *batch["pixel_values"].shape[1:]],
            "image_index": ["B", 1],
            "qformer_input_ids": ["B", "S"],
            "qformer_attention_mask": ["B", "S"],
        }.items()
        if name in batch
    }
    embeds, _ = model.prompt_embeddings(**batch, side="right")
    visual = embeds.shape[1] - batch["input_ids"].shape[1]
    return {
        "crome_version": __version__,
        "inputs": inputs,
        "outputs": {
            OUTPUTS[0]: {"shape": ["B", f"{visual} + T", embeds.shape[2]]},
            OUTPUTS[1]: {"shape": ["B", f"{visual} + T"]},
        },
        "visual_tokens": visual,
        "prompt": processor.render("{question}", True),
        "end_token_ids": processor.end_ids,
        "language_model": model.config.language_model_id,
        "base": model.base_identity(),
        "largest_difference": difference,
    }


@contextmanager
def quiet() -> Iterator[None]:
    """Hides what exporters print about their own internals."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)
