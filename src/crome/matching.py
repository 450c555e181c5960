"""Whether a free answer says the same as the expected one."""


def exact_match(response: str, answer: str) -> float:
    """1 when both say the same but for case, outer space, and a full stop at the end."""
    return float(_plain(response) == _plain(answer))


def _plain(text: str) -> str:
    return text.strip().rstrip(".").strip().casefold()
