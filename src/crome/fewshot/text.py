"""Texts that libraries and files take."""


def printable(text: str) -> str:
    """A text with a mark in place of what is no character.

    Names of files need not be valid UTF-8, and JSON may hold half of a surrogate pair; neither can
    be printed, written or given to a tokenizer.
    """
    return text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")
