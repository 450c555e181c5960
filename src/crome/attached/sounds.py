"""Recordings as files or samples → mono samples at the rate that a model hears."""

import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from transformers.audio_utils import load_audio

from crome.errors import InputError

RIFF = (b"RIFF", b"RIFX", b"RF64")
"""How files of WAV begin."""


def load_sound(path: Path, rate: int) -> Any:
    """(samples,) of a file in mono; WAV by itself, other formats where a library reads them.

    Args:
        path: The file.
        rate: Samples a second that are wanted.

    Raises:
        InputError: There is no such file, it is damaged or empty, or nothing here reads it.
    """
    try:
        with path.open("rb") as file:
            is_wav = file.read(4) in RIFF
        samples = wav(path, rate) if is_wav else load_audio(str(path), sampling_rate=rate)
    except FileNotFoundError as error:
        raise InputError(f"no recording {path}; expected an existing file.") from error
    except Exception as error:  # whatever a decoder trips over, or its package is missing
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:120]
        raise InputError(
            f"{path} cannot be heard ({reason}); give WAV, or for other formats install soundfile "
            "and soxr, or torchcodec (extra `video`)."
        ) from error
    return sounding(samples, str(path))


def wav(path: Path, rate: int) -> Any:
    """(samples,) of a WAV file of whole or floating point numbers, any rate and channels."""
    from scipy.io import wavfile  # scipy.signal takes longer to import than all else here
    from scipy.signal import resample_poly

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found, samples = wavfile.read(path)
    if any("EOF" in str(one.message) for one in told):
        raise ValueError("it ends before its header says")
    samples = mono(samples)
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
    array = sound.detach().cpu().numpy() if isinstance(sound, Tensor) else np.asarray(sound)
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
