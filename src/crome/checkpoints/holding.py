"""How a frozen language model is kept in memory when it is too large for the plain way."""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal

from crome.errors import InputError

if TYPE_CHECKING:  # the help of a verb waits for neither
    import torch
    from torch import nn


@dataclass(frozen=True)
class Holding:
    """How the frozen language model is held where it is too large to be held plainly.

    Attributes:
        quantization: Its weights in 8 or 4 bits (needs the extra `quantization`): less memory, not
            less time.
        device_map: "auto" spreads its layers over the GPUs of one process.
        shard: With several processes, each keeps a shard of its layers and gathers one at a time.
        activation_checkpointing: Keep no activations inside its layers and compute them again on
            the way back: a third more time, and an image's tokens are read once per question.
    """

    quantization: Literal["8bit", "4bit"] | None = None
    device_map: str | None = None
    shard: bool = False
    activation_checkpointing: bool = False

    def __post_init__(self) -> None:
        if self.shard and (self.device_map or self.quantization):
            raise InputError(
                "a language model in shares is neither quantised nor spread by a device map; give "
                "--holding.shard alone, or leave it out."
            )

    def check(self, processes: int) -> None:
        """Checks the number of processes.

        Raises:
            InputError: The language model is to be sharded, and there is one process.
        """
        if self.shard and processes == 1:
            raise InputError(
                "--holding.shard shares the language model between processes and this is one; "
                "start several (torchrun --nproc_per_node N -m crome train …), or leave it out."
            )

    def check_answering(self) -> None:
        """Checks the settings for answering questions.

        Raises:
            InputError: A setting is of use in training only.
        """
        if self.shard or self.activation_checkpointing:
            name = "shard" if self.shard else "activation_checkpointing"
            raise InputError(
                f"--holding.{name} belongs to `crome train`; for answering give "
                "--holding.device_map auto or --holding.quantization, or neither."
            )

    def keywords(self, device: "torch.device | None" = None) -> dict[str, Any]:
        """Keywords for the language model's `from_pretrained`.

        Args:
            device: Where this process computes. A quantised model is loaded there directly,
                because it is not moved afterwards; without a device the library chooses.

        Raises:
            InputError: The package for quantisation is not installed, or the device cannot compute
                with quantised weights.
        """
        if self.quantization and device is not None and device.type == "mps":
            raise InputError(
                f"--holding.quantization {self.quantization} needs a GPU of CUDA or the CPU; give "
                "another --device, or leave it out."
            )
        if self.quantization and find_spec("bitsandbytes") is None:
            raise InputError(
                f"quantization {self.quantization} needs bitsandbytes: pip install "
                "'crome[quantization]'."
            )
        named: dict[str, Any] = {"device_map": self.device_map} if self.device_map else {}
        if self.quantization:
            import torch
            from transformers import BitsAndBytesConfig

            if device is not None and not self.device_map:
                named["device_map"] = {"": device.type if device.index is None else device.index}
            named["quantization_config"] = BitsAndBytesConfig(
                load_in_8bit=self.quantization == "8bit",
                load_in_4bit=self.quantization == "4bit",
                bnb_4bit_quant_type="nf4",
                bnb_4bit_compute_dtype=torch.bfloat16,
            )
        return named


PLAINLY = Holding()


def layers(module: "nn.Module") -> "Iterator[nn.Module]":
    """The layers of a language model, and of its encoder: the members of its outermost lists."""
    from torch import nn

    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield from child
        else:
            yield from layers(child)
