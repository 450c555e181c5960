"""What a misspelt name may have meant, also one that other tools have for the same thing."""

from collections.abc import Sequence
from difflib import get_close_matches

ELSEWHERE = {
    "output_dir": "out",
    "output": "out",
    "model": "checkpoint",
    "model_name_or_path": "checkpoint",
    "pretrained_model_name_or_path": "checkpoint",
    "train_file": "data",
    "data_path": "data",
    "dataset": "data",
    "image_folder": "image_root",
    "image_dir": "image_root",
    "media_dir": "image_root",
    "lr": "learning_rate",
    "num_train_epochs": "epochs",
    "num_epochs": "epochs",
    "per_device_train_batch_size": "batch_size",
    "per_device_eval_batch_size": "batch_size",
    "logging_steps": "log_steps",
    "eval_steps": "validation_steps",
    "eval_dataset": "validation",
    "validation_file": "validation",
    "load_best_model_at_end": "keep_best",
    "metric_for_best_model": "keep_best",
    "early_stopping_patience": "patience",
    "lr_scheduler_type": "schedule",
    "optim": "optimizer",
    "warmup_ratio": "warmup_steps",
    "gradient_checkpointing": "activation_checkpointing",
    "load_in_4bit": "quantization",
    "load_in_8bit": "quantization",
    "torch_dtype": "dtype",
    "bf16": "dtype",
    "fp16": "dtype",
    "attn_implementation": "attention",
    "torch_compile": "compile_layers",
    "use_cpu": "device",
    "dataloader_num_workers": "workers",
    "num_workers": "workers",
}
"""Names that other tools have for the same options."""
BY_ITSELF = {
    "resume_from_checkpoint": "the same command goes on with the run in --out by itself",
    "resume": "the same command goes on with the run in --out by itself",
    "do_train": "`crome train` trains, and `crome evaluate` evaluates",
    "do_eval": "`crome train` trains, and `crome evaluate` evaluates",
    "remove_unused_columns": "nothing is removed",
}
"""Options of other tools for what happens anyway."""


def meant(wrong: str, known: Sequence[str], prefix: str = "") -> str:
    """What a misspelt name may have meant; the last part of a dotted name will do."""
    names = {name.rpartition(".")[2]: name for name in known} | {name: name for name in known}
    wrong = wrong.strip("-[]").replace("][", ".").replace("-", "_")
    last = wrong.rpartition(".")[2]
    if last in BY_ITSELF and prefix and "out" in known:
        return f": {BY_ITSELF[last]}"
    near = get_close_matches(ELSEWHERE.get(last, wrong), names, 1)
    near = near or get_close_matches(last, names, 1)
    return f" (meant {prefix}{names[near[0]]}?)" if near else ""
