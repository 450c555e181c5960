"""Whether a free answer says the same as the expected one."""

import unicodedata

_FULL_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {0x3000: 0x20}


def exact_match(response: str, answer: str) -> float:
    """1 when both say the same but for case, space, full-width forms and a final full stop."""
    return float(plain(response) == plain(answer))


def plain(text: str) -> str:
    """A short answer in the form that answers are compared in.

    Unicode is composed, full-width Latin letters, digits and marks become ordinary ones, runs of
    space become one, case is folded, and full stops of any script at the end are dropped.
    """
    composed = unicodedata.normalize("NFC", half_width(text))
    return " ".join(composed.split()).rstrip(".。｡। ").casefold()


def half_width(text: str) -> str:
    """Full-width Latin letters, digits and marks as ordinary ones."""
    return text.translate(_FULL_WIDTH)
