"""EfficientNet-Lite 0 to 4: the small convolutional image encoder of the embedded default.

EfficientNet (Tan and Le, 2019, arXiv 1905.11946) in its "Lite" form: no squeeze-and-excitation,
ReLU6 in place of swish, and neither stem nor head grows with the variant. The tower is only ever
used frozen, so every batch normalisation is folded into the convolution before it, once, when
published weights are converted (`fold_state_dict`): the same function in fewer steps.

Legend: B batch, H × W input pixels, h × w = ⌈H/32⌉ × ⌈W/32⌉ feature grid, D width: 1280 and that of
the stages pooled into it.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithNoAttention

from crome.errors import InputError

# variant: (width factor, depth factor, image size)
VARIANTS = {
    "lite0": (1.0, 1.0, 224),
    "lite1": (1.0, 1.1, 240),
    "lite2": (1.1, 1.2, 260),
    "lite3": (1.2, 1.4, 280),
    "lite4": (1.4, 1.8, 300),
}
# (blocks, kernel, stride, expansion, output channels) of each stage at width and depth factor 1
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
STEM_WIDTH, HEAD_WIDTH = 32, 1280
NORM_EPS = 1e-3  # of the batch normalisations that were folded


class EfficientNetLiteConfig(PreTrainedConfig):
    """Shape of an EfficientNet-Lite; the variant fixes widths and depths.

    Args:
        variant: `lite0` to `lite4`.
        image_size: Side in pixels to which pictures are resized; None for the variant's own. The
            model itself takes any size.
        num_classes: Classes of the classifier.
        pooled_stages: Stages, 0 to 6, whose means over a token's cell are appended to the token.
            A classifier's last layer has forgotten what the first ones still hold: colour, texture.
        hidden_size: Width of the tokens; follows from the rest, 1280 without pooled stages.
        num_channels: Input channels.
        patch_size: Input pixels per token and side.
        image_mean: Mean of each channel, pixels in [0, 1]: the weights expect (255 p − 127) / 128.
        image_std: Deviation of each channel, pixels in [0, 1].
    """

    model_type = "efficientnet_lite"

    variant: str = "lite0"
    image_size: int | None = None
    num_classes: int = 1000
    pooled_stages: list[int] | tuple[int, ...] = ()
    hidden_size: int = HEAD_WIDTH
    num_channels: int = 3
    patch_size: int = 32
    image_mean: list[float] | tuple[float, ...] = (127 / 255,) * 3
    image_std: list[float] | tuple[float, ...] = (128 / 255,) * 3

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if self.variant not in VARIANTS:
            raise InputError(f"variant is {self.variant!r}; expected one of {', '.join(VARIANTS)}.")
        known = range(len(STAGES))
        if not set(self.pooled_stages) <= set(known):
            raise InputError(f"pooled_stages {self.pooled_stages}: expected some of {list(known)}.")
        self.image_size = self.side
        factor = VARIANTS[self.variant][0]
        widths = [round_width(STAGES[stage][-1] * factor) for stage in self.pooled_stages]
        self.hidden_size = HEAD_WIDTH + sum(widths)

    @property
    def side(self) -> int:
        """Side of the resized picture in pixels."""
        return self.image_size or VARIANTS[self.variant][2]


class SameConv2d(nn.Conv2d):
    """Convolution with TensorFlow's "same" padding: ⌈size / stride⌉ outputs at every input size.

    With stride 2 the padding depends on the input's parity, and its odd pixel goes right and below.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1):
        padding = kernel // 2 if stride == 1 else 0
        super().__init__(inputs, outputs, kernel, stride, padding, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve x (B, C, H, W) to (B, C', ⌈H / stride⌉, ⌈W / stride⌉)."""
        if self.stride[0] > 1:
            height, width = (self.missing(size) for size in x.shape[-2:])
            x = F.pad(x, (width // 2, width - width // 2, height // 2, height - height // 2))
        return super().forward(x)

    def missing(self, size: int) -> int:
        """Pixels by which an axis of this size must grow."""
        kernel, stride = self.kernel_size[0], self.stride[0]
        return max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)


class InvertedResidual(nn.Module):
    """Widen, filter each channel by itself, narrow again (MobileNetV2, arXiv 1801.04381)."""

    def __init__(self, inputs: int, outputs: int, *, kernel: int, stride: int, expansion: int):
        super().__init__()
        inner = inputs * expansion
        self.expand = SameConv2d(inputs, inner, 1) if expansion > 1 else None
        self.depthwise = SameConv2d(inner, inner, kernel, stride, groups=inner)
        self.project = SameConv2d(inner, outputs, 1)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """Map x (B, C, H, W) to (B, C', ⌈H / stride⌉, ⌈W / stride⌉)."""
        y = x if self.expand is None else F.relu6(self.expand(x))
        y = self.project(F.relu6(self.depthwise(y)))
        return x + y if self.residual else y


class EfficientNetLiteModel(PreTrainedModel):
    """The encoder: pixel values to a grid of tokens, and ImageNet logits from them."""

    config: EfficientNetLiteConfig
    config_class = EfficientNetLiteConfig
    main_input_name = "pixel_values"
    base_model_prefix = "efficientnet_lite"
    _no_split_modules = ["InvertedResidual"]  # noqa: RUF012 - the name and form are transformers'

    def __init__(self, config: EfficientNetLiteConfig):
        super().__init__(config)
        width, depth, _ = VARIANTS[config.variant]
        self.stem = SameConv2d(config.num_channels, STEM_WIDTH, 3, stride=2)
        self.stages = nn.ModuleList()
        inputs = STEM_WIDTH
        for index, (blocks, kernel, stride, expansion, channels) in enumerate(STAGES):
            if 0 < index < len(STAGES) - 1:  # the outer stages keep their depth
                blocks = math.ceil(blocks * depth)
            outputs = round_width(channels * width)
            stage = nn.Sequential()
            for block in range(blocks):
                stage.append(
                    InvertedResidual(
                        inputs,
                        outputs,
                        kernel=kernel,
                        stride=stride if block == 0 else 1,
                        expansion=expansion,
                    )
                )
                inputs = outputs
            self.stages.append(stage)
        self.head = SameConv2d(inputs, HEAD_WIDTH, 1)
        self.classifier = nn.Linear(HEAD_WIDTH, config.num_classes)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d):  # keeps the activations' scale without normalisation
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
            nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
            nn.init.zeros_(module.bias)

    def forward(
        self, pixel_values: Tensor, output_hidden_states: bool = False, **kwargs: Any
    ) -> BaseModelOutputWithNoAttention:
        """Encode pictures.

        Args:
            pixel_values: (B, 3, H, W), normalised with the config's mean and deviation.
            output_hidden_states: Whether to return the output of every stage too.
            **kwargs: Options of other encoders, ignored.

        Returns:
            `last_hidden_state` (B, h·w, D), row by row; `hidden_states` if asked for: each stage's
            tokens (grids and widths differ), then `last_hidden_state`.
        """
        x = pixel_values.to(self.stem.weight.dtype, memory_format=torch.channels_last)
        x = F.relu6(self.stem(x))  # (B, 32, ⌈H/2⌉, ⌈W/2⌉)
        states, pooled = [], {}
        for index, stage in enumerate(self.stages):
            x = stage(x)
            if output_hidden_states:
                states.append(as_tokens(x))
            if index in self.config.pooled_stages:
                pooled[index] = x
        tokens = as_tokens(F.relu6(self.head(x)))
        grid = (x.shape[-2], x.shape[-1])
        means = [cell_means(pooled[index], grid) for index in self.config.pooled_stages]
        tokens = torch.cat([tokens, *means], -1)  # (B, h·w, D)
        return BaseModelOutputWithNoAttention(
            last_hidden_state=tokens,
            hidden_states=(*states, tokens) if output_hidden_states else None,
        )

    def logits(self, last_hidden_state: Tensor) -> Tensor:
        """ImageNet logits (B, 1000) from tokens (B, h·w, D); class 0 is the tench."""
        return self.classifier(last_hidden_state[..., :HEAD_WIDTH].mean(1))


def as_tokens(grid: Tensor) -> Tensor:
    """Reorder a grid (B, C, H, W) to tokens (B, H·W, C), row by row."""
    return grid.flatten(2).mT.contiguous()


def cell_means(stage: Tensor, grid: tuple[int, int]) -> Tensor:
    """Mean of a stage (B, C, H, W) over each cell of a coarser grid, as tokens of unit variance."""
    tokens = as_tokens(F.adaptive_avg_pool2d(stage, grid))
    return F.layer_norm(tokens, tokens.shape[-1:])


def round_width(width: float) -> int:
    """Round to the nearest multiple of 8 that loses no more than a tenth."""
    rounded = max(8, int(width + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * width else rounded


def fold_state_dict(
    published: dict[str, Tensor], config: EfficientNetLiteConfig
) -> dict[str, Tensor]:
    """Turn published EfficientNet-Lite weights into this model's, norms folded in.

    A convolution W followed by a normalisation γ (y − μ) / √(σ² + ε) + β is the convolution
    W γ / √(σ² + ε) with bias β − μ γ / √(σ² + ε).

    Args:
        published: Weights under the names of the PyTorch port of the TensorFlow originals.
        config: The variant they belong to.

    Returns:
        fp32 weights that `load_state_dict(strict=True)` accepts.

    Raises:
        KeyError: A tensor is missing.
        InputError: Tensors are left over: the weights belong to another variant.
    """
    left = {k: v for k, v in published.items() if not k.endswith("num_batches_tracked")}
    state: dict[str, Tensor] = {}

    def fold(name: str, conv: str, norm: str) -> None:
        gain, beta, mean, variance = (
            left.pop(f"{norm}.{part}").double()
            for part in ("weight", "bias", "running_mean", "running_var")
        )
        gain = gain / (variance + NORM_EPS).sqrt()
        weight = left.pop(f"{conv}.weight").double() * gain[:, None, None, None]
        state[f"{name}.weight"] = weight.float()
        state[f"{name}.bias"] = (beta - mean * gain).float()

    fold("stem", "_conv_stem", "_bn0")
    with torch.device("meta"):
        stages = EfficientNetLiteModel(config).stages
    places = [(s, b) for s, stage in enumerate(stages) for b in range(len(stage))]  # type: ignore[arg-type]
    for index, (stage, block) in enumerate(places):
        ours, theirs = f"stages.{stage}.{block}", f"_blocks.{index}"
        if f"{theirs}._expand_conv.weight" in left:
            fold(f"{ours}.expand", f"{theirs}._expand_conv", f"{theirs}._bn0")
        fold(f"{ours}.depthwise", f"{theirs}._depthwise_conv", f"{theirs}._bn1")
        fold(f"{ours}.project", f"{theirs}._project_conv", f"{theirs}._bn2")
    fold("head", "_conv_head", "_bn1")
    for part in ("weight", "bias"):
        state[f"classifier.{part}"] = left.pop(f"_fc.{part}")
    if left:
        raise InputError(
            f"not the weights of {config.variant}: {len(left)} tensors are left, as {min(left)}."
        )
    return state


AutoConfig.register(EfficientNetLiteConfig.model_type, EfficientNetLiteConfig)
AutoModel.register(EfficientNetLiteConfig, EfficientNetLiteModel)
