"""Data that stands in an address itself: `data:TYPE;base64,DATA`, as encoders write it."""

import base64
import binascii
from urllib.parse import unquote_to_bytes

from crome.errors import InputError

URL_SAFE = bytes.maketrans(b"-_", b"+/")
SPACES = b" \t\r\n\f\v"
BLOCK = 1 << 20  # characters, a multiple of four
LONGEST_HEAD = 1000  # characters of a data URI in front of its data
MAX_PERCENT = 1 << 20  # characters of a data URI that is not base64


def data_of(url: str, max_bytes: int, form: str) -> bytes:
    """The data in a data URI.

    Args:
        url: The whole URI.
        max_bytes: Of the data.
        form: What is expected, as `data:image/TYPE;base64,DATA`, for errors.

    Raises:
        InputError: It is an address of another kind, too large, or damaged.
    """
    if url[:5].lower() != "data:":
        raise InputError("it is neither a data: nor an http(s) URL.")
    comma = url.find(",", 0, LONGEST_HEAD)
    if comma < 0:
        raise InputError(f"it is not of the form {form}.")
    if len(url) > max_bytes * 3 // 2 + LONGEST_HEAD:
        raise InputError(f"it is too large; at most {max_bytes:,} bytes.")
    if url[:comma].replace(" ", "").lower().endswith(";base64"):
        return from_base64(url[comma + 1 :])
    if len(url) > MAX_PERCENT:
        raise InputError(f"it is too large for anything but {form}.")
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
