"""The forms in which data sets write a question and its answer, brought to one: a draft.

| form | keys |
|---|---|
| rows of this package | `question`, `answer` or `answers`, `choices`, `kind` |
| LLaVA, ShareGPT, chat APIs, TRL, ms-swift | `conversations` or `messages`: a list of turns |
| The Cauldron | `texts`: a list of `{"user", "assistant"}` |
| TRL | `prompt` and `completion`, texts or lists of messages |
| LAVIS | `text_input`, `text_output` |
| ms-swift | `query`, `response` |
| Alpaca | `instruction`, `input`, `output` |
| captions | `caption` or `captions`, or `text` beside a picture |

All may have `image`, `video` and `audio` (or their plurals), `id`, `system` and `history`. What a
draft holds is not checked yet: `crome.data.reader` reads its texts.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from crome.data.media import media_key
from crome.data.problems import show

CAPTION = "What does the picture show?"
"""The question of a caption that comes without one."""

TURNS = ("messages", "conversations", "conversation", "texts")
COMMON = frozenset(
    ("id", "image", "images", "video", "videos", "audio", "audios", "system", "system_prompt",
     "history")
)  # fmt: skip
ROW = frozenset(("question", "answer", "answers", "choices", "kind"))
PAIRS = (("text_input", "text_output"), ("query", "response"), ("instruction", "output"),
         ("prompt", "completion"), ("prompt", "response"))  # fmt: skip
CAPTIONS = ("caption", "captions", "text")
# Keys that data sets have beside those of a form, and that say nothing a row could lose.
BESIDE = {"text_input": {"image_id"}, "query": {"rejected_response"}, "instruction": {"input"}}

ASKS = frozenset(("human", "user"))
ANSWERS = frozenset(("gpt", "assistant", "model", "chatgpt", "bot"))
SYSTEM = frozenset(("system", "developer"))
SPOKEN = frozenset(("from", "value", "role", "content", "user", "assistant"))
"""Keys of a turn that say who speaks, and what."""
ONLY_READ = ("weight", "loss", "train")
"""Keys of an answer that is only read if they are 0 or false (OpenAI, ms-swift, Axolotl)."""

Report = Callable[[str, str, str], None]


ABSENT = object()


class Text(NamedTuple):
    """A text, or a message in parts, as an entry has it.

    Attributes:
        field: Where in the entry it stands.
        value: What stands there; `ABSENT` where the entry has no such key.
        parts: Whether a list is a message in parts, and not several answers.
    """

    field: str
    value: Any
    parts: bool = False


class Exchange(NamedTuple):
    """A question and its answer.

    Attributes:
        question: As the entry has it.
        answer: As the entry has it.
        learnt: Whether it becomes a row; otherwise it is only read as history.
        others: Further right answers.
    """

    question: Text
    answer: Text
    learnt: bool = True
    others: Text | None = None


@dataclass
class Draft:
    """What an entry asks and answers.

    Attributes:
        exchanges: In order.
        known: Keys of the entry that are used, or known to say nothing.
        system: The system message.
        strict: Whether the entry's id must be its own: ids of other forms often name pictures.
        dialogue: Whether each exchange is a row with an id of its own.
    """

    exchanges: list[Exchange]
    known: frozenset[str]
    system: Text | None = None
    strict: bool = False
    dialogue: bool = False


def draft(entry: dict[str, Any], report: Report) -> Draft | None:
    """The draft of an entry; None, and a report, where its turns make no sense.

    Args:
        entry: As it stands in the file.
        report: Takes up what is wrong.
    """
    key = next((key for key in TURNS if key in entry), None)
    if key is not None and not (key == "texts" and not isinstance(entry[key], list)):
        found = dialogue(key, entry[key], report)
        known = {key}
    elif isinstance(entry.get("prompt"), list) and isinstance(entry.get("completion"), list):
        found = dialogue("messages", [*entry["prompt"], *entry["completion"]], report)
        known = {"prompt", "completion"}
    else:
        return with_history(flat(entry), entry, report)
    if found is None:
        return None
    found.known = COMMON | known
    return with_system(found, entry, report)


def flat(entry: dict[str, Any]) -> Draft:
    """The draft of an entry whose question and answer are keys of their own."""
    pair = next((pair for pair in PAIRS if pair[0] in entry or pair[1] in entry), None)
    if entry.keys() & {"question", "answer", "answers"} or pair is None:
        return plain(entry)
    asks, answers = next((pair for pair in PAIRS if pair[0] in entry and pair[1] in entry), pair)
    question = entry.get(asks, ABSENT)
    extra = entry.get("input") if asks == "instruction" else None
    if isinstance(question, str) and isinstance(extra, str) and extra.strip():
        question = f"{question}\n{extra}"
    known = COMMON | {asks, answers, "choices", "kind"} | BESIDE.get(asks, set())
    return Draft([Exchange(Text(asks, question), Text(answers, entry.get(answers, ABSENT)))], known)


def plain(entry: dict[str, Any]) -> Draft:
    """The draft of a row of this package, or of a caption without a question."""
    caption = next((key for key in CAPTIONS if entry.get(key)), None)
    bare = not entry.keys() & {"question", "answer", "answers"}
    has_media = any(entry.get(key) for key in ("image", "images", "video", "videos"))
    if caption is not None and bare and (has_media or caption != "text"):
        exchange = Exchange(Text("question", CAPTION), Text(caption, entry[caption]))
        return Draft([exchange], COMMON | {caption, "kind"})
    key = "answer" if entry.get("answer") is not None or "answers" not in entry else "answers"
    others = Text("answers", entry["answers"]) if key == "answer" and entry.get("answers") else None
    exchange = Exchange(
        Text("question", entry.get("question", ABSENT)),
        Text(key, entry.get(key, ABSENT)),
        others=others,
    )
    return Draft([exchange], COMMON | ROW, strict=True)


def with_history(made: Draft, entry: dict[str, Any], report: Report) -> Draft:
    """A draft of one exchange behind the earlier ones that its entry lists."""
    history = entry.get("history") or []
    if not isinstance(history, list) or not all(
        isinstance(turn, list | tuple) and len(turn) == 2 for turn in history
    ):
        report("history", show(history), "a list of [question, answer]")
        history = []
    earlier = [
        Exchange(Text(f"history[{n}][0]", turn[0]), Text(f"history[{n}][1]", turn[1]), learnt=False)
        for n, turn in enumerate(history)
    ]
    made.exchanges = [*earlier, *made.exchanges]
    return with_system(made, entry, report)


def with_system(made: Draft, entry: dict[str, Any], report: Report) -> Draft:
    """A draft with the system message that its entry has beside the turns."""
    given = [key for key in ("system", "system_prompt") if entry.get(key) not in (None, "")]
    for beside in [Text(key, entry[key], parts=True) for key in given]:
        if made.system is None:
            made.system = beside
        elif beside.value != made.system.value:
            report(beside.field, f"another message than {made.system.field} has", "one of the two")
    return made


# ---------------------------------------------------------------------- turns


def dialogue(key: str, turns: Any, report: Report) -> Draft | None:
    """The draft of a list of turns.

    A last question without an answer is left out, and so is a first answer without a question
    (ShareGPT has some). Otherwise asking and answering take turns.

    Args:
        key: Key of the entry.
        turns: What stands under it.
        report: Takes up what is wrong.
    """
    listed = list(enumerate(turns)) if isinstance(turns, list) else []
    for number, turn in listed:
        for name in turn.keys() - SPOKEN if isinstance(turn, dict) else ():
            if medium := media_key(str(name), turn[name]):
                expected = f"the key {medium!r} of the row, beside {key}"
                report(f"{key}[{number}]", f"the key {show(name)}", expected)
    if listed and all(isinstance(turn, dict) and "user" in turn for turn in turns):
        return pairs_of(key, turns)
    made = Draft([], frozenset(), dialogue=True)
    if listed and role(listed[0][1]) in SYSTEM:
        number, turn = listed.pop(0)
        made.system = words(f"{key}[{number}]", turn)
    if len(listed) > 2 and role(listed[0][1]) in ANSWERS:
        listed.pop(0)
    if len(listed) < 2:
        report(key, show(turns), "a list of at least two turns")
        return None
    right = [
        check_turn(f"{key}[{number}]", turn, place % 2 == 0, report)
        for place, (number, turn) in enumerate(listed)
    ]
    if not all(right):
        return None
    for (first, question), (second, answer) in zip(listed[::2], listed[1::2], strict=False):
        made.exchanges.append(
            Exchange(
                words(f"{key}[{first}]", question),
                words(f"{key}[{second}]", answer),
                learnt=all(answer.get(mark) != 0 for mark in ONLY_READ),
            )
        )
    return made


def pairs_of(key: str, turns: list[dict[str, Any]]) -> Draft:
    """The draft of turns that each hold a question and its answer."""
    return Draft(
        [
            Exchange(
                Text(f"{key}[{number}].user", turn["user"]),
                Text(f"{key}[{number}].assistant", turn.get("assistant"), parts=True),
            )
            for number, turn in enumerate(turns)
        ],
        frozenset(),
        dialogue=True,
    )


def check_turn(field: str, turn: Any, asks: bool, report: Report) -> bool:
    """Whether a turn is of who is next to speak, and in words."""
    if role(turn) not in (ASKS if asks else ANSWERS):
        speaker, text = ("role", "content") if is_chat(turn) else ("from", "value")
        name = {"role": ("user", "assistant"), "from": ("human", "gpt")}[speaker][not asks]
        report(field, show(turn), f'a turn {{"{speaker}": "{name}", "{text}": …}}')
        return False
    if turn.get("tool_calls") or turn.get("function_call"):
        report(field, "a call of a tool", "text alone")
        return False
    return True


def role(turn: Any) -> str:
    """Who speaks in a turn, in small letters."""
    speaker = (turn.get("role") or turn.get("from")) if isinstance(turn, dict) else None
    return speaker.lower() if isinstance(speaker, str) else ""


def is_chat(turn: Any) -> bool:
    """Whether a turn is written as chat APIs write it, not as LLaVA."""
    return isinstance(turn, dict) and "role" in turn


def words(field: str, turn: dict[str, Any]) -> Text:
    """What is said in a turn."""
    keys = ("content", "value") if is_chat(turn) else ("value", "content")
    key = next((key for key in keys if turn.get(key) is not None), keys[0])
    return Text(f"{field}.{key}", turn.get(key), parts=True)
