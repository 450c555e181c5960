"""A function's signature as its command line and as its config file.

Cyclopts parses. This file says which parameters are options and which are places, reads config
files, whose values the command line always overrides, and turns errors into one line.

An option is written `--name VALUE` or `--name=VALUE`, hyphens and underscores alike. A switch is
`--name`, `--no-name` or `--name=false`. An option that takes several values is repeated, once for
each value, so that it never takes a word that was meant for something else; a list in JSON, as in
`--seeds '[0, 1, 2]'`, is one word too.
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass
from inspect import Parameter as Argument
from inspect import Signature, cleandoc, signature
from pathlib import Path
from textwrap import shorten
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from cyclopts import App, CycloptsError, Parameter, UnknownOptionError
from cyclopts.config import Dict
from cyclopts.exceptions import CoercionError, UnusedCliTokensError
from docstring_parser import parse as parse_docstring

from crome.config_file import parse, read_config
from crome.errors import InputError
from crome.hints import meant

SEEDS = range(2**32)
"""What NumPy, PyTorch and Python all take as a seed."""
FRACTION = re.compile(r"\d*\.\d*[1-9]")


def call(
    function: Callable[..., Any],
    arguments: Sequence[str],
    *,
    name: str,
    positional: bool = False,
    example: str = "",
    shared: Callable[..., Any] | None = None,
    recorded: Sequence[str] = (),
) -> None:
    """Calls a function with the options of a command line, or prints its help.

    Args:
        function: Its signature is the command line and its docstring the help.
        arguments: The words of the command line behind the command's name.
        name: The command's name, for its help.
        positional: Whether what has no default is given by its place.
        example: Words behind the command's name, for its help.
        shared: A function whose options the `**` parameter of `function` takes.
        recorded: Keys that a config file may hold besides options: what a run's own record says of
            the run.

    Raises:
        InputError: The command line or a config file is wrong.
    """
    command = described(function, positional, shared)
    try:
        given = parsed(command, arguments, name, example, recorded)
    except CycloptsError as error:
        names = option_names(command)
        raise InputError(
            f"{in_words(error, names)} `{name} --help` explains every option."
        ) from error
    if given is not None:
        function(**given)


def parsed(
    command: Callable[..., Any],
    arguments: Sequence[str],
    name: str,
    example: str = "",
    recorded: Sequence[str] = (),
) -> dict[str, Any] | None:
    """The options of a command line over those of its config files; None where help was asked for.

    The arguments are those of `call`, but for the command, which is that of `described`.
    """
    refuse_empty(arguments, command)
    app = App(
        name=name,
        help_epilogue=f"Example: {name} {example}".rstrip(),
        help_format="plaintext",
        version_flags=(),
        default_parameter=Parameter(name_transform=str, negative_iterable=()),
        result_action="return_value",
    )
    app.default(command)
    found: dict[str, Any] = {}
    called = []  # stays empty where Cyclopts prints the help

    def with_config(
        *words: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)],
        config: Annotated[
            list[Path] | None,
            Parameter(help="YAML file with any of the options; the command line overrides it."),
        ] = None,
    ) -> None:
        app.config = tuple(
            Dict(options, source=str(path), use_commands_as_keys=False)
            for path, options in read_configs(config or [], command, recorded)
        )
        _, bound, _ = app.parse_args(words, exit_on_error=False, print_error=False)
        found.update(bound.arguments)
        called.append(True)

    app.meta.default(with_config)
    app.meta(arguments, exit_on_error=False, print_error=False)
    if not called:
        return None
    check_seeds(found)
    return found


def from_file(function: Callable[..., Any], path: Path) -> dict[str, Any]:
    """A function's options as a config file gives them, with the defaults of all others.

    Args:
        function: Its signature says what the options are.
        path: A YAML file.

    Raises:
        InputError: The file is wrong.
    """
    command = described(function, positional=False)
    defaults = {
        one.name: one.default
        for one in signature(command).parameters.values()
        if one.default is not one.empty
    }
    try:
        given = parsed(command, ["--config", str(path)], str(path))
    except CycloptsError as error:
        raise InputError(in_words(error, option_names(command))) from error
    return defaults | (given or {})


def described(
    function: Callable[..., Any], positional: bool, shared: Callable[..., Any] | None = None
) -> Callable[..., Any]:
    """A stand-in with a function's options as Cyclopts wants to see them; see `call`."""
    parameters = []
    for one in signature(function, eval_str=True).parameters.values():
        if one.kind is Argument.VAR_KEYWORD and shared is not None:
            others = signature(shared, eval_str=True).parameters.values()
            parameters += [option(other, shared, False) for other in others]
        else:
            parameters.append(option(one, function, positional))
    by_place = Argument.POSITIONAL_OR_KEYWORD
    parameters.sort(key=lambda one: (one.kind is not by_place, one.default is not one.empty))

    def command(**options: Any) -> None: ...

    command.__doc__ = unwrapped((function.__doc__ or "").split("Args:")[0])
    command.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {one.name: one.annotation for one in parameters}
    return command


