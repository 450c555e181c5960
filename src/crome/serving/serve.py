"""`crome serve`: an OpenAI-compatible server and its page."""

import logging
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from crome.checkpoints.holding import PLAINLY, Holding
from crome.errors import InputError, positive

if TYPE_CHECKING:
    from crome.model.processing import CromeProcessor
    from crome.serving.engine.protocol import Engine
    from crome.serving.http.gate import Keys

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Memory:
    """How much memory of the machine or the card is kept for what; by default what suits the model.

    Attributes:
        answers_gib: Keys and values of the answers that are worked on; more have to wait. Half of
            what is free by default.
        prefixes_gib: Keys and values of pictures, for further questions about them.
        features_gib: Frozen features of pictures, for further adapters.
    """

    answers_gib: float | None = None
    prefixes_gib: float | None = None
    features_gib: float | None = None

    def __post_init__(self) -> None:
        given = {name: value for name, value in asdict(self).items() if value is not None}
        positive(**given)


PLAIN_MEMORY = Memory()


def serve(
    checkpoint: str = "crome-tiny",
    adapter: list[str] | None = None,
    adapter_root: list[Path] | None = None,
    classifier: list[str] | None = None,
    encoder: str = "bridge",
    classifier_root: Path | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    name: str | None = None,
    api_keys: Path | None = None,
    admin_key: Path | None = None,
    image_hosts: list[str] | None = None,
    allow_origins: list[str] | None = None,
    max_batch: int = 32,
    max_queue: int = 64,
    max_new_tokens: int = 512,
    max_length: int = 4096,
    max_gap: float = 0.1,
    timeout: float = 120,
    drain: float = 30,
    memory: Memory = PLAIN_MEMORY,
    engine: Literal["local", "vllm"] = "local",
    engine_url: str | None = None,
    engine_model: str | None = None,
    engine_key: Path | None = None,
    dtype: Literal["bfloat16", "float16", "float32", "auto"] = "bfloat16",
    attention: Literal["eager", "sdpa", "flash_attention_2", "auto"] = "auto",
    device: str = "auto",
    decoding: Literal["auto", "plain", "recorded"] = "auto",
    holding: Holding = PLAINLY,
) -> None:
    """Serve a checkpoint and its adapters with OpenAI's API and a page to try them.

    Args:
        checkpoint: A folder, a hub id, or a preset that has weights.
        adapter: Task adapters to offer, as NAME=FOLDER; a client chooses one by `model`.
        adapter_root: Folders from which the administrator may add adapters while it serves.
        classifier: Few-shot classifiers to offer, as NAME=FILE of `crome fewshot fit`.
        encoder: For classifiers fitted while it serves; see `crome fewshot fit`.
        classifier_root: Folder in which those are kept, so that they are there again after a
            restart.
        host: Address to listen on; 0.0.0.0 for all, which wants `--api_keys`.
        port: Port to listen on; 0 for a free one.
        name: What clients call the base; by default the last part of `checkpoint`.
        api_keys: File with a key on each line; without it nobody needs one.
        admin_key: File with the key that may add and remove adapters and classifiers.
        image_hosts: Hosts from which images may be fetched; by default none, and clients send
            images as data URIs.
        allow_origins: Web pages of other origins that may ask from a browser, such as
            https://chat.example.org; "*" for all.
        max_batch: Answers decoded together.
        max_queue: Answers that may wait; clients beyond are told to come back (429).
        max_new_tokens: Length of an answer to a request that names none.
        max_length: Tokens of a prompt and its answer together.
        max_gap: Seconds that reading prompts may take between two tokens of running answers, or
            the time of two decoding steps where that is longer.
        timeout: Seconds for one request.
        drain: Seconds in which running requests may finish when the server is stopped.
        memory: How much of it is kept for what.
        engine: "local" decodes in this process; "vllm" has a vLLM elsewhere decode what is
            prepared here.
        engine_url: Address of that vLLM up to and including /v1; it must be started with
            --enable-prompt-embeds (--enable-mm-embeds where the checkpoint is a vision-language
            model), and be reachable from here alone.
        engine_model: Name of the language model there; by default that of the checkpoint.
        engine_key: File with the key that the vLLM wants.
        dtype: Type of the frozen towers.
        attention: Implementation inside the language model; see `crome train`.
        device: cpu, cuda, cuda:N or mps; by default a GPU of CUDA if there is one, which is left
            to the vLLM where that decodes.
        decoding: How the local engine decodes: "recorded" has a GPU of CUDA replay its steps, which
            "auto" does for language models that allow it, and "plain" for none.
        holding: How a language model is held that is too large to be held plainly: quantised, or
            spread over the GPUs.
    """
    if find_spec("fastapi") is None or find_spec("uvicorn") is None:
        raise InputError("`crome serve` needs the extra `serve`: pip install 'crome[serve]'.")
    positive(
        max_batch=max_batch, max_queue=max_queue, max_new_tokens=max_new_tokens,
        max_length=max_length, max_gap=max_gap, timeout=timeout, drain=drain,
    )  # fmt: skip
    if (engine == "vllm") != (engine_url is not None):
        raise InputError("--engine vllm and --engine_url belong together; give both or neither.")
    if engine == "vllm" and (holding != PLAINLY or decoding != "auto"):
        name = "decoding" if holding == PLAINLY else "holding"
        raise InputError(f"--{name} is for --engine local; start the vLLM with its own options.")
    holding.check_answering()
    from crome.checkpoints.devices import device_named
    from crome.serving.adapters import Adapters
    from crome.serving.classifiers import Classifiers
    from crome.serving.fetching import Fetcher
    from crome.serving.http.app import create_app
    from crome.serving.http.run import listen, run
    from crome.serving.service import Limits, Service

    device_named(device)
    keys = read_keys(api_keys, admin_key)
    pairs = [named_path(pair) for pair in adapter or []]
    sock = listen(host, port)  # refuses a wrong address before the model takes its time
    classifiers = Classifiers(encoder, classifier_root)
    classifiers.load_kept()
    for served, file in map(named_path, classifier or []):
        classifiers.load(served, file)
    running: Engine
    if engine_url is not None:
        key = _lines(engine_key)[0] if engine_key else None
        device = "cpu" if device == "auto" else device
        running, processor = remote_engine(checkpoint, dtype, device, engine_url, engine_model, key)
    else:
        loading = (checkpoint, dtype, attention, holding, device)
        running, processor = local_engine(loading, memory, max_batch, max_gap, decoding)
    adapters = Adapters(running, name or Path(checkpoint).name, adapter_root or [])
    for served, folder in pairs:
        adapters.add(served, folder)
    service = Service(
        running,
        processor,
        adapters,
        limits=Limits(max_queue, max_new_tokens, max_length, timeout=timeout),
        classifiers=classifiers,
        fetcher=Fetcher(frozenset(h.lower() for h in image_hosts or [])),
    )
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    app = create_app(service, keys, allow_origins or (), total_seconds=timeout + 60)
    run(app, service, sock, drain)


