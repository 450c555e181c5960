"""Published weights → model folders that transformers loads."""

from pathlib import Path

from crome.errors import JobError
from crome.verbosity import quiet_transformers

HELP_VERSION = "install the versions in constraints.txt and run `crome assets` again."


def convert_smollm2(source: Path, target: Path) -> None:
    """Unpack the GGUF file into a dense bf16 model folder with its tokenizer.

    A packed model can neither be saved nor trained through at speed, and reading GGUF takes 17 s of
    CPU where the dense folder takes 0.2 s.

    Raises:
        JobError: The result does not load again, or has no chat template.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    (gguf,) = (path.name for path in source.glob("*.gguf"))
    with quiet_transformers():
        tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=gguf)
        model = AutoModelForCausalLM.from_pretrained(
            source,
            gguf_file=gguf,
            dtype=torch.bfloat16,
            quantization_config=GgufConfig(dequantize=True),
        )
        model.save_pretrained(target)
        tokenizer.save_pretrained(target)
        again = AutoModelForCausalLM.from_pretrained(target, local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(target, local_files_only=True)
    same = all(map(torch.equal, model.state_dict().values(), again.state_dict().values()))
    if not same or again.dtype != torch.bfloat16:
        raise JobError(f"the model does not reload as it was ({again.dtype}); {HELP_VERSION}")
    if not tokenizer.chat_template:
        raise JobError(f"the tokenizer reloads without a chat template; {HELP_VERSION}")


def convert_efficientnet(source: Path, target: Path, pooled_stages: tuple[int, ...] = ()) -> None:
    """Turn published EfficientNet-Lite weights into a model folder with its image processor."""
    import torch
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    from crome.assets.efficientnet import (
        EfficientNetLiteConfig,
        EfficientNetLiteModel,
        fold_state_dict,
    )

    (weights,) = source.glob("*.pth")
    config = EfficientNetLiteConfig(
        variant=weights.name.split("-")[1], pooled_stages=list(pooled_stages)
    )
    model = EfficientNetLiteModel(config)
    published = torch.load(weights, map_location="cpu", weights_only=True)
    model.load_state_dict(fold_state_dict(published, config), strict=True)
    side = dict.fromkeys(("height", "width"), config.side)
    with quiet_transformers():
        model.save_pretrained(target)
        # Named by its PIL class, so that torchvision is not needed.
        CLIPImageProcessorPil(
            size=side,
            do_center_crop=False,
            crop_size=side,
            image_mean=list(config.image_mean),
            image_std=list(config.image_std),
        ).save_pretrained(target)
