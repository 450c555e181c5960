"""The official client of OpenAI against the server, and what the server adds to that API."""

import base64
import io

import pytest

openai = pytest.importorskip("openai")

from crome.data.rows import Row
from crome.serving.chat import answer


def data_url(picture):
    file = io.BytesIO()
    picture.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def message(question, *pictures):
    parts = [{"type": "image_url", "image_url": {"url": data_url(p)}} for p in pictures]
    return {"role": "user", "content": [*parts, {"type": "text", "text": question}]}


def client_of(server, key="none"):
    return openai.OpenAI(base_url=server.url + "/v1", api_key=key, max_retries=0)


def test_models_and_answers(serving, pictures):
    with serving() as server:
        client = client_of(server)
        assert [m.id for m in client.models.list()] == ["tiny", "red", "blue"]
        pair = server.pair
        for name in ("tiny", "red", "blue"):
            key = server.adapters.find(name).key
            row = Row((pictures[0],), "What is the colour?", "", "")
            expected = answer(
                pair.model, pair.processor, [row], max_new_tokens=8, adapter_names=[key]
            )[0]
            asked = {"model": name, "max_tokens": 8,
                     "messages": [message("What is the colour?", pictures[0])]}  # fmt: skip
            whole = client.chat.completions.create(**asked)
            assert whole.choices[0].message.content == expected
            stream = client.chat.completions.create(**asked, stream=True)
            text = "".join(c.choices[0].delta.content or "" for c in stream)
            assert text == expected
