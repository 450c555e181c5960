"""The same rows through any set of parameters, so that ways of tuning can be compared.

`crome train` trains parts of the bridge and never touches the language model. What it is compared
with (LoRA, full fine-tuning) does, so the comparisons have this loop of their own: one optimiser,
one schedule and one order of rows for all of them, and nothing saved on the way.
"""

import time
from collections.abc import Sequence
from typing import Any, Literal

import torch
from rich.progress import track
from torch import nn
from transformers import BatchFeature, get_cosine_schedule_with_warmup, set_seed

from crome.data.collator import Collator
from crome.data.stream import RowStream
from crome.errors import InputError, JobError
from crome.features.verbs import prepare
from crome.model.lengths import Room
from crome.model.modeling import CromeForConditionalGeneration
from crome.model.processing import CromeProcessor
from crome.model.stages import Stage, apply_stage
from crome.rows import Row
from crome.training.progress import console

Way = Literal["adapter", "projections", "bridge", "lora", "full"]
STAGE_OF: dict[Way, Stage] = {
    "adapter": "finetune",
    "projections": "pretrain",
    "bridge": "instruct",
}
WARMUP, WEIGHT_DECAY, MAX_NORM = 0.05, 0.05, 1.0


def open_parameters(
    model: CromeForConditionalGeneration, way: Way, lora_rank: int = 12
) -> list[nn.Parameter]:
    """Makes exactly what a way trains trainable.

    Args:
        model: Its language model gets LoRA matrices where the way is that.
        way: The adapter, the projections with it, the whole bridge, LoRA (arXiv 2106.09685) on the
            attention's matrices that PEFT takes by default, or the whole language model.
        lora_rank: Of LoRA; 12 comes near the adapter's size on the packaged language model.

    Raises:
        InputError: The way has nothing to train here, or PEFT is not installed.
    """
    if stage := STAGE_OF.get(way):
        apply_stage(model, stage)
    else:
        model.requires_grad_(False)
        if way == "full":
            model.language_model.float()  # steps of a fine-tuning rate vanish in bfloat16
            model.language_model.requires_grad_(True)
        else:
            add_lora(model.language_model, lora_rank)
    return [p for p in model.parameters() if p.requires_grad]


def add_lora(language_model: Any, rank: int) -> None:
    """Puts trainable LoRA matrices into a language model.

    Raises:
        InputError: PEFT is not installed.
    """
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise InputError(
            "comparing with LoRA needs PEFT: install crome[compare], or leave lora out."
        ) from error
    language_model.add_adapter(LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=0.0))


def tune(
    model: CromeForConditionalGeneration,
    processor: CromeProcessor,
    rows: Sequence[Row],
    parameters: Sequence[nn.Parameter],
    *,
    steps: int,
    batch_size: int = 32,
    learning_rate: float = 1e-3,
    questions_per_image: int = 4,
    seed: int = 0,
    title: str = "tuning",
) -> dict[str, Any]:
    """Trains parameters on rows: AdamW, 5 % warm-up, cosine to zero, gradients clipped to 1.

    Args:
        model: Stays in eval mode: nothing is dropped out.
        processor: Of the model.
        rows: The training rows.
        parameters: What trains.
        steps: Of the optimiser.
        batch_size: Rows a step.
        learning_rate: Peak rate.
        questions_per_image: Rows of an image kept together.
        seed: Of the order of rows.
        title: Of the progress bar.

    Returns:
        "parameters" trained, "rows" seen, "cpu_seconds" of this process and "seconds" on the
        clock, both without features that are kept, and "curve": step and loss.

    Raises:
        JobError: The loss is no number.
    """
    set_seed(seed)
    stream = RowStream(rows, steps * batch_size / len(rows), questions_per_image, seed)
    collate = Collator(processor, Room.measured(model, processor))
    prepare(model, processor, [stream[place] for place in range(steps * batch_size)])
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=WEIGHT_DECAY)
    schedule = get_cosine_schedule_with_warmup(optimizer, max(1, round(WARMUP * steps)), steps)
    device, curve = model.get_input_embeddings().weight.device, []
    clock, cpu = time.perf_counter(), time.process_time()
    for step in track(range(steps), title, console=console, transient=True):
        places = range(step * batch_size, (step + 1) * batch_size)
        batch = collate([stream[place] for place in places])
        loss = model(**BatchFeature(batch).to(device)).loss
        if not torch.isfinite(loss):
            raise JobError(f"the loss is {loss.item()} at step {step + 1}; lower the rate.")
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, MAX_NORM)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        curve.append({"step": step + 1, "loss": round(loss.item(), 5)})
    return {
        "parameters": sum(p.numel() for p in parameters),
        "rows": steps * batch_size,
        "cpu_seconds": round(time.process_time() - cpu, 1),
        "seconds": round(time.perf_counter() - clock, 1),
        "curve": curve,
    }