def option(parameter: Argument, function: Callable[..., Any], positional: bool) -> Argument:
    """A parameter with its help, by its place only where it must be given."""
    required = parameter.default is parameter.empty
    by_place = positional and required and parameter.kind is not Argument.KEYWORD_ONLY
    about: dict[str, Any] = {"help": explained(function, parameter.name)}
    if holds_several(parameter.annotation) and not by_place:
        about["help"] += " Repeat the option for several."
        about["json_list"] = list[Path] not in (
            parameter.annotation,
            *get_args(parameter.annotation),
        )
    if (holds := mapping_of(parameter.annotation)) is not None:
        about |= {"accepts_keys": False, "n_tokens": 1, "converter": mapping_converter(holds)}
    return parameter.replace(
        kind=Argument.POSITIONAL_OR_KEYWORD if by_place else Argument.KEYWORD_ONLY,
        annotation=Annotated[parameter.annotation, Parameter(**about)],
    )


def explained(function: Callable[..., Any], name: str) -> str:
    """What a function's docstring says of a parameter."""
    documented = parse_docstring(cleandoc(function.__doc__ or "")).params
    found = next((one.description for one in documented if one.arg_name == name), None)
    return " ".join((found or "").split())


def unwrapped(text: str) -> str:
    """A docstring with each paragraph on one line, for a terminal of any width."""
    return "\n\n".join(" ".join(part.split()) for part in cleandoc(text).split("\n\n")).strip()


def holds_several(annotation: Any) -> bool:
    """Whether an option takes several values."""
    return any(get_origin(kind) is list for kind in (annotation, *get_args(annotation)))


def mapping_of(annotation: Any) -> Any:
    """What the values of a mapping are; None for a type that is not a mapping."""
    for kind in (annotation, *get_args(annotation)):
        if get_origin(kind) is dict:
            return get_args(kind)[1]
    return None


def mapping_converter(holds: Any) -> Callable[..., dict[str, Any]]:
    """Reads a mapping that is written as YAML or JSON, as in `--settings '{branches: [query]}'`.

    Args:
        holds: The type of its values: anything, or a dataclass.
    """

    def convert(_: Any, tokens: Sequence[Any]) -> dict[str, Any]:
        value = parse(tokens[0].value, tokens[0].keyword or "the value")
        if not isinstance(value, dict):
            raise ValueError(f"found {tokens[0].value}; expected a mapping, as {{name: value}}")
        if not is_dataclass(holds):
            return value
        known = [field.name for field in fields(holds)]
        for name, settings in value.items():
            if wrong := next((key for key in settings or {} if key not in known), None):
                raise ValueError(f"{name} has no setting {wrong!r}{meant(wrong, known)}")
        return {name: holds(**(settings or {})) for name, settings in value.items()}  # type: ignore[operator]

    return convert


def read_configs(
    paths: Sequence[Path], command: Callable[..., Any], recorded: Sequence[str]
) -> list[tuple[Path, dict[str, Any]]]:
    """The options of config files, which must not contradict each other.

    Raises:
        InputError: A file cannot be read, or two give different values for an option.
    """
    files: list[tuple[Path, dict[str, Any]]] = []
    for path in paths:
        options = {k: v for k, v in read_config(path).items() if k not in recorded}
        for earlier, others in files:
            if both := [key for key in options if others.get(key, options[key]) != options[key]]:
                raise InputError(f"{earlier} and {path} give different values for {both[0]}.")
        groups = {k: v for k, v in options.items() if isinstance(v, dict)}
        inner = {f"{k}.{name}": v for k, group in groups.items() for name, v in group.items()}
        for name, value in (options | inner).items():
            refuse_fraction(name, str(value), command, f" in {path}")
        files.append((path, as_written(options, command, path)))
    return files


def as_written(options: dict[str, Any], command: Callable[..., Any], path: Path) -> dict[str, Any]:
    """Options of a config file in the form that the command line has for them.

    Raises:
        InputError: A group of options has a single value.
    """
    given = dict(options)
    for name, parameter in signature(command).parameters.items():
        if (value := given.get(name)) is None:
            continue
        if one := first_field(parameter):
            if not isinstance(value, dict):
                raise InputError(
                    f"{path}: {name} is {value!r}; expected its options, such as {name}.{one}."
                )
        elif isinstance(value, dict):
            given[name] = json.dumps(value, default=str)
    return given


