"""Features kept on disk, one file for each picture and encoder."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from crome.storage import cache_folder, replaced


class Store:
    """Rows by name, for one encoder.

    A file is written under a random name and moved into place. It is not forced to the disk, as
    there are many: one that a power cut has spoilt is made again.

    Args:
        encoder: Fingerprint of the encoder, and its device where that is not the CPU.
        folder: Folder of all encoders; by default ``crome/fewshot`` in the user's cache folder.
    """

    def __init__(self, encoder: str, folder: Path | None = None) -> None:
        self.folder = (folder or cache_folder() / "fewshot") / encoder

    def load(self, name: str, rows: int) -> NDArray[np.float32] | None:
        """The rows (rows, width) under a name; None where there are none, or not so many."""
        try:
            found = np.load(self.folder / f"{name}.npy", allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return None
        return found if found.ndim == 2 and len(found) == rows else None

    def keep(self, name: str, rows: NDArray[np.float32]) -> None:
        """Write rows under a name.

        Raises:
            JobError: The disk does not take them.
        """
        with replaced(self.folder / f"{name}.npy", durable=False) as partial:
            with partial.open("wb") as file:
                np.save(file, rows)
