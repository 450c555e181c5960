"""Features kept on disk, one file for each picture and encoder."""

from hashlib import blake2b
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from crome.storage import cache_folder, mark_used, replaced


class Store:
    """Rows by name, for one encoder.

    A file is written under a random name and moved into place. It is not forced to the disk, as
    there are many: its last bytes are a checksum, and one that a power cut has spoilt is made
    again. Files of earlier versions have none.

    Args:
        encoder: Fingerprint of the encoder, and its device where that is not the CPU.
        folder: Folder of all encoders; by default ``crome/fewshot`` in the user's cache folder.
    """

    def __init__(self, encoder: str, folder: Path | None = None) -> None:
        self.folder = (folder or cache_folder() / "fewshot") / encoder
        mark_used(self.folder)

    def load(self, name: str, rows: int) -> NDArray[np.float32] | None:
        """The rows (rows, width) under a name; None where there are none, or not so many."""
        try:
            content = (self.folder / f"{name}.npy").read_bytes()
            file = BytesIO(content)
            found = np.lib.format.read_array(file, allow_pickle=False)
        except (OSError, ValueError, EOFError, MemoryError, OverflowError):
            return None
        end = file.tell()
        whole = content[end:] in (b"", checksum(content[:end]))
        fits = found.dtype == np.float32 and found.ndim == 2 and len(found) == rows
        return found if whole and fits and np.isfinite(found).all() else None

    def keep(self, name: str, rows: NDArray[np.float32]) -> None:
        """Write rows under a name.

        Raises:
            JobError: The disk does not take them.
        """
        file = BytesIO()
        np.save(file, rows)
        with replaced(self.folder / f"{name}.npy", durable=False) as partial:
            partial.write_bytes(file.getvalue() + checksum(file.getvalue()))


def checksum(content: bytes) -> bytes:
    """Eight bytes that stand for many."""
    return blake2b(content, digest_size=8).digest()
