"""Reading a model's reply by this project's own rules, where no official rule demands others.

`option_letter` is the strict reading of a multiple-choice reply: an option's text, or a letter that
is set off from other words. `tolerant_letter` also finds the letter that a chatty or reasoning
model states somewhere in its reply. Both return None rather than guess.
"""

import re
from collections.abc import Mapping

from crome.matching import half_width, plain

_THOUGHT = re.compile(
    r"<(think|thinking|thought|reasoning)>.*?</\1>|◁think▷.*?◁/think▷", re.S | re.I
)
_OPENED = re.compile(r"<(?:think|thinking|thought|reasoning)>|◁think▷", re.I)
_CLOSED = re.compile(r"</(?:think|thinking|thought|reasoning)>|◁/think▷", re.I)

_SET_OFF = r"[(\[（【\"'“‘]?\s*([{letters}])\s*[)\]）】\"'”’]?"
# Several letters are no answer: "A or B", "A, B", "A / B".
_NEXT = r"[(\[（【]?[{letters}]"
_AND_MORE = (
    rf"\s*[)\]）】]?\s*(?:(?:and|or|nor|[/&+、])\s*{_NEXT}(?!\w)"
    rf"|[,;]\s*{_NEXT}\s*(?:$|[).,;\]]|and\b|or\b))"
)
_BOXED = re.compile(r"\\boxed\s*\{\s*(?:\\(?:text|textbf|mathrm|mathbf)\s*\{)?([^{}]*)\}?\s*\}")
_BOLD = re.compile(r"\*\*\s*([^*\n]+?)\s*\*\*|__\s*([^_\n]+?)\s*__")
_STATES = (
    r"(?:answer|answers|option|choice|choose|chose|select|pick)\b(?:\s+(?:letter|option|choice))?"
    r"\s*(?:is|was|would be|should be|must be|are)?\s*(?:therefore|thus|clearly)?\s*[:：=]?\s*",
    r"(?:答案|正确答案|选项|正确选项|选择|應選|应选|选|選)\s*(?:应该|應該|应)?\s*(?:是|为|為)?\s*[:：]?\s*",
    r"(?:antwort|réponse|respuesta|risposta|resposta|ответ|答え|正解|정답)\s*"
    r"(?:ist|est|es|è|é|は|은|는|:|：|—|-)*\s*[:：]?\s*",
)
_RIGHT = r"(?:correct|right|best|most|answer)"
_MARKUP = re.compile(
    r"\\(?:text|textbf|mathrm|mathbf)\s*\{([^{}]*)\}|</?\|?/?\w+\|?>|[*`${}\"]|\\[()\[\]]"
)


def without_reasoning(reply: str) -> str:
    """A reply without what stands between `<think>` and `</think>`.

    Templates may open the block in the prompt, so that the reply holds the closing tag alone; a
    block that is never closed was cut off, and no answer follows it.
    """
    if "<" not in reply and "◁" not in reply:
        return reply
    rest = _THOUGHT.sub("", reply)
    rest = _CLOSED.split(rest)[-1]
    opened = _OPENED.search(rest)
    rest = rest[: opened.start()] if opened else rest
    return rest.strip() if rest != reply else reply


def option_letter(reply: str, options: Mapping[str, str]) -> str | None:
    """The option that a short reply names: its letter, its text, or both.

    A letter counts by its place among the options, also where an option's text is another letter.
    It must stand alone or be set off by brackets, a full stop, a colon or a comma: the "a" of "a
    dog" is a word.

    Args:
        reply: Without reasoning.
        options: Letter → text.
    """
    reply = half_width(reply)
    bare = re.fullmatch(_only(options), reply.strip().rstrip(".。"), re.I)
    if bare:
        return bare[1].upper()
    if found := by_text(reply, options):
        return found
    letters = _letters(options)
    bracketed = rf"[(\[（【]\s*([{letters}{letters.lower()}])\s*[)\]）】]"
    pointed = rf"([{letters}])\s*[.):,、]|([{letters.lower()}])\s*\)"
    lettered = re.match(rf"\s*(?:{bracketed}|{pointed})\s*(.*)", reply, re.S)
    if lettered:
        *groups, rest = lettered.groups()
        # A reply that lists several options names none of them.
        several = re.search(rf"(?<!\w)(?:{bracketed}|[{letters}]\s*[.):])(?!\w)", rest)
        several = several or _several(letters).match(reply.strip())
        return None if several else next(group for group in groups if group).upper()
    first, _, rest = reply.strip().partition(" ")
    return by_text(rest, options) if first.upper() in options else None


