"""`crome serve`: an OpenAI-compatible server and its page."""

import logging
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from crome.errors import InputError, positive

if TYPE_CHECKING:
    from crome.serving.gate import Keys


def serve(
    checkpoint: str = "crome-tiny",
    adapter: list[str] | None = None,
    adapter_root: list[Path] | None = None,
    classifier: list[str] | None = None,
    encoder: str = "bridge",
    host: str = "127.0.0.1",
    port: int = 8000,
    name: str | None = None,
    api_keys: Path | None = None,
    admin_key: Path | None = None,
    image_hosts: list[str] | None = None,
    max_batch: int = 32,
    max_queue: int = 64,
    max_new_tokens: int = 512,
    max_length: int = 4096,
    timeout: float = 120,
    drain: float = 30,
    dtype: Literal["bfloat16", "float32", "auto"] = "bfloat16",
    attention: Literal["eager", "sdpa", "flash_attention_2", "auto"] = "auto",
) -> None:
    """Serve a checkpoint and its adapters with OpenAI's API and a page to try them.

    Args:
        checkpoint: A folder, a hub id, or a preset that has weights.
        adapter: Task adapters to offer, as NAME=FOLDER; a client chooses one by `model`.
        adapter_root: Folders from which the administrator may add adapters while it serves.
        classifier: Few-shot classifiers to offer, as NAME=FILE of `crome fewshot fit`.
        encoder: For classifiers fitted while it serves; see `crome fewshot fit`.
        host: Address to listen on; 0.0.0.0 for all, which wants `--api_keys`.
        port: Port to listen on; 0 for a free one.
        name: What clients call the base; by default the last part of `checkpoint`.
        api_keys: File with a key on each line; without it nobody needs one.
        admin_key: File with the key that may add and remove adapters and classifiers.
        image_hosts: Hosts from which images may be fetched; by default none, and clients send
            images as data URIs.
        max_batch: Answers decoded together.
        max_queue: Answers that may wait; clients beyond are told to come back (429).
        max_new_tokens: Longest answer.
        max_length: Tokens of a prompt and its answer together.
        timeout: Seconds for one request.
        drain: Seconds in which running requests may finish when the server is stopped.
        dtype: Type of the frozen towers.
        attention: Implementation inside the language model; see `crome train`.
    """
    if find_spec("fastapi") is None or find_spec("uvicorn") is None:
        raise InputError("`crome serve` needs the extra `serve`: pip install 'crome[serve]'.")
    positive(
        max_batch=max_batch, max_queue=max_queue, max_new_tokens=max_new_tokens,
        max_length=max_length, timeout=timeout, drain=drain,
    )  # fmt: skip
    from crome.checkpoints.loading import load
    from crome.serving.adapters import Adapters
    from crome.serving.app import create_app
    from crome.serving.classifiers import Classifiers
    from crome.serving.engine import Engine
    from crome.serving.pictures import Pictures
    from crome.serving.run import run
    from crome.serving.service import Limits, Service

    keys = read_keys(api_keys, admin_key)
    pairs = [named_path(pair) for pair in adapter or []]
    classifiers = Classifiers(encoder)
    for served, file in map(named_path, classifier or []):
        classifiers.load(served, file)
    model, processor = load(checkpoint, dtype, attention)
    engine = Engine(model, processor, max_batch=max_batch)
    adapters = Adapters(engine, name or Path(checkpoint).name, adapter_root or [])
    for served, folder in pairs:
        adapters.add(served, folder)
    limits = Limits(max_queue, max_new_tokens, max_length, timeout=timeout)
    pictures = Pictures(hosts=frozenset(h.lower() for h in image_hosts or []))
    service = Service(engine, processor, adapters, pictures, limits, classifiers)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    run(create_app(service, keys, total_seconds=timeout + 60), service, host, port, drain)


def named_path(pair: str) -> tuple[str, Path]:
    """Splits NAME=PATH."""
    name, _, path = pair.partition("=")
    if not name or not path:
        raise InputError(f"{pair!r} is not of the form NAME=PATH.")
    return name, Path(path)


def read_keys(api_keys: Path | None, admin_key: Path | None) -> "Keys":
    """Keys from files: arguments can be read by everybody on a machine.

    Raises:
        InputError: A file is missing or holds no key, or more than one of the administrator.
    """
    from crome.serving.gate import Keys

    callers, admins = (_lines(file) if file else [] for file in (api_keys, admin_key))
    if len(admins) > 1:
        raise InputError(f"{admin_key} has {len(admins)} lines; expected one key.")
    return Keys(callers, admins[0] if admins else None)


def _lines(file: Path) -> list[str]:
    try:
        found = [line.strip() for line in file.read_text().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read keys from {file}: {error}.") from error
    keys = [line for line in found if line and not line.startswith("#")]
    if not keys or not all(key.isascii() and key.isprintable() and " " not in key for key in keys):
        raise InputError(f"{file}: expected a key of printable ASCII without spaces on each line.")
    return keys
