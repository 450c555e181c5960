"""The small picture set that comes with the package: 1,160 images of Fashion-MNIST (MIT)."""

from pathlib import Path

from PIL import Image

CLASSES = (
    "T-shirt", "trouser", "pullover", "dress", "coat",
    "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip
SHEET = Path(__file__).parent / "fashion_mnist.png"
SIDE, TRAIN, TEST = 28, 16, 100


def unpack_sample(folder: Path) -> Path:
    """Write the pictures as a folder per class under ``train`` and ``test``.

    Args:
        folder: Target; files already there are kept.

    Returns:
        The folder.
    """
    with Image.open(SHEET) as sheet:
        for row, name in enumerate(CLASSES):
            for column in range(TRAIN + TEST):
                part = "train" if column < TRAIN else "test"
                path = folder / part / name / f"{column:03d}.png"
                if path.exists():
                    continue
                path.parent.mkdir(parents=True, exist_ok=True)
                left, top = column * SIDE, row * SIDE
                sheet.crop((left, top, left + SIDE, top + SIDE)).save(path)
    return folder
