"""Recordings from strangers, decoded within limits: WAV, and what soundfile reads where it is."""

import io
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from crome.errors import InputError
from crome.serving.data_uris import data_of
from crome.sounds import RIFF, mono, resampled, sounding, wav_samples

RATES = range(1_000, 96_001)  # samples a second; a filter for a stranger one takes gigabytes


@dataclass(frozen=True)
class Recordings:
    """Opens recordings within limits.

    Attributes:
        max_bytes: Of one recording as it is sent.
        max_seconds: Of one recording decoded.
    """

    max_bytes: int = 20 << 20
    max_seconds: float = 600

    def open(self, given: str, rate: int) -> Any:
        """(samples,) of a recording in a data URI, or in base64 alone as OpenAI's API has it.

        Args:
            given: By the client.
            rate: Samples a second that the model hears.

        Raises:
            InputError: It is no recording, too long, or of a format that nothing here reads.
        """
        url = given if ":" in given[:10] else f"data:;base64,{given}"
        return self.decode(data_of(url, self.max_bytes, "data:audio/TYPE;base64,DATA"), rate)

    def decode(self, data: bytes, rate: int) -> Any:
        """(samples,) of a file's bytes in mono at a rate."""
        if len(data) > self.max_bytes:
            raise InputError(f"it has {len(data):,} bytes; at most {self.max_bytes:,}.")
        try:
            samples, found = self._samples(data)
        except InputError:
            raise
        # Decoders raise whatever a broken file makes them trip over.
        except Exception as error:
            raise InputError(
                "it cannot be decoded; it is damaged, cut off, or WAV of a kind that is not read "
                "here. Send whole or floating point numbers."
            ) from error
        check_rate(found)
        if len(samples) > found * self.max_seconds:
            raise InputError(f"it lasts more than {self.max_seconds:g} s; send it in pieces.")
        return sounding(resampled(samples, found, rate), "it")

    def _samples(self, data: bytes) -> tuple[Any, int]:
        if data[:4] in RIFF:
            return wav_samples(io.BytesIO(data))
        try:
            import soundfile
        except ImportError as error:
            raise InputError("it is not WAV, and this server has no crome[sound].") from error
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            check_rate(file.samplerate)
            # Silence is small when it is packed: read no more than what is taken, a second a time.
            blocks = islice(
                file.blocks(file.samplerate, dtype="float32"), int(self.max_seconds) + 1
            )
            return np.concatenate(list(map(mono, blocks))), file.samplerate


def check_rate(rate: int) -> None:
    """Refuses numbers of samples a second that no recorder has.

    Raises:
        InputError: With those that are taken.
    """
    if rate not in RATES:
        raise InputError(
            f"it has {rate:,} samples a second; expected {RATES[0]:,} to {RATES[-1]:,}."
        )
