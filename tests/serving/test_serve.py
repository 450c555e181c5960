"""The verb: what it refuses before a model is loaded, and a process that stops when it is told."""

import re
import signal
import socket
import subprocess
import sys
import time

import pytest

from crome.errors import InputError
from crome.serving.serve import named_path, read_keys, serve


def test_keys_from_files(tmp_path):
    (tmp_path / "keys").write_text("# callers\nalice\n\n bob \n")
    (tmp_path / "admin").write_text("root\n")
    keys = read_keys(tmp_path / "keys", tmp_path / "admin")
    assert keys.tenant("Bearer root") == (keys.tenant("bearer root")[0], True)
    names = {keys.tenant(f"Bearer {key}")[0] for key in ("alice", "bob", "root")}
    assert len(names) == 3
    assert keys.tenant("Bearer # callers") is None
    assert keys.tenant("Basic alice") is None
    assert read_keys(None, None).tenant("") == ("", False)
    (tmp_path / "empty").write_text("# nothing\n")
    (tmp_path / "spaces").write_text("two words\n")
    for wrong in ("empty", "spaces", "absent"):
        with pytest.raises(InputError, match=wrong):
            read_keys(tmp_path / wrong, None)
    with pytest.raises(InputError, match="2 lines"):
        read_keys(None, tmp_path / "keys")


def test_the_help_waits_for_no_heavy_library():
    heavy = "{'torch', 'transformers', 'fastapi'}"
    code = f"import sys; import crome.serving.serve; sys.exit(str({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.strip() == "set()"


def test_names_and_numbers():
    assert named_path("a=b=c")[0] == "a"
    for wrong in ("a", "=b", "a=", ""):
        with pytest.raises(InputError, match="NAME=PATH"):
            named_path(wrong)
    with pytest.raises(InputError, match="max_batch"):
        serve(max_batch=0)


def test_a_process_serves_and_stops(build, tmp_path):
    """SIGTERM: the process says that it is done, and its exit code is a clean one."""
    pair = build()
    pair.model.save_pretrained(tmp_path / "base")
    pair.processor.save_pretrained(tmp_path / "base")
    pair.model.save_adapter(tmp_path / "task")
    command = [
        sys.executable, "-m", "crome", "serve", "--checkpoint", str(tmp_path / "base"),
        "--port", "0", "--adapter", f"task={tmp_path / 'task'}", "--dtype", "float32",
    ]  # fmt: skip
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        for line in process.stderr:
            if found := re.search(r"http://127\.0\.0\.1:(\d+)", line):
                break
        assert found
        import urllib.request

        with urllib.request.urlopen(f"http://127.0.0.1:{found[1]}/v1/models", timeout=30) as told:
            assert b'"task"' in told.read()
        process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        assert process.poll() in (0, -signal.SIGTERM)
    finally:
        process.kill()
        process.wait()


def test_where_it_cannot_listen_is_told_before_a_model_is_loaded():
    """The checkpoint does not exist, which would be told next."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for wrong in ({"port": port}, {"port": 99999}, {"port": -1}, {"host": "no.such.host."},
                      {"host": "203.0.113.7"}, {"host": "a" * 300}):  # fmt: skip
            with pytest.raises(InputError, match=r"listen|port"):
                serve(checkpoint="/nothing", **wrong)
    with pytest.raises(InputError, match="engine_url"):
        serve(engine="vllm")
    with pytest.raises(InputError, match="engine_url"):
        serve(engine_url="http://localhost:1/v1")
