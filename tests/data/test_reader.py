"""Readers, row checks and `crome validate`."""

import base64
import json
import logging
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from crome.data.media import unpacked
from crome.data.reader import read_rows
from crome.errors import InputError, JobError


def write(folder: Path, *entries, name: str = "data.jsonl") -> Path:
    """Write JSON lines; entries that are text are written as they are."""
    file = folder / name
    lines = [entry if isinstance(entry, str) else json.dumps(entry) for entry in entries]
    file.write_text("\n".join(lines) + "\n")
    return file


def row(**changes):
    fields = {"image": "a.png", "question": "What color?", "answer": "red"} | changes
    return {key: value for key, value in fields.items() if value is not ...}


def test_rows_of_the_contract(folder):
    file = write(
        folder,
        row(question=" What color?\n"),
        "",
        row(image=["a.png", "b.jpg"], id=7, choices=["red", "blue"], kind="color"),
        row(image=...),
    )
    one, two, three = read_rows(file)
    assert one.images == (folder / "a.png",)
    assert (one.question, one.answer, one.id) == ("What color?", "red", "0")
    assert one.choices is None
    assert two.images == (folder / "a.png", folder / "b.jpg")
    assert (two.id, two.choices, two.kind) == ("7", ("red", "blue"), "color")
    assert three.images == ()


def test_a_json_list_with_byte_order_mark_and_another_image_root(folder, tmp_path_factory):
    file = tmp_path_factory.mktemp("elsewhere") / "data.json"
    file.write_bytes(b"\xef\xbb\xbf \n" + json.dumps([row(), row()], indent=1).encode())
    assert [r.id for r in read_rows(file, image_root=folder)] == ["0", "1"]
    with pytest.raises(InputError, match=r"row 1, image: found no file .*; expected an existing"):
        read_rows(file)


def test_json_lines_with_byte_order_mark(folder):
    file = folder / "data.jsonl"
    file.write_bytes(b"\xef\xbb\xbf" + json.dumps(row()).encode())
    assert len(read_rows(file)) == 1


def test_pictures_in_the_file_itself_become_files(folder, tmp_path, monkeypatch):
    """As `datasets` writes them: bytes, or a path alone; equal ones are one picture."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    content = (folder / "a.png").read_bytes()
    held = {"bytes": content, "path": None}
    images = [held, {"bytes": content, "path": "b.jpg"}, {"bytes": None, "path": "a.png"}]
    pq = pyarrow.Table.from_pylist([row(image=image) for image in images])
    pyarrow.parquet.write_table(pq, folder / "held.parquet")
    one, two, three = read_rows(folder / "held.parquet", check_images=True)
    assert one.images == two.images != three.images == (folder / "a.png",)
    assert one.images[0].read_bytes() == content
    pyarrow.parquet.write_table(
        pyarrow.Table.from_pylist([row(image={"bytes": b"cut", "path": None})]),
        folder / "bad.parquet",
    )
    with pytest.raises(InputError, match=r"row 1, image: .* is not a picture"):
        read_rows(folder / "bad.parquet", check_images=True)


def test_a_full_disk_while_unpacking_pictures(tmp_path, monkeypatch):
    def full(path, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(JobError, match=r"could not write .*pictures.*No space left"):
        unpacked(b"picture")


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        (row(image=..., imgae="a.png"), "image: found the key 'imgae'; expected the key 'im"),
        (row(image=..., Image="a.png"), "image: found the key 'Image'"),
        (
            row(answer=..., anwser="red"),
            "answer: found the key 'anwser'; expected the key 'answer'",
        ),
        (row(image="https://a.b/c.png"), "found the address 'https://a.b/c.png'; expected a file"),
    ],
)
def test_misspelt_keys_and_addresses_are_no_silent_holes(folder, entry, told):
    with pytest.raises(InputError, match=told):
        read_rows(write(folder, entry))


def test_a_key_like_one_that_is_there_is_only_not_used(folder, caplog):
    file = write(folder, row(image_path="a.png", image_id=3), row(image=..., idx=1, images=[]))
    assert len(read_rows(file)) == 2
    assert "'image_path' is not used" in caplog.text
    assert "'idx' is not used" in caplog.text


def test_conversations_give_a_row_for_each_answered_turn(folder):
    turns = ["<image>\nWhat is it?", "A square.", "Its color?", "Red.", "Sure?"]
    conversation = [
        {"from": "gpt" if number % 2 else "human", "value": value}
        for number, value in enumerate(turns)
    ]
    file = folder / "llava.json"
    one_turn = {"conversations": conversation[2:4]}
    entries = [{"id": "x", "image": "a.png", "conversations": conversation}, one_turn]
    entries += [{"id": "x", "image": "b.jpg", "conversations": conversation[:2]}]
    file.write_text(json.dumps(entries))
    first, second, text_only, same_id = read_rows(file)
    assert (first.question, first.answer, first.history) == ("What is it?", "A square.", ())
    assert second.question == "Its color?"
    assert second.history == (("What is it?", "A square."),)
    assert first.images == second.images == (folder / "a.png",)
    assert text_only.images == ()
    # LLaVA's ids name pictures, so a repeated one is not an error; rows stay distinct.
    assert [r.id for r in (first, second, text_only, same_id)] == ["x/0", "x/1", "1", "x@2"]


def say(*contents, **changes):
    """Messages of user and assistant in turn."""
    turns = [
        {"role": "assistant" if number % 2 else "user", "content": content}
        for number, content in enumerate(contents)
    ]
    return {"messages": turns} | changes


def text(words):
    return {"type": "text", "text": words}


def test_messages_of_trl_and_openai(folder, tmp_path, monkeypatch):
    """Pictures named once for all, in their places, or in the message: as paths or written out."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    inline = base64.b64encode((folder / "a.png").read_bytes()).decode()
    url = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{inline}"}}
    place = {"type": "image"}
    file = write(
        folder,
        say("What is it?", "A square.", images=["a.png"]),
        say([place, text("What?")], [text("A square.")], [place, text("This?")], "No.", "Sure?",
            images=["a.png", "b.jpg"], id="x"),
        say("<image><image>Same?", "No.", images=["a.png", "b.jpg"]),
        say([text("What"), {"type": "image", "image": "b.jpg"}, text("is it?")], "A square."),
        say([url, text("What?")], "A square."),
        say("What is AC?", "Current."),
    )  # fmt: skip
    one, first, second, same, named, held, bare = read_rows(file, check_images=True)
    a, b = folder / "a.png", folder / "b.jpg"
    assert (one.images, one.question, one.answer, one.id) == ((a,), "What is it?", "A square.", "0")
    assert (first.id, first.images, first.history) == ("x/0", (a,), ())
    assert (second.id, second.images, second.answer) == ("x/1", (a, b), "No.")
    assert second.history == (("What?", "A square."),)
    assert (same.images, same.question) == ((a, b), "Same?")
    assert (named.images, named.question) == ((b,), "What\nis it?")
    assert held.images[0].read_bytes() == a.read_bytes()
    assert bare.images == ()


