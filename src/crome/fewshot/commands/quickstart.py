"""``crome fewshot quickstart``: fit, test and explain in one go."""

from pathlib import Path
from typing import TYPE_CHECKING

from crome.fewshot.commands.explain import explain
from crome.fewshot.commands.fit import fit
from crome.fewshot.commands.terminal import Precision, show

if TYPE_CHECKING:
    from crome.fewshot.commands.fit import Validation


def quickstart(
    images: Path | None = None,
    out: Path = Path("fewshot-quickstart"),
    encoder: str = "bridge",
    device: str | None = None,
    dtype: Precision | None = None,
) -> None:
    """Fit on 16 pictures per class, test, and draw why: under a minute on a CPU.

    Args:
        images: Folder with one folder per class; by default the small Fashion-MNIST sample that
            comes with the package (10 classes, 16 training and 100 test pictures each).
        out: Folder of the classifier and the picture.
        encoder: See `crome fewshot fit`.
        device: See `crome fewshot fit`.
        dtype: See `crome fewshot fit`.
    """
    from crome.fewshot.data.draws import draw_shots
    from crome.fewshot.data.reading import read_images
    from crome.fewshot.data.sample import unpack_sample

    source = unpack_sample(out / "fashion-mnist") if images is None else images
    file = out / "classifier.safetensors"
    # All pictures of the sample train and cross-validation selects: it has no others to select on.
    val: Validation = "none" if images is None else "few"
    fit(source, file, encoder=encoder, views=0, val=val, seed=1, device=device, dtype=dtype)
    left = draw_shots(read_images(source), 16, 1, val=val).test
    first = {item.label: item.path for item in reversed(left)}
    if chosen := [first[label] for label in sorted(first)[:8]]:
        explain(file, chosen, out / "explanation.png", device=device, dtype=dtype)
    show(
        f"next: crome fewshot predict {file} PHOTO.jpg, or your own pictures, a folder per class: "
        "crome fewshot fit FOLDER"
    )
