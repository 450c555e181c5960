"""`transformers.Trainer` with four changes.

They are the order of rows, checkpoints that are whole, a strict resume, and that nothing is saved
whose numbers are not finite.

One process or many: Accelerate deals batches of the one stream to the processes in turn, so that a
step sees the same rows however many there are.
"""

import os
import shutil
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.data import IterableDataset, SequentialSampler
from transformers import BatchFeature, Trainer

from crome.errors import InputError, JobError
from crome.model.tensors import is_finite
from crome.training.arguments import in_brief
from crome.training.checkpoint_files import checkpoint_folders, seal
from crome.training.log import diverged
from crome.training.validation import validate

STAGING = ".saving"
LOSS_SCALE = 2.0**10
"""Gradients pass a float16 language model this much larger, so that few of them vanish there."""


class CromeTrainer(Trainer):
    """The Trainer on a dataset that is already in training order.

    A checkpoint is written beside the others under another name and moved into place when it is
    whole, so a process killed while saving leaves the last whole one to resume from.

    Attributes:
        base: Name of the base checkpoint that the frozen rest of the bridge is in, where the run
            trains the adapter alone; its checkpoints then hold nothing else.
        loss_scale: Factor of gradients inside the language model.
        in_shares: Whether other processes hold parts of the language model. A pass without a way
            back, between steps, leaves FSDP expecting one, and the next step waits for ever.
    """

    base: str | None = None
    in_shares: bool = False
    loss_scale: float = 1.0
    _first: Any = None
    _validated: tuple[int, dict[str, float]] | None = None

    def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:
        return SequentialSampler(train_dataset or self.train_dataset)  # type: ignore[arg-type]

    def _get_output_dir(self, trial: Any = None) -> str:
        return os.path.join(str(self.args.output_dir), STAGING)

    def scale_gradients(self, scale: float) -> None:
        """Makes gradients pass the language model `scale` times as large, and come out as they are.

        Args:
            scale: 1 for as they are.
        """
        self.loss_scale = scale
        for parameter in self.trained():
            parameter.register_hook(lambda gradient: gradient / scale)

    def trained(self) -> list[nn.Parameter]:
        """The parameters that train."""
        model: Any = self.model
        return [p for p in model.parameters() if p.requires_grad]

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """The loss, larger where gradients are scaled."""
        loss: Any = super().compute_loss(model, inputs, *args, **kwargs)
        if self.loss_scale == 1.0 or not torch.is_grad_enabled() or isinstance(loss, tuple):
            return loss
        return loss * self.loss_scale

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """A step forward and back; the loss it returns is as it is."""
        return super().training_step(*args, **kwargs) / self.loss_scale

    def check_optimizer(self) -> None:
        """Refuses further arguments that no optimiser or schedule takes, before anything runs.

        Raises:
            InputError: With what is wrong.
        """
        try:
            self.create_optimizer_and_scheduler(num_training_steps=100)
        except (ValueError, TypeError, ImportError, KeyError, AttributeError) as error:
            raise InputError(f"trainer: {in_brief(error)}.") from error
        self.optimizer = self.lr_scheduler = None

    def check_finite(self, compute: bool = True) -> None:
        """Refuses weights that are no finite numbers, or make others of the first row.

        Args:
            compute: Whether the loss of the first row is computed too.

        Raises:
            JobError: They are not, or do.
        """
        step = self.state.global_step
        if not all(map(is_finite, self.trained())):
            raise diverged("a weight is not a finite number", step)
        if not compute:
            return
        model: Any = self.model
        try:
            batch = self.data_collator([self.first_row()])
        except (ValueError, JobError):
            return  # its picture went away; the weights have been looked at
        training = model.training
        model.eval()  # dropout would draw numbers that the run then lacks
        device = model.get_input_embeddings().weight.device
        with torch.no_grad():
            loss = model(**BatchFeature(batch).to(device)).loss
        model.train(training)
        if not bool(torch.isfinite(loss)):
            raise diverged(f"the loss is {loss.item()}", step)

    def first_row(self) -> Any:
        """The first row, or group of rows, of the run; of shards it is looked for once."""
        if self._first is None:
            stream: Any = self.train_dataset
            streams_by = isinstance(stream, IterableDataset)
            self._first = next(iter(stream)) if streams_by else stream[0]
        return self._first

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self.check_finite(compute=not self.in_shares)
        name = f"checkpoint-{self.state.global_step}"
        staging, output = Path(self._get_output_dir()), Path(str(self.args.output_dir))
        try:
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()  # each process writes its random state
            if self.args.should_save:
                seal(staging / name)
                if (output / name).exists():
                    shutil.rmtree(output / name)
                os.replace(staging / name, output / name)
                for old in checkpoint_folders(output)[: -(self.args.save_total_limit or 10**9)]:
                    shutil.rmtree(old)
        except (OSError, RuntimeError) as error:  # torch.save has the latter for a full disk
            if isinstance(error, JobError) and not isinstance(error.__cause__, OSError):
                raise
            reason = str(error).split(". ")[0].removesuffix(".")
            raise JobError(
                f"could not save {output / name}: {reason}. Earlier checkpoints are intact; free "
                "some space and start again, training resumes from the last of them."
            ) from error
        finally:
            if self.args.should_save:
                shutil.rmtree(staging, ignore_errors=True)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Saves what trains; the Trainer itself saves optimiser, schedule and random state."""
        if not self.args.should_save:
            return
        folder, model = Path(output_dir or str(self.args.output_dir)), cast(Any, self.model)
        folder.mkdir(parents=True, exist_ok=True)
        model.save_pretrained(folder, state_dict=state_dict, base=self.base)
        if self.processing_class is not None:
            self.processing_class.save_pretrained(folder)
        torch.save(self.args, folder / "training_args.bin")

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Loss and right answers of the validation rows, once a step; no logits are kept."""
        step = self.state.global_step
        if self._validated is not None and self._validated[0] == step and eval_dataset is None:
            return self._validated[1]  # the Trainer asks twice at the last step
        rows: Any = eval_dataset or self.eval_dataset
        model: Any = self.model
        processor: Any = self.processing_class
        found = validate(model, processor, rows, self.args.per_device_eval_batch_size)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in found.items()}
        self.log(dict(metrics))
        self._validated = (step, metrics)
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        trained: Any = model or self.model
        trained.load_trained(Path(resume_from_checkpoint))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        try:
            super()._load_optimizer_and_scheduler(checkpoint)
        except (RuntimeError, ValueError) as error:
            reason = str(error).split(". ")[0]
            raise InputError(
                f"{checkpoint} cannot be resumed: {reason}. It is damaged, or of another stage; "
                "remove it, or give another --out."
            ) from error
