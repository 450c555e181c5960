"""Marks of pictures, videos and recordings in texts."""

import pytest

from crome.data.tags import Mark, take_out


@pytest.mark.parametrize(
    ("text", "bare", "marks"),
    [
        ("<image>\nWhat?", "What?", [Mark("image", 0)]),
        (" Is <image> like <image>? ", "Is  like ?", [Mark("image", 3), Mark("image", 9)]),
        ("What?\n<image>", "What?", [Mark("image", 5)]),
        ("<img>a b.png</img>Picture 1", "Picture 1", [Mark("image", 0, "a b.png")]),
        ("<|vision_start|><|image_pad|><|image_pad|><|vision_end|>a", "a", [Mark("image", 0)]),
        ("<|image_pad|>a", "a", [Mark("image", 0)]),
        ("<|image_1|>a<|image_2|>", "a", [Mark("image", 0, None, 1), Mark("image", 1, None, 2)]),
        ("<image 2>a<Image1>", "a", [Mark("image", 0, None, 2), Mark("image", 1, None, 1)]),
        ("<start_of_image>a [IMG]", "a", [Mark("image", 0), Mark("image", 1)]),
        ("<video>a", "a", [Mark("video", 0)]),
        ("<img><IMG_CONTEXT><IMG_CONTEXT></img>a", "a", [Mark("image", 0)]),
        ("<|vision_start|><|vision_end|>a", "a", [Mark("image", 0)]),
        ("<|begin_of_image|><|image|><|end_of_image|>a", "a", [Mark("image", 0)]),
        ("(<image>./</image>)\na", "a", [Mark("image", 0)]),
        ("<fake_token_around_image><image><fake_token_around_image>a", "a", [Mark("image", 0)]),
        (
            "<image-placeholder>a [IMG][IMG_BREAK][IMG_END]",
            "a",
            [Mark("image", 0), Mark("image", 1)],
        ),
        ("<|video_1|>a <vila/video>", "a", [Mark("video", 0, None, 1), Mark("video", 1)]),
        ("<|audio_1|>a <sound>", "a", [Mark("audio", 0, None, 1), Mark("audio", 1)]),
        ("<|vision_start|><|video_pad|><|vision_end|>a", "a", [Mark("video", 0)]),
        ("a <audio> b <|AUDIO|>", "a  b", [Mark("audio", 2), Mark("audio", 4)]),
        ("a <b> [img]x[/img] <img src='a.png'>", "a <b> [img]x[/img] <img src='a.png'>", []),
    ],
)
def test_marks_are_taken_out_and_their_places_kept(text, bare, marks):
    assert take_out(text) == (bare, marks)
