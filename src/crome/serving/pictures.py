"""Pictures from strangers, decoded within limits: data URIs and files' bytes, never a path."""

import base64
import binascii
import io
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

from PIL import Image, UnidentifiedImageError

from crome.errors import InputError
from crome.images import upright_rgb

FORMATS = ("JPEG", "PNG", "WEBP", "GIF")  # what OpenAI's API takes; of an animation the first frame
URL_SAFE = bytes.maketrans(b"-_", b"+/")
SPACES = b" \t\r\n\f\v"
BLOCK = 1 << 20  # characters, a multiple of four
LONGEST_HEAD = 1000  # characters of a data URI in front of its data
MAX_PERCENT = 1 << 20  # characters of a data URI that is not base64
MAX_SCANS = 100  # of a progressive JPEG; encoders write about ten


@dataclass(frozen=True)
class Pictures:
    """Opens pictures within limits.

    Attributes:
        max_bytes: Of one picture as it is sent.
        max_megapixels: Of one picture decoded.
    """

    max_bytes: int = 20 << 20
    max_megapixels: float = 25

    def open(self, url: str) -> Image.Image:
        """The picture in a data URI.

        Raises:
            InputError: It is no picture, too large, or an address of another kind.
        """
        if url[:5].lower() != "data:":
            raise InputError("it is neither a data: nor an http(s) URL.")
        return self.decode(self._data(url))

    def decode(self, data: bytes) -> Image.Image:
        """The picture in a file's bytes, as upright RGB; see `crome.images`."""
        if len(data) > self.max_bytes:
            raise InputError(f"it has {len(data):,} bytes; at most {self.max_bytes:,}.")
        try:
            with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
                megapixels = opened.width * opened.height / 1e6
                if megapixels > self.max_megapixels:
                    raise InputError(
                        f"it is {opened.width} × {opened.height}; expected at most "
                        f"{self.max_megapixels:g} megapixels. Scale it down first."
                    )
                # Each scan goes over all pixels and may have 40 bytes: hours of work in 20 MB.
                if opened.format in ("JPEG", "MPO") and data.count(b"\xff\xda") > MAX_SCANS:
                    raise InputError(f"it has more than {MAX_SCANS} scans.")
                return upright_rgb(opened, "it")
        except InputError:
            raise
        except (UnidentifiedImageError, Image.DecompressionBombError) as error:
            raise InputError(f"it is not one of {', '.join(FORMATS)}.") from error
        # Decoders raise whatever a broken file makes them trip over (SyntaxError, struct.error, …).
        except Exception as error:
            raise InputError("it cannot be decoded; it is damaged or cut off.") from error

    def _data(self, url: str) -> bytes:
        comma = url.find(",", 0, LONGEST_HEAD)
        if comma < 0:
            raise InputError("it is not of the form data:image/TYPE;base64,DATA.")
        if len(url) > self.max_bytes * 3 // 2 + LONGEST_HEAD:
            raise InputError(f"it is too large; at most {self.max_bytes:,} bytes.")
        if url[:comma].replace(" ", "").lower().endswith(";base64"):
            return from_base64(url[comma + 1 :])
        if len(url) > MAX_PERCENT:
            raise InputError("it is too large for anything but data:image/TYPE;base64,DATA.")
        return unquote_to_bytes(url[comma + 1 :])


def from_base64(text: str) -> bytes:
    """The data of a data URI, as encoders write it.

    They break lines, leave the padding out, use the alphabet for URLs, or escape some characters.
    Taken block by block, since other threads stand still while a function in C works on text.

    Raises:
        InputError: It is not base64.
    """
    if text.count("%") > len(text) // 8 + 100:  # base64 has little to escape
        raise InputError("its data is not base64.")
    data, start = bytearray(), 0
    while start < len(text):
        end = start + BLOCK
        if text[end - 1 : end] == "%":  # an escape is not cut through
            end += 2
        elif text[end - 2 : end - 1] == "%":
            end += 1
        part = text[start:end]
        plain = unquote_to_bytes(part) if "%" in part else part.encode(errors="replace")
        data += plain.translate(URL_SAFE, SPACES)
        start = end
    data = data.rstrip(b"=")
    data += b"=" * (-len(data) % 4)
    try:
        blocks = [
            base64.b64decode(data[i : i + BLOCK], validate=True) for i in range(0, len(data), BLOCK)
        ]
    except (binascii.Error, ValueError) as error:
        raise InputError("its data is not base64.") from error
    return b"".join(blocks)
