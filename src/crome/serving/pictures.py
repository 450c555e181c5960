"""Pictures from strangers, decoded within limits: data URIs and files' bytes, never a path."""

import io
from dataclasses import dataclass

from PIL import Image, UnidentifiedImageError

from crome.errors import InputError
from crome.images import upright_rgb
from crome.serving.data_uris import data_of

FORMATS = ("JPEG", "PNG", "WEBP", "GIF")  # what OpenAI's API takes; of an animation the first frame
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
        return self.decode(data_of(url, self.max_bytes, "data:image/TYPE;base64,DATA"))

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