def tolerant_letter(reply: str, options: Mapping[str, str]) -> str | None:
    r"""The option that a reply names anywhere, the most explicit statement first.

    In this order: what `option_letter` reads; `\boxed{C}`; the last statement such as "Answer: C",
    "the answer is (C)" or "答案是C"; the last bold letter; a letter alone on the first or last
    line, or at the very end; the only letter in brackets; the only option whose text is mentioned.

    Args:
        reply: Without reasoning.
        options: Letter → text.
    """
    reply = half_width(reply)
    if found := option_letter(reply, options):
        return found
    for pattern in (_BOXED, None, _BOLD):
        stated = (
            _statements(reply, options) if pattern is None else _marked(pattern, reply, options)
        )
        if stated:
            return stated
    text = _without_markup(reply).strip()
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    for line in [*lines[-1:], *lines[:1]]:
        if found := option_letter(line, options):
            return found
    letters = _letters(options)
    ending = re.search(rf"(?<!not )(?<![\w'’])([{letters}])[\s.!。）)\]]*$", text)
    if ending and not _several(letters).search(lines[-1]):
        return ending[1]
    bracketed = set(re.findall(rf"[(\[（【]\s*([{letters}])\s*[)\]）】]", text))
    if len(bracketed) == 1:
        return str(bracketed.pop())
    return mentioned(text, options)


def by_text(reply: str, options: Mapping[str, str]) -> str | None:
    """The first option whose text is the reply but for case, outer space and a final full stop."""
    text = plain(reply)
    return next((k for k, option in options.items() if text and plain(option) == text), None)


def letter_text(options: Mapping[str, str], answer: str) -> str:
    """The text of the option whose letter is given; any other answer as it is.

    An option's own text comes before a letter: the answer "A" is the option "A" where there is one.
    """
    return answer if answer in options.values() else options.get(answer, answer)


def mentioned(reply: str, options: Mapping[str, str]) -> str | None:
    """The only option whose text stands in the reply as whole words.

    An option within another's mention ("red" in "dark red") is not mentioned on its own.
    """
    rest, found = plain(reply), []
    for letter, option in sorted(options.items(), key=lambda item: -len(item[1])):
        pattern = rf"(?<!\w){re.escape(plain(option))}(?!\w)"
        if plain(option) and re.search(pattern, rest):
            found.append(letter)
            rest = re.sub(pattern, " ", rest)
    return found[0] if len(found) == 1 else None


def tolerant_yes_no(reply: str) -> str | None:
    r"""Yes or no: the first word, `\boxed{no}`, the last "the answer is yes", the only one of both.

    Args:
        reply: Without reasoning.
    """
    words = re.findall(r"\w+", reply.lower())
    if len(words) == 1 and words[0] in ("true", "false"):
        return "yes" if words[0] == "true" else "no"
    if words[1:2] in (["and"], ["or"]) and {words[0], *words[2:3]} == {"yes", "no"}:
        return None
    if words and words[0] in ("yes", "no"):
        return words[0]
    patterns = (
        r"boxed\s*\{\s*(?:\\text\s*\{)?\s*(yes|no)\b",
        r"answer\s*(?:is|:|：|=)*\s*[\"'*(]*\s*(yes|no)\b",
        r"\*\*\s*(yes|no)\b",
    )
    for pattern in patterns:
        if stated := re.findall(pattern, reply.lower()):
            return str(stated[-1])
    found = {word for word in words if word in ("yes", "no")}
    return found.pop() if len(found) == 1 else None


def _statements(reply: str, options: Mapping[str, str]) -> str | None:
    """The last letter, or option's text, that a phrase such as "the answer is" introduces."""
    text = _without_markup(reply)
    letters = _letters(options)
    letter = rf"[(\[（【\"'“]?\s*([{letters}{letters.lower()}])(?![A-Za-z0-9_'’])"
    found: list[tuple[int, str]] = []
    for phrase in _STATES:
        for match in re.finditer(phrase + letter, text, re.I):
            # "the answer is a dog": a small letter before a word is an article.
            article = match[1].islower() and re.match(r"\s+\w", text[match.end() :])
            if not article and not re.match(_AND_MORE.format(letters=letters), text[match.end() :]):
                found.append((match.start(1), match[1].upper()))
        for match in re.finditer(phrase + r"([^\n]+)", text, re.I):
            if option := by_text(match[1].strip(" \"'“”"), options):
                found.append((match.start(1), option))
    for match in re.finditer(rf"(?<![\w'’])([{letters}])[)\]）]?\s+is\s+(?:the\s+)?{_RIGHT}", text):
        found.append((match.start(1), match[1]))
    return max(found)[1] if found else None


def _marked(pattern: re.Pattern[str], reply: str, options: Mapping[str, str]) -> str | None:
    """The option in the last box or bold run that names one."""
    for match in reversed(list(pattern.finditer(reply))):
        inner = next(group for group in match.groups() if group is not None)
        if found := option_letter(inner, options):
            return found
    return None


def _letters(options: Mapping[str, str]) -> str:
    return "".join(options) or "A-Z"


def _without_markup(reply: str) -> str:
    return _MARKUP.sub(lambda match: match[1] or " ", reply)


def _several(letters: str) -> re.Pattern[str]:
    """A letter that is followed by another one as its equal."""
    return re.compile(rf"(?<!\w)[(\[（【]?[{letters}]" + _AND_MORE.format(letters=letters))


def _only(options: Mapping[str, str]) -> str:
    """A letter and nothing else, in brackets or not."""
    return rf"\s*{_SET_OFF.format(letters=_letters(options))}\s*[.)）:：]?\s*"