def test_messages_in_parquet_have_null_for_what_others_have(folder):
    """As `datasets` writes them: all parts have all keys, and pictures are bytes."""
    parts = [{"type": "image", "text": None}, {"type": "text", "text": "What?"}]
    content = (folder / "a.png").read_bytes()
    entry = {
        "messages": [
            {"role": "user", "content": parts},
            {"role": "assistant", "content": [{"type": "text", "text": "Red."}]},
        ],
        "images": [{"bytes": content, "path": None}],
    }
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([entry]), folder / "chat.parquet")
    (only,) = read_rows(folder / "chat.parquet")
    assert (only.question, only.answer) == ("What?", "Red.")
    assert only.images[0].read_bytes() == content


@pytest.mark.parametrize("keys", [("role", "content", "user", "assistant"), ("from", "value")])
def test_other_spellings_of_conversations(folder, keys):
    """`conversations` with roles and `messages` with LLaVA's keys are about too."""
    speaker, words, *names = keys
    asks, answers = names or ("human", "gpt")
    turns = [{speaker: asks, words: "<image>\nWhat?"}, {speaker: answers, words: "Red."}]
    for key in ("messages", "conversations"):
        (only,) = read_rows(write(folder, {key: turns, "images": ["a.png"]}))
        assert (only.question, only.answer) == ("What?", "Red.")
        assert only.images == (folder / "a.png",)


def test_each_row_keeps_its_system_message(folder):
    def entry(system):
        turns = say("What?", "Red.")["messages"]
        return {"messages": [{"role": "system", "content": system}, *turns]}

    entries = [entry("Be brief."), entry([text("Be rude.")]), say("a", "b"), row(system="Be.")]
    rows = read_rows(write(folder, *entries))
    assert [r.system for r in rows] == ["Be brief.", "Be rude.", None, "Be."]


def test_an_answer_of_weight_0_is_only_read(folder):
    entry = say("Hi", "Hello", "What?", "Red.")
    entry["messages"][1]["weight"] = 0
    (only,) = read_rows(write(folder, entry))
    assert (only.question, only.history) == ("What?", (("Hi", "Hello"),))


def test_lavis_triples(folder):
    file = write(folder, {"image": "a.png", "text_input": "Describe.", "text_output": "A square."})
    (only,) = read_rows(file)
    assert (only.question, only.answer) == ("Describe.", "A square.")


