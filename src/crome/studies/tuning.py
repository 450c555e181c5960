"""The same rows through any set of parameters, so that ways of tuning can be compared.

`crome train` trains parts of the bridge and never touches the language model. Some of what it is
compared with (LoRA, full fine-tuning) does. All of them go through the Trainer of `crome train`
here, with one optimiser, one schedule and one order of rows, and nothing is saved on the way.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from torch import nn
from transformers import PrinterCallback, set_seed

from crome.data.collator import Collator
from crome.data.stream import RowStream
from crome.errors import InputError
from crome.features.verbs import prepare
from crome.model.lengths import Room
from crome.model.modeling import CromeForConditionalGeneration
from crome.model.processing import CromeProcessor
from crome.model.stages import Stage, apply_stage
from crome.rows import Row
from crome.studies.soft_prompt import add_soft_prompt
from crome.training.arguments import arguments
from crome.training.log import LossLog, read_log
from crome.training.progress import ProgressBar
from crome.training.settings import Optimization, RunSettings
from crome.training.trainer import CromeTrainer

Way = Literal[
    "adapter", "projections", "bridge", "lora", "lora-all", "prompt", "prompt-long", "full"
]
STAGE_OF: dict[Way, Stage] = {
    "adapter": "finetune",
    "projections": "pretrain",
    "bridge": "instruct",
}
SAME_SIZE, ALL_LAYERS = 12, 16
"""Ranks of LoRA: near the adapter's size on the packaged language model, and the usual one."""
PROMPT_LENGTHS = {"prompt": 100, "prompt-long": 1280}
"""Vectors of a soft prompt: the usual number, and the adapter's size on the packaged model."""


def open_parameters(
    model: CromeForConditionalGeneration, way: Way, lora_rank: int | None = None
) -> list[nn.Parameter]:
    """Makes exactly what a way trains trainable.

    Args:
        model: Its language model gets LoRA matrices where the way is that.
        way: The adapter; the projections, with the adapter where there is one; the whole bridge;
            LoRA (arXiv 2106.09685) on the attention's matrices that PEFT takes by default
            (`lora`) or on all linear layers but the head (`lora-all`); a soft prompt of 100
            vectors (`prompt`) or of 1,280 (`prompt-long`); or the whole language model.
        lora_rank: Rank of LoRA; by default 12 for `lora` and 16 for `lora-all`.

    Raises:
        InputError: The way has nothing to train here, or PEFT is not installed.
    """
    if stage := STAGE_OF.get(way):
        apply_stage(model, stage)
        return trained(model)
    model.requires_grad_(False)
    if way == "full":
        for part in language_parts(model):
            part.float()  # steps of a fine-tuning rate vanish in bfloat16
            part.requires_grad_(True)
    elif way in PROMPT_LENGTHS:
        add_soft_prompt(model, PROMPT_LENGTHS[way])
    elif way == "lora":
        add_lora(model.language_model, lora_rank or SAME_SIZE)
    else:
        add_lora(model.language_model, lora_rank or ALL_LAYERS, target_modules="all-linear")
    return trained(model)


def language_parts(model: Any) -> tuple[Any, Any]:
    """The language model and its head, which stands beside it in an attached model."""
    return model.language_model, model.get_output_embeddings()


def trained(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that train."""
    return [p for p in model.parameters() if p.requires_grad]


def add_lora(language_model: Any, rank: int, **settings: Any) -> None:
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
    language_model.add_adapter(LoraConfig(r=rank, lora_alpha=2 * rank, **settings))


def tune(
    model: CromeForConditionalGeneration,
    processor: CromeProcessor,
    rows: Sequence[Row],
    *,
    steps: int,
    batch_size: int = 32,
    learning_rate: float = 1e-3,
    questions_per_image: int = 4,
    seed: int = 0,
) -> dict[str, Any]:
    """Trains what is open on rows, with the optimiser and schedule of `crome train`.

    Args:
        model: In eval mode again when it returns.
        processor: The model's own.
        rows: The training rows.
        steps: Steps of the optimiser.
        batch_size: Rows a step.
        learning_rate: Peak rate.
        questions_per_image: Rows of an image kept together.
        seed: Seed of the order of rows.

    Returns:
        "parameters" trained, "rows" seen, "cpu_seconds" of this process and "seconds" on the
        clock, both without features that are kept, and "curve": step and loss.

    Raises:
        JobError: The loss is no number.
    """
    set_seed(seed)
    stream = RowStream(rows, steps * batch_size / len(rows), questions_per_image, seed)
    prepare(model, processor, [stream[place] for place in range(steps * batch_size)])
    optimization = Optimization(learning_rate, batch_size, max_steps=steps)
    run = RunSettings(optimization=optimization, save_steps=0, log_steps=1, seed=seed,
                      device=model.device.type)  # fmt: skip
    with TemporaryDirectory() as folder:
        log = Path(folder) / "log.jsonl"
        trainer = CromeTrainer(
            model=model,
            args=arguments(Path(folder), run),
            train_dataset=stream,
            data_collator=Collator(processor, Room.measured(model, processor)),
            processing_class=processor,
            callbacks=[LossLog(log), ProgressBar()],
        )
        trainer.remove_callback(PrinterCallback)
        clock, cpu = time.perf_counter(), time.process_time()
        trainer.train()
        spent, seconds = time.process_time() - cpu, time.perf_counter() - clock
        curve = [line for line in read_log(log) if "loss" in line]
    model.eval()
    return {
        "parameters": sum(p.numel() for p in trained(model)),
        "rows": steps * batch_size,
        "cpu_seconds": round(spent, 1),
        "seconds": round(seconds, 1),
        "curve": curve,
    }