def local_engine(
    loading: tuple[str, str, str, Holding, str],
    memory: Memory,
    max_batch: int,
    max_gap: float,
    decoding: Literal["auto", "plain", "recorded"],
) -> tuple["Engine", "CromeProcessor"]:
    """An engine in this process; it runs the model on the thread that has loaded it.

    Args:
        loading: Checkpoint, type, attention, holding and device, as `load` takes them.
        memory: How much of it is kept for what.
        max_batch: Answers decoded together.
        max_gap: Seconds that reading prompts may take between two tokens of running answers.
        decoding: See `serve`.
    """
    from crome.attached import AttachedModel
    from crome.checkpoints.loading import load
    from crome.model.decoding import decode_fast
    from crome.model.large_pages import use_large_pages
    from crome.model.slots import choose
    from crome.serving.engine.local import LocalEngine
    from crome.serving.engine.prefill import Prefill
    from crome.serving.engine.thread import ModelThread
    from crome.serving.engine.whole import GenerateEngine

    thread = ModelThread()
    model, processor = thread.run(load, *loading).result()
    thread.run(choose, model.language_model, decoding).result()
    if thread.run(decode_fast, model, loading[2] == "auto").result():
        logger.info("weights are in the processor's layout, which was measured to be faster")
    if model.device.type == "cpu":
        use_large_pages()
    if isinstance(model, AttachedModel):
        return GenerateEngine(model, processor, max_batch=max_batch, thread=thread), processor
    prefill = Prefill(model, _bytes(memory.features_gib), _bytes(memory.prefixes_gib))
    answers = _bytes(memory.answers_gib)
    engine = LocalEngine(
        model, processor, max_batch=max_batch, gap=max_gap, cache_bytes=answers, prefill=prefill,
        thread=thread,
    )  # fmt: skip
    return engine, processor


def remote_engine(
    checkpoint: str, dtype: str, device: str, url: str, name: str | None, key: str | None
) -> tuple["Engine", "CromeProcessor"]:
    """An engine that has a vLLM decode; here is only what runs before the language model."""
    from crome.serving.engine.remote import RemoteEngine
    from crome.serving.vllm import load_front_end

    model, processor = load_front_end(checkpoint, dtype=dtype, device=device)
    name = name or str(getattr(model.config, "language_model_id", checkpoint))
    engine = RemoteEngine(model, processor, url, name, key)
    engine.connect()
    return engine, processor


def _bytes(gib: float | None) -> int | None:
    return None if gib is None else int(gib * 2**30)


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
    from crome.serving.http.gate import Keys

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
