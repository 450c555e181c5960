"""Recordings as files or samples → mono samples at the rate that a model hears."""

import math
import os
import warnings
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np

from crome.errors import InputError

WAV = (".wav", ".wave")
SIZED: dict[bytes, Literal["little", "big"]] = {b"RIFF": "little", b"RIFX": "big"}
"""How WAV begins where it says how long it is, and the order of the bytes in which it does."""
RIFF = (*SIZED, b"RF64")
"""How files of WAV begin, whatever their names are."""

UNKNOWN = 0x7FFF_0000
"""Bytes from which on a header says that nobody knew how long the recording would get."""

# Further chunks of a file (titles, marks) are passed over, and that helps nobody to know.
warnings.filterwarnings("ignore", message=r"Chunk \(non-data\) not understood")
warnings.filterwarnings("ignore", message="Reached EOF prematurely")  # of an UNKNOWN length


def check_sound(path: Path) -> None:
    """Refuses a file that is no recording; of formats that need a library it reads only the size.

    Raises:
        InputError: There is no such file, or it is damaged or empty.
    """
    try:
        size = path.stat().st_size
    except OSError as error:
        raise InputError(f"no recording {path}; expected an existing file.") from error
    if not size:
        raise InputError(f"{path} is empty; leave the row out.")
    if path.suffix.lower() in WAV:
        load_sound(path, 16_000)


def load_sound(path: Path, rate: int) -> Any:
    """(samples,) of a file in mono; WAV by itself, other formats where a library reads them.

    Args:
        path: The file.
        rate: Samples a second that are wanted.

    Raises:
        InputError: There is no such file, it is damaged or empty, or nothing here reads it.
    """
    remedy = "export it again as WAV"
    try:
        with path.open("rb") as file:
            is_wav = file.read(4) in RIFF
        if not is_wav and path.suffix.lower() not in WAV:
            remedy = "give WAV, or install crome[sound]"
            samples = decoded(path, rate)
        else:
            samples = wav(path, rate)
    except FileNotFoundError as error:
        raise InputError(f"no recording {path}; expected an existing file.") from error
    except Exception as error:  # whatever a decoder trips over, or its package is missing
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:120]
        raise InputError(f"{path} cannot be heard ({reason}); {remedy}.") from error
    return sounding(samples, str(path))


def decoded(path: Path, rate: int) -> Any:
    """(samples,) of a file of another format."""
    from transformers.audio_utils import load_audio  # takes longer than a check of a file of rows

    return load_audio(str(path), sampling_rate=rate)


def wav(path: Path, rate: int) -> Any:
    """(samples,) of a WAV file of whole or floating point numbers, any rate and channels."""
    with path.open("rb") as file:
        return resampled(*wav_samples(file), rate)


def wav_samples(file: BinaryIO) -> tuple[Any, int]:
    """(samples,) of an open WAV file, and how many of them are a second.

    Raises:
        ValueError: It is no WAV, or ends before its header says.
    """
    from scipy.io import wavfile  # takes longer to import than all else here

    kind, size = file.read(4), file.read(4)
    if kind not in RIFF:
        raise ValueError("it does not begin as WAV does")
    said = int.from_bytes(size, SIZED.get(kind, "little"))
    if kind in SIZED and said < UNKNOWN and said + 8 > file.seek(0, os.SEEK_END) + 1:
        raise ValueError("it ends before its header says")
    file.seek(0)
    rate, samples = wavfile.read(file)
    return mono(samples), rate


def resampled(samples: Any, found: int, rate: int) -> Any:
    """(samples,) at another number of samples a second."""
    from scipy.signal import resample_poly

    if found == rate or not len(samples):
        return samples
    shared = math.gcd(found, rate)
    return resample_poly(samples, rate // shared, found // shared).astype(np.float32)


def mono(samples: Any) -> Any:
    """(samples,) between -1 and 1 of (samples,) or (samples, channels) numbers of any type."""
    if samples.dtype.kind == "u":
        samples = (samples.astype(np.float32) - 128) / 128  # 8 bits
    elif samples.dtype.kind == "i":
        samples = samples.astype(np.float32) / -float(np.iinfo(samples.dtype).min)
    samples = samples.astype(np.float32)
    return samples if samples.ndim == 1 else samples.mean(1)


def given_samples(sound: Any) -> Any:
    """(samples,) of what is given as numbers, which are taken to be at the model's rate.

    Raises:
        InputError: They are no recording.
    """
    array = np.asarray(sound.detach().cpu() if hasattr(sound, "detach") else sound)
    if array.ndim == 2 and 1 in array.shape:
        array = array.reshape(-1)
    if array.ndim != 1 or array.dtype.kind not in "fiu":
        raise InputError(
            f"a recording is {type(sound).__name__} of shape {array.shape}; expected a file, or "
            "(samples,) in mono at the model's sampling rate."
        )
    return sounding(mono(array), "a recording")


def sounding(samples: Any, named: str) -> Any:
    """Samples as they are.

    Raises:
        InputError: There are none, or some are no numbers.
    """
    if not len(samples):
        raise InputError(f"{named} has no samples; leave the row out.")
    if not np.isfinite(samples).all():
        raise InputError(f"{named} has samples that are no numbers; record it again.")
    return samples
