"""A hub that holds another kind of model."""

import pytest


@pytest.fixture
def fetched(monkeypatch, tmp_path):
    """The patterns of files that were asked for, of a repository that is a Llama."""
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    patterns = []

    def snapshot_download(name, revision=None, allow_patterns=(), **hub):
        patterns.extend(allow_patterns)
        return str(tmp_path)

    monkeypatch.setattr("crome.model.hub.snapshot_download", snapshot_download)
    return patterns
