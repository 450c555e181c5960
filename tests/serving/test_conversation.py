"""Conversations as clients send them back, and what becomes of them."""

import json

import pytest

from crome.rows import Place
from crome.serving.conversation import Conversation, conversation
from crome.serving.errors import ApiError
from crome.serving.http.body import parse
from crome.serving.schema import ChatRequest


def said(*messages):
    body = {"model": "m", "messages": [m if isinstance(m, dict) else turn(*m) for m in messages]}
    return conversation(parse(ChatRequest, json.dumps(body).encode()).messages)


def turn(role, content, **more):
    return {"role": role, "content": content, **more}


U, A, S = "user", "assistant", "system"
PLAIN = Conversation("And now?", (("Hello?", "Yes."),))
IMAGE = {"type": "image_url", "image_url": {"url": "data:,"}}


@pytest.mark.parametrize(
    "extra",
    [
        {"parsed": None}, {"tool_calls": []}, {"annotations": []}, {"refusal": None},
        {"provider_specific_fields": None}, {"reasoning_content": None}, {"audio": None},
        {"function_call": None}, {"reasoning_content": "thinking"}, {"parsed": {"a": 1}},
        {"provider_specific_fields": {"refusal": None}}, {"name": "bot"}, {"id": "msg_1"},
        {"annotations": [{"type": "url_citation"}]}, {"images": []}, {"nobody_knows": None},
        {"nobody_knows": []}, {"thinking_blocks": None}, {"reasoning": ""},
        {"content": [{"type": "text", "text": "Yes."}]},
        {"content": [{"type": "text", "text": "Yes.", "annotations": []}]},
        {"content": [{"type": "refusal", "refusal": "Yes."}]},
    ],
)  # fmt: skip
def test_an_answer_comes_back_as_a_library_keeps_it(extra):
    assert said((U, "Hello?"), turn(A, "Yes.") | extra, (U, "And now?")) == PLAIN


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([(U, "Hello?"), (A, "Yes."), (U, "And"), (U, "now?")],
         Conversation("And\nnow?", PLAIN.history)),
        ([(U, "Hello?"), (A, "Yes"), (A, "."), (U, "And now?")],
         Conversation("And now?", (("Hello?", "Yes\n."),))),
        ([(S, "a"), (S, "b"), (U, "x")], Conversation("x", system="a\n\nb")),
        ([(S, "a"), (U, "x"), (A, "y"), ("developer", "b"), (U, "z")],
         Conversation("z", (("x", "y"),), "a\n\nb")),
        ([(S, "Give a title.")], Conversation("Give a title.")),
        ([(S, ""), (U, "x")], Conversation("x")),
        ([(A, "Hello!"), (U, "x")], Conversation("x", (("", "Hello!"),))),
        ([(U, "x"), (A, "The answ")], Conversation("x", begun="The answ")),
        ([(U, "x"), (A, "")], Conversation("x")),
        ([(U, "x"), turn(A, None), (U, "y")], Conversation("x\ny")),
        ([(A, "One")], Conversation("", begun="One")),
        ([(U, [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}])],
         Conversation("a\nb")),
    ],
)  # fmt: skip
def test_what_people_make_is_joined_to_a_conversation(messages, expected):
    assert said(*messages) == expected


def test_a_picture_needs_no_words():
    found = said((U, [IMAGE]))
    assert (found.question, [p.param for p in found.media]) == (
        "", ["messages[0].content[0].image_url"]
    )  # fmt: skip
    assert said((U, [IMAGE]), (U, "What?")).question == "What?"


@pytest.mark.parametrize(
    "messages",
    [[(U, " ")], [(S, " ")], [(A, "")], [(U, "x"), (A, "y"), (U, "")],
     [(A, [IMAGE]), (U, "x")], [(S, [IMAGE]), (U, "x")]],
)  # fmt: skip
def test_what_asks_nothing_is_refused(messages):
    with pytest.raises(ApiError) as caught:
        said(*messages)
    assert caught.value.body["error"]["param"].startswith("messages")


def test_systems_words_go_first_where_a_template_has_no_place_for_them():
    assert said((S, "Be brief."), (U, "x")).without_system() == Conversation("Be brief.\nx")
    found = said((S, "Be brief."), (U, "x"), (A, "y"), (U, "z")).without_system()
    assert found == Conversation("z", (("Be brief.\nx", "y"),))


def test_parts_as_the_newer_api_names_them():
    parts = [{"type": "input_text", "text": "x"}, {"type": "input_image", "image_url": "data:,"},
             {"type": "image_url", "image_url": "data:,1"}]  # fmt: skip
    found = said((U, "Hello?"), (A, [{"type": "output_text", "text": "Yes.", "logprobs": []}]),
                 (U, parts))  # fmt: skip
    assert (found.question, found.history) == ("x", PLAIN.history)
    assert [p.url for p in found.media] == ["data:,", "data:,1"]
    assert found.media[1].param == "messages[2].content[2].image_url"


def test_errors_name_the_field_that_the_messages_came_in():
    body = {"model": "m", "messages": [turn(S, "a"), turn(U, [IMAGE]), turn(U, " ")]}
    messages = parse(ChatRequest, json.dumps(body).encode()).messages
    found = conversation(messages, "input", 1)
    assert (found.param, found.media[0].param) == ("input", "input[0].content[0].image_url")
    with pytest.raises(ApiError) as caught:
        conversation(messages[2:], "input", 0)
    assert caught.value.body["error"]["param"] == "input[0].content"


def test_neighbours_are_joined_in_one_go():
    """Not each with all before it, which takes seconds for hundreds of long ones."""
    found = said(*[(U, f"{i} " + "x" * 100_000) for i in range(250)])
    assert found.question == "\n".join(f"{i} " + "x" * 100_000 for i in range(250))


def test_pictures_keep_their_places():
    found = said(
        (A, "Hello!"),
        (U, [IMAGE, {"type": "text", "text": "This?"}]),
        (A, "Red."),
        (U, [{"type": "text", "text": "Compare "}, IMAGE, {"type": "text", "text": " with "}]),
        (U, [IMAGE, {"type": "text", "text": "now."}]),
    )
    assert found.history == (("", "Hello!"), ("This?", "Red."))
    assert found.question == "Compare  with now."
    assert found.places == (Place("image", 1, 0), Place("image", 2, 8), Place("image", 2, 14))


def test_places_move_with_systems_words_in_front():
    parts = [IMAGE, {"type": "text", "text": "Compare "}, IMAGE, {"type": "text", "text": " now."}]
    found = said((S, "Be brief."), (U, parts)).without_system()
    assert found.question == "Be brief.\nCompare  now."
    assert found.places == (Place("image", 0, 0), Place("image", 0, 18))
