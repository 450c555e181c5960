"""The forms in which data sets write rows, each read to the row it means."""

import json

import pytest

from crome.data.forms import CAPTION
from crome.data.reader import read_rows
from crome.errors import InputError
from crome.rows import Place


@pytest.fixture
def read(folder):
    (folder / "v.mp4").write_bytes(b"film")
    (folder / "s.wav").write_bytes(b"sound")

    def read(*entries, **settings):
        file = folder / "data.json"
        file.write_text(json.dumps(entries))
        return read_rows(file, **settings)

    return read


def said(row):
    return row.question, row.answer


def dialogue(*texts, names=("human", "gpt"), keys=("from", "value")):
    speaker, words = keys
    return [{speaker: names[n % 2], words: text} for n, text in enumerate(texts)]


@pytest.mark.parametrize(
    "entry",
    [
        {"query": "What?", "response": "Red."},
        {"query": "<image>What?", "response": "Red."},
        {"instruction": "What?", "input": "", "output": "Red."},
        {"prompt": "What?", "completion": "Red."},
        {"text_input": "What?", "text_output": "Red."},
        {"conversations": dialogue("What?", "Red.", names=("user", "assistant"))},
        {"conversations": dialogue("What?", "Red.", names=("Human", "Assistant"))},
        {"messages": dialogue("What?", "Red.", names=("user", "model"), keys=("role", "content"))},
        {"texts": [{"user": "What?", "assistant": "Red.", "source": "x"}]},
        {
            "prompt": dialogue("What?", names=("user",), keys=("role", "content")),
            "completion": [{"role": "assistant", "content": "Red."}],
        },
    ],
)
@pytest.mark.parametrize("key", ["image", "images"])
def test_one_question_in_every_form(read, folder, entry, key):
    (row,) = read(entry | {key: ["a.png"]})
    assert said(row) == ("What?", "Red.")
    assert row.images == (folder / "a.png",)
    assert (row.history, row.places, row.id) == ((), (), "0")


def test_alpaca_joins_instruction_and_input(read):
    (row,) = read({"instruction": "Translate.", "input": "rouge", "output": "red", "system": "Be."})
    assert said(row) == ("Translate.\nrouge", "red")
    assert row.system == "Be."


def test_earlier_turns_beside_a_question(read):
    (row,) = read({"query": "c", "response": "d", "history": [["a", "b"]], "id": "x"})
    assert (row.history, row.id, *said(row)) == ((("a", "b"),), "x", "c", "d")
    with pytest.raises(InputError, match=r"history: found 'a'; expected a list of \[question"):
        read({"query": "c", "response": "d", "history": "a"})


@pytest.mark.parametrize("key", ["caption", "captions", "text"])
def test_a_caption_needs_no_question(read, folder, key):
    one, many = read({"image": "a.png", key: "A square."}, {"image": "b.jpg", key: ["x", "y"]})
    assert said(one) == (CAPTION, "A square.")
    assert (many.answer, many.answers) == ("x", ("y",))
    turns = dialogue("<image>", "A square.")
    (row,) = read({"image": "a.png", "conversations": turns})
    assert said(row) == (CAPTION, "A square.")


def test_a_text_without_question_or_picture_is_no_caption(read):
    with pytest.raises(InputError, match="question: found nothing"):
        read({"text": "Once upon a time."})


def test_several_right_answers(read):
    listed, given, voted = read(
        {"question": "q", "answer": ["net", "a net", "net"]},
        {"question": "q", "answer": "net", "answers": ["a net", "net"]},
        {"question": "q", "answers": [{"answer": "no"}, {"answer": "yes"}, {"answer": "yes"}]},
    )
    assert (listed.answer, listed.answers) == ("net", ("a net",))
    assert (given.answer, given.answers) == ("net", ("a net",))
    assert (voted.answer, voted.answers) == ("yes", ("no",))


def test_a_system_message_of_each_row(read):
    turns = [{"from": "system", "value": "Be brief."}, *dialogue("a", "b")]
    one, two = read({"conversations": turns}, {"question": "q", "answer": "a", "system": "Be."})
    assert (one.system, two.system) == ("Be brief.", "Be.")


