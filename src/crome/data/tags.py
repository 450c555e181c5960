"""The marks that stand in a text for pictures, videos and recordings.

Data sets mark the place of a picture as the model they were made for does: `<image>` (LLaVA, TRL,
ms-swift), `<|vision_start|><|image_pad|><|vision_end|>` (Qwen2-VL), `<img>a.png</img>` (Qwen-VL),
`<start_of_image>` (Gemma 3), `<|image_1|>` (Phi-3). A mark that stayed in a text would be read as
words, so all of them are taken out, and where they stood is kept.
"""

import re
from typing import Any, NamedTuple

from crome.rows import Medium

_KINDS = {
    "image": (
        r"<\|vision_start\|>(?:<\|image_pad\|>)+<\|vision_end\|>",
        r"(?:<\|image_pad\|>)+",
        r"<\|image(?:_\d+)?\|>",
        r"<image(?:_placeholder|_soft_token|here)?>",
        r"<start_of_image>",
        r"(?-i:\[IMG\])",
    ),
    "video": (
        r"<\|vision_start\|>(?:<\|video_pad\|>)+<\|vision_end\|>",
        r"(?:<\|video_pad\|>)+",
        r"<\|?video\|?>",
    ),
    "audio": (
        r"<\|audio_bos\|>(?:<\|audio\|>)+<\|audio_eos\|>",
        r"(?:<\|audio_pad\|>)+",
        r"<\|?audio\|?>",
    ),
}
_TAG = re.compile(
    r"<img>(?P<file>[^<>\n]{1,1000})</img>|"
    + "|".join(f"(?P<{kind}>{'|'.join(forms)})" for kind, forms in _KINDS.items()),
    re.IGNORECASE,
)


class Mark(NamedTuple):
    """A picture, video or recording in a text.

    Attributes:
        medium: What it is.
        offset: In front of which character of the text it stands.
        source: What names it; None for the next of those that the entry names.
    """

    medium: Medium
    offset: int
    source: Any = None


def take_out(text: str) -> tuple[str, list[Mark]]:
    """A text without its marks and without white space around it, and the marks."""
    if "<" not in text and "[" not in text:  # most texts
        return text.strip(), []
    pieces: list[str] = []
    marks: list[Mark] = []
    start = length = 0
    for found in _TAG.finditer(text):
        pieces.append(text[start : found.start()])
        length += len(pieces[-1])
        medium: Any = "image" if found.lastgroup == "file" else found.lastgroup
        marks.append(Mark(medium, length, found["file"]))
        start = found.end()
    bare = "".join([*pieces, text[start:]])
    return bare.strip(), stripped(bare, marks)


def stripped(text: str, marks: list[Mark]) -> list[Mark]:
    """The marks of a text once the white space around it is gone."""
    lead, length = len(text) - len(text.lstrip()), len(text.strip())
    return [mark._replace(offset=min(max(0, mark.offset - lead), length)) for mark in marks]
