"""One question to the hub decides whether its names mean more than what is cached."""

import httpx2
import pytest
from huggingface_hub import constants, is_offline_mode

from crome.errors import InputError
from crome.interop.conversion import convert
from crome.model import hub as reach
from crome.training.plan import plan


@pytest.fixture
def asked(monkeypatch):
    """The questions put to a hub that fails in a chosen way."""
    asked = []

    class Session:
        error: Exception | None = None

        def head(self, address, timeout):
            asked.append(address)
            if self.error:
                raise self.error

    session = Session()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(reach, "get_session", lambda: session)
    reach.reach_hub.cache_clear()
    yield session, asked
    reach.reach_hub.cache_clear()


@pytest.mark.parametrize(
    ("error", "offline"),
    [
        (None, False),
        (httpx2.ConnectError("no such name"), True),
        (httpx2.ConnectTimeout("nobody there"), True),
        (httpx2.ReadTimeout("slow"), False),
    ],
)
def test_only_a_connection_that_cannot_be_made_counts(asked, error, offline):
    session, questions = asked
    session.error = error
    for _ in range(3):
        reach.reach_hub()
    assert questions == [constants.ENDPOINT]
    assert is_offline_mode() == offline


def test_what_is_wanted_of_an_absent_hub_is_named_at_once(asked, tmp_path):
    session, _ = asked
    session.error = httpx2.ConnectError("no such name")
    with pytest.raises(InputError, match="some/blip is no folder, and the hub cannot be reached"):
        convert("some/blip", "instructblip-vicuna-7b", tmp_path / "base")
    (tmp_path / "rows.jsonl").write_text('{"question": "q", "answer": "a"}\n')
    with pytest.raises(InputError, match="the vision encoder 'some/vit' cannot be loaded"):
        plan(
            out=tmp_path, data=tmp_path / "rows.jsonl",
            vision_model="some/vit", language_model="some/llm",
        )  # fmt: skip