def test_pictures_stay_at_their_places(read, folder):
    a, b = folder / "a.png", folder / "b.jpg"
    parts = [
        {"type": "text", "text": "Is"}, {"type": "image"}, {"type": "text", "text": "like"},
        {"type": "image", "image": "b.jpg"},
    ]  # fmt: skip
    (row,) = read(
        {"images": ["a.png"], "messages": [
            {"role": "user", "content": parts}, {"role": "assistant", "content": "No."}]}
    )  # fmt: skip
    assert (row.question, row.images) == ("Is\nlike", (a, b))
    assert row.places == (Place("image", 0, 2), Place("image", 0, 7))
    (row,) = read({"image": ["a.png", "b.jpg"], "question": "Is <image> like <image>?",
                   "answer": "No."})  # fmt: skip
    assert (row.question, row.images) == ("Is  like ?", (a, b))
    assert row.messages()[0]["content"] == [
        {"type": "text", "text": "Is "}, {"type": "image", "image": a},
        {"type": "text", "text": " like "}, {"type": "image", "image": b},
        {"type": "text", "text": "?"},
    ]  # fmt: skip


def test_pictures_of_later_turns_belong_to_them(read, folder):
    a, b = folder / "a.png", folder / "b.jpg"
    turns = dialogue("<image>One?", "yes", "Two?", "no", "<image>Three?", "yes")
    one, two, three = read({"image": ["a.png", "b.jpg"], "conversations": turns})
    assert (one.images, two.images, three.images) == ((a,), (a,), (a, b))
    assert three.places == (Place("image", 0, 0), Place("image", 2, 0))


def test_pictures_named_in_the_text(read, folder):
    turns = dialogue("Picture 1: <img>a.png</img>\nWhat?", "Red.", names=("user", "assistant"))
    (row,) = read({"conversations": turns})
    assert row.images == (folder / "a.png",)
    assert row.question == "Picture 1: \nWhat?"
    assert row.places == (Place("image", 0, 11),)


def test_a_picture_named_in_a_key_and_in_the_text_is_shown_once(read, folder):
    (row,) = read({"image": "a.png", "question": "<img>a.png</img>What?", "answer": "Red."})
    assert row.images == (folder / "a.png",)


@pytest.mark.parametrize(("text", "order"), [
    ("<image 2> or <image 1>?", "ba"), ("<image_1> or <image_2>?", "ab"),
    ("<|image_1|> or <|image_0|>?", "ba"), ("<image> or <image 1>?", "ab"),
])  # fmt: skip
def test_marks_with_numbers_say_which_picture(read, folder, text, order):
    names = {"a": folder / "a.png", "b": folder / "b.jpg"}
    (row,) = read({"images": ["a.png", "b.jpg"], "question": text, "answer": "x"})
    assert row.images == tuple(names[letter] for letter in order)
    assert row.question == "or ?"
    for wrong in ("<image 1> or <image 1>?", "<image 1> or <image 3>?"):
        with pytest.raises(InputError, match="numbers of images that are not 1 to 2"):
            read({"images": ["a.png", "b.jpg"], "question": wrong, "answer": "x"})


def test_answers_that_are_only_read(read):
    """OpenAI, ms-swift and Axolotl each have their own mark."""
    for mark in ({"weight": 0}, {"loss": False}, {"train": False}):
        turns = dialogue("a", "b", "c", "d", names=("user", "assistant"), keys=("role", "content"))
        turns[1] |= mark
        (row,) = read({"messages": turns})
        assert (row.history, *said(row)) == ((("a", "b"),), "c", "d")


def test_a_system_prompt_under_another_key(read):
    (row,) = read({"system_prompt": "Be.", "question": "q", "answer": "a"})
    assert row.system == "Be."
    turns = [{"from": "system", "value": "Be brief."}, *dialogue("a", "b")]
    with pytest.raises(InputError, match="system: found another message than conv"):
        read({"conversations": turns, "system": "Be long."})


def test_videos_and_recordings(read, folder):
    one, two, three = read(
        {"video": "v.mp4", "question": "<video>What?", "answer": "a"},
        {"videos": [["a.png", "b.jpg"]], "audios": ["s.wav"],
         "query": "Hear <audio> and see <video>.", "response": "a"},
        {"messages": [
            {"role": "user", "content": [
                {"type": "audio", "audio_url": "s.wav"}, {"type": "text", "text": "What?"}]},
            {"role": "assistant", "content": "a"}]},
    )  # fmt: skip
    assert (one.videos, one.places) == ((folder / "v.mp4",), ())
    assert two.videos == ((folder / "a.png", folder / "b.jpg"),)
    assert two.places == (Place("audio", 0, 5), Place("video", 0, 14))
    assert (three.audios, three.question) == ((folder / "s.wav",), "What?")