def first_field(parameter: Argument) -> str | None:
    """The first option of a parameter that is a group of options; None for any other."""
    names = group_fields(parameter)
    return names[0] if names else None


def group_fields(parameter: Argument) -> list[str]:
    """The options of a parameter that is a group of options; none for any other."""
    kind = parameter.annotation
    if hasattr(kind, "__metadata__"):
        kind = get_args(kind)[0]
    return [field.name for field in fields(kind)] if is_dataclass(kind) else []


def refuse_empty(arguments: Sequence[str], command: Callable[..., Any]) -> None:
    """Refuses options without a value, and a single value for a group of options.

    Raises:
        InputError: The message names the first such option.
    """
    parameters = signature(command).parameters
    for place, word in enumerate(arguments):
        name, sign, value = word.partition("=")
        following = value if sign else "".join(arguments[place + 1 : place + 2])
        group, _, key = name.removeprefix("--").partition(".")
        parameter = parameters.get(group)
        if not name.startswith("--"):
            continue
        refuse_fraction(name, following, command)
        if not following and (sign or arguments[place + 1 :]):
            raise InputError(f"{name} is empty; give it a value, or leave it out.")
        if parameter is None:
            continue
        if (one := first_field(parameter)) and not key:
            raise InputError(
                f"{name}: found {following}; expected its options, such as {name}.{one}."
            )
        if key and one is None:
            raise InputError(f"{name}: write --{group} '{{{key}: VALUE}}'.")


def refuse_fraction(name: str, value: str, command: Callable[..., Any], source: str = "") -> None:
    """Refuses a fraction for an option of whole numbers, which Cyclopts would round.

    Raises:
        InputError: It is one.
    """
    group, _, key = name.removeprefix("--").replace("-", "_").partition(".")
    kind = command.__annotations__.get(group, Any)
    kind = get_args(kind)[0] if hasattr(kind, "__metadata__") else kind
    if key and is_dataclass(kind):
        kind = get_type_hints(kind).get(key, Any)
    kinds = {kind, *get_args(kind)}
    whole = int in kinds or list[int] in kinds
    if whole and float not in kinds and FRACTION.search(value):
        raise InputError(f"{written(name)}{source}: found {value}; expected a whole number.")


def check_seeds(options: dict[str, Any]) -> None:
    """Refuses seeds that a random generator would not take.

    Raises:
        InputError: The message names the first of them.
    """
    for name in {"seed", "seeds"} & options.keys():
        values = options[name] if isinstance(options[name], list) else [options[name]]
        for value in values:
            if value is not None and value not in SEEDS:
                limits = "0 or more" if value < 0 else f"at most {SEEDS[-1]:,}"
                raise InputError(f"--{name} is {value}; expected {limits}.")


def option_names(command: Callable[..., Any]) -> list[str]:
    """Names of all options, those of groups with the group's name before them."""
    names: list[str] = ["config"]
    for name, parameter in signature(command).parameters.items():
        names += [name, *(f"{name}.{field}" for field in group_fields(parameter))]
    return names


def in_words(error: CycloptsError, names: Sequence[str]) -> str:
    """What is wrong with a command line or a config file, in one line."""
    if isinstance(error, UnknownOptionError):
        word = (error.token.keyword or error.token.value).partition("=")[0]
        if " " in word:
            text = shorten(word, 80, placeholder=" …")
            return f"{text!r} begins with a hyphen, as options do; write it last, behind a word --."
        source = "" if error.token.source in ("", "cli") else f" in {error.token.source}"
        name = written(word) if word.startswith(("--", "[")) else repr(word)
        return f"no option {name}{source}{meant(word, names, '--')}."
    if isinstance(error, UnusedCliTokensError):
        words = shorten(" ".join(error.unused_tokens or []), 80, placeholder=" …")
        return (
            f"{words!r} belongs to no option. Repeat an option for each of its values; a switch is "
            "--name, --no-name or --name=false."
        )
    if isinstance(error, CoercionError) and error.msg is None and error.token is not None:
        name = written(error.token.keyword or (error.argument.name if error.argument else ""))
        source = "" if error.token.source in ("", "cli") else f" in {error.token.source}"
        return f"{name}{source}: found {error.token.value}; expected {expected(error.target_type)}."
    error.verbose = False
    return f"{' '.join(str(error).split()).rstrip('.')}."


EXPECTED = {int: "a whole number", float: "a number", bool: "true or false"}


def expected(kind: Any) -> str:
    """How a value of a type is written."""
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, get_args(kind)))}"
    if len(some := [one for one in get_args(kind) if one is not type(None)]) == 1:
        return expected(some[0])
    return EXPECTED.get(kind, "a single value")


def written(name: str) -> str:
    """An option's name as it is typed, from the form that errors about config files have."""
    return f"--{name.strip('-[]').replace('][', '.')}"
