"""The marks that stand in a text for pictures, videos and recordings.

Data sets mark the place of a picture as the model they were made for does: `<image>` (LLaVA, TRL,
ms-swift), `<|vision_start|><|image_pad|><|vision_end|>` (Qwen2-VL), `<img>a.png</img>` (Qwen-VL),
`<img><IMG_CONTEXT></img>` (InternVL), `<start_of_image>` (Gemma 3), `<|image_1|>` (Phi-3),
`<image 1>` (MMMU). A mark that stayed in a text would be read as words, so all of them are taken
out with what surrounds them, and where they stood is kept.
"""

import re
from typing import Any, NamedTuple

from crome.rows import Medium

_KINDS = {
    "image": (
        r"<\|vision_start\|>(?:<\|image_pad\|>)*<\|vision_end\|>",
        r"(?:<\|image_pad\|>)+",
        r"(?:<\|(?:image_start|begin_of_image)\|>)?<\|image(?:_(?P<image_n1>\d+))?\|>"
        r"(?:<\|(?:image_end|end_of_image)\|>)?",
        r"<\|img\|>",
        r"<img>(?:<img_context>)*</img>",
        r"(?:<img_context>)+",
        r"\(<image>\./</image>\)",
        r"(?:<fake_token_around_image>)?<image>(?:<fake_token_around_image>)?",
        r"<image[ _-]?(?P<image_n2>\d+)>",
        r"<image(?:[_-]?placeholder|_soft_token|here)>",
        r"<start_of_image>(?:<image_soft_token>)*(?:<end_of_image>)?",
        r"(?-i:\[IMG\](?:\[IMG_BREAK\]|\[IMG_END\])*)",
    ),
    "video": (
        r"<\|vision_start\|>(?:<\|video_pad\|>)+<\|vision_end\|>",
        r"(?:<\|video_pad\|>)+",
        r"<\|?video\|?>",
        r"<\|video_(?P<video_n1>\d+)\|>",
        r"<video[ _-]?(?P<video_n2>\d+)>",
        r"<(?:video_soft_token|vila/video)>",
    ),
    "audio": (
        r"<\|audio_bos\|>(?:<\|audio\|>)+<\|audio_eos\|>",
        r"(?:<\|audio_pad\|>)+",
        r"<\|?audio\|?>",
        r"<\|audio_(?P<audio_n1>\d+)\|>",
        r"<audio[ _-]?(?P<audio_n2>\d+)>",
        r"<(?:audio_soft_token|start_of_audio|sound|speech)>",
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
        source: What names it; None for one of those that the entry names.
        number: Which of those, where the mark has a number; None for the next.
    """

    medium: Medium
    offset: int
    source: Any = None
    number: int | None = None


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
        marks.append(mark(found, length))
        start = found.end()
    bare = "".join([*pieces, text[start:]])
    return bare.strip(), stripped(bare, marks)


def mark(found: re.Match[str], offset: int) -> Mark:
    """A mark from its place in a text."""
    medium: Any = "image" if found["file"] else next(kind for kind in _KINDS if found[kind])
    number = found[f"{medium}_n1"] or found[f"{medium}_n2"]
    return Mark(medium, offset, found["file"], None if number is None else int(number))


def stripped(text: str, marks: list[Mark]) -> list[Mark]:
    """The marks of a text once the white space around it is gone."""
    lead, length = len(text) - len(text.lstrip()), len(text.strip())
    return [one._replace(offset=min(max(0, one.offset - lead), length)) for one in marks]