PNG = "iVBORw0KGgo" + 100 * "A"
BAD = [  # entry, field, found, expected
    ({"conversations": dialogue("<image><image>a", "b")}, "images", "1 image for 2 places"),
    ({"conversations": dialogue("<image>a", "b", "<image>c", "d")}, "images", "1 image for 2"),
    ({"conversations": dialogue("a", "<image>b")}, "value", "an image in an answer"),
    ({"question": "<image><image>a", "answer": "b"}, "images", "1 image for 2 places"),
    ({"query": "<image><image>a", "response": "b"}, "images", "1 image for 2 places"),
    ({"question": "a", "answer": "<image>"}, "answer", "an image in an answer"),
    ({"image": None, "question": "<image>a", "answer": "b"}, "question", "an <image> tag"),
    ({"image": None, "question": "<|image_pad|>a", "answer": "b"}, "question", "an <image> tag"),
    ({"image": None, "question": "<video>a", "answer": "b"}, "question", "a <video> tag"),
    ({"question": "<audio>a", "answer": "b"}, "question", "an <audio> tag"),
    ({"image": None, "img": "a.png", "question": "a", "answer": "b"}, "image", "the key 'img'"),
    ({"image": None, "image_path": "a.png", "conversations": dialogue("a", "b")}, "image",
     "the key 'image_path'"),
    ({"image": None, "file_name": "a.png", "query": "a", "response": "b"}, "image",
     "the key 'file_name'"),
    ({"video_path": "a.mp4", "question": "a", "answer": "b"}, "video", "the key 'video_path'"),
    ({"video": "none.mp4", "question": "a", "answer": "b"}, "video", "no file"),
    ({"audio": {"array": [0]}, "question": "a", "answer": "b"}, "audio", "array"),
    ({"images": ["b.jpg"], "question": "a", "answer": "b"}, "image", "other files than images"),
    ({"image": None, "question": "<image 1>a", "answer": "b"}, "question", "an <image> tag"),
    ({"image_2": "b.jpg", "question": "a", "answer": "b"}, "image", "the key 'image_2'"),
    ({"image": None, "image1": "b.jpg", "question": "a", "answer": "b"}, "image", "key 'image1'"),
    ({"image": None, "media": [{"type": "image", "path": "a.png"}], "question": "a", "answer": "b"},
     "image", "the key 'media'"),
    ({"image": None, "data": PNG, "question": "a", "answer": "b"}, "image", "the key 'data'"),
    ({"image": None, "messages": [{"role": "user", "content": "a", "images": ["a.png"]},
                                  {"role": "assistant", "content": "b"}]},
     r"messages\[0\]", "the key 'images'"),
    ({"image": None, "conversations": [{"from": "human", "value": "a", "image": "a.png"},
                                       {"from": "gpt", "value": "b"}]},
     r"conversations\[0\]", "the key 'image'"),
    ({"image": None, "texts": [{"user": "a", "assistant": "b", "image": "a.png"}]},
     r"texts\[0\]", "the key 'image'"),
    ({"question": "a", "answer": "\u200b"}, "answer", "nothing to see"),
    ({"question": "a", "answer": "\x00"}, "answer", "nothing to see"),
    ({"question": "\u3164 \ufe0f", "answer": "b"}, "question", "nothing to see"),
    ({"query": "a"}, "response", "nothing"),
    ({"instruction": "a", "output": ""}, "output", "an empty text"),
    ({"texts": [{"user": "a"}]}, r"texts\[0\].assistant", "None"),
]  # fmt: skip


@pytest.mark.parametrize(("entry", "field", "found"), BAD)
def test_no_medium_is_lost_in_silence(read, entry, field, found):
    entry = {"image": "a.png"} | entry
    with pytest.raises(
        InputError, match=rf"1 bad row of 1, first row 1, .*{field}: found .*{found}"
    ):
        read({k: v for k, v in entry.items() if v is not None})


def test_three_pictures_and_two_places_are_no_guess(read):
    turns = dialogue("<image>a", "b", "c", "d", "<image>e", "f")
    with pytest.raises(InputError, match="images: found 3 images for 2 places; expected an image"):
        read({"image": ["a.png", "b.jpg", "a.png"], "conversations": turns})


def test_words_that_look_like_marks_stay_in_texts_without_media(read):
    (row,) = read({"question": "How do I write a tag?", "answer": "<video> plays a film. [img]"})
    assert row.answer == "<video> plays a film. [img]"