LINES = [  # entry, field, found, expected
    (row(image="none.png"), "image", "no file", "an existing file"),
    (row(image="x" * 300), "image", "no file", "an existing file"),
    (row(image="a\0.png"), "image", "no file", "an existing file"),
    (row(image=3), "image", "3", "a file name"),
    (row(image=["a.png", ""]), "image", "''", "a file name"),
    (row(question=...), "question", "nothing", "a text"),
    (row(question=" \n"), "question", "an empty text", "not empty"),
    (row(answer=""), "answer", "an empty text", "not empty"),
    (row(answer=4), "answer", "4", "quotes"),
    (row(answer=["red", 4]), r"answer\[1\]", "4", "quotes"),
    (row(answer=[]), "answer", "an empty list", "a text or several"),
    (row(answer="\ud800"), "answer", "surrogate", "valid Unicode"),
    (row(question="x" * 20_000_000), "question", "20,000,000 characters", "at most 1,000,000"),
    (row(choices="red"), "choices", "'red'", "a list"),
    (row(choices=["red", 2]), r"choices\[1\]", "2", "a text"),
    (row(id=1.5), "id", "1.5", "whole number"),
    ([1], "row", r"\[1\]", "a JSON object"),
    ('{"question": "a", }', "row", r"invalid JSON at column \d+", "JSON object a line"),
    ('{"question": ' + "[" * 100_000, "row", "JSON that cannot be read", "plain JSON"),
    ({"conversations": []}, "conversations", r"\[\]", "at least two turns"),
    ({"conversations": [{"from": "gpt", "value": "a"}] * 2}, r"conversations\[0\]", "gpt", "human"),
    (
        {"conversations": [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "a"}]},
        r"conversations\[0\]",
        "an <image> tag",
        "an image",
    ),
    ({"image": "a.png", "text_input": "Describe."}, "text_output", "nothing", "a text"),
    ({"messages": "hello"}, "messages", "'hello'", "at least two turns"),
    (say("What?"), "messages", r"\[\{", "at least two turns"),
    ({"messages": [say("a")["messages"][0]] * 2}, r"messages\[1\]", "user", '"role": "assistant"'),
    (say("a", None), r"messages\[1\].content", "None", "a text"),
    (say([{"type": "input_audio"}], "b"), r"messages\[0\].content\[0\]", "input_audio", "a part"),
    (say([{"type": "image"}, text("a")], "b"), r"messages\[0\].content", "without image", "image"),
    (say("<image><image>a", "b", images=["a.png"]), "images", "1 image for 2 places", "each place"),
    (say("a", "<image>b", image="a.png"), r"messages\[1\].content", "in an answer", "text alone"),
    (say("a", "b", images=["c.png"]), "image", "no file", "an existing file"),
    (
        say([{"type": "image_url", "image_url": {"url": "https://a.b/c.png"}}, text("a")], "b"),
        "image",
        "the address",
        "fetch it first",
    ),
    (
        say([{"type": "image_url", "image_url": "data:image/png;base64,?"}, text("a")], "b"),
        "image",
        "data:",
        "base64",
    ),
    (
        {"messages": [*say("a")["messages"], {"role": "assistant", "tool_calls": [{}]}]},
        r"messages\[1\]",
        "a call of a tool",
        "text alone",
    ),
]


@pytest.mark.parametrize(("entry", "field", "found", "expected"), LINES)
def test_a_bad_row_is_named_by_line_field_found_and_expected(folder, entry, field, found, expected):
    file = write(folder, row(), entry, row())
    pattern = f"1 bad row of 3, first line 2, {field}.*: found .*{found}.*; expected .*{expected}"
    with pytest.raises(InputError, match=pattern) as caught:
        read_rows(file)
    assert len(str(caught.value)) < 600  # one readable line, whatever the row held
    assert "\n" not in str(caught.value)
    assert len(read_rows(file, on_bad_row="skip")) == 2


def test_bytes_that_are_not_utf8_are_named(folder):
    file = write(folder, row())
    file.write_bytes(file.read_bytes() + b'{"question": "\xff"}\n')
    with pytest.raises(InputError, match="line 2, encoding: found the byte 0xff at position 14"):
        read_rows(file)


def test_a_repeated_id_is_a_bad_row(folder):
    file = write(folder, row(id="x"), row(id="x"))
    with pytest.raises(InputError, match="line 2, id: found 'x'"):
        read_rows(file)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "no usable rows"),
        ("[]", "no usable rows"),
        ('[{"question": "a"},\n oops]', "invalid JSON at line 2, column 2"),
        ("[]]", "invalid JSON at column 3"),
    ],
)
def test_a_file_without_rows(folder, content, message):
    file = folder / "data.json"
    file.write_text(content)
    with pytest.raises(InputError, match=message):
        read_rows(file, on_bad_row="skip")


def test_an_absent_file(folder):
    with pytest.raises(InputError, match="no data file"):
        read_rows(folder / "none.jsonl")


def test_skipping_counts_rows_and_reasons(folder, caplog):
    file = write(folder, row(), row(image="x"), row(image="y"), row(question="", answer=1))
    with caplog.at_level(logging.WARNING):
        assert len(read_rows(file, on_bad_row="skip")) == 1
    assert "skipped 3 bad rows of 4" in caplog.text
    assert "2 × image is not an existing file" in caplog.text
    assert "1 × answer is not a text" in caplog.text


def test_unknown_keys_are_warned_of_once(folder, caplog):
    file = write(folder, row(colour="red"), row(colour="red"))
    assert len(read_rows(file)) == 2
    assert caplog.text.count("colour") == 1
