"""What the pages tell people to type can be typed: verbs, options, files and Python names exist."""

import ast
import functools
import re
import shlex
import sys
from contextlib import redirect_stdout, suppress
from importlib import import_module
from io import StringIO
from pathlib import Path

import pytest

from crome import cli

sys.path.insert(0, str(Path(__file__).parent))
from pages import INLINE, PAGES, ROOT, blocks, commands, prose

HISTORY = {ROOT / "CHANGELOG.md", *(ROOT / "docs" / "log").glob("*.md")}
"""Pages that tell of the past, whose commands may be gone."""
PRESENT = [page for page in PAGES if page not in HISTORY]
BLOCKS = [block for page in PRESENT for block in blocks(page)]
TYPED = [(block, line) for block in BLOCKS for line in commands(block)]
LAUNCHERS = re.compile(
    r"^(?:[A-Z_]+=\S+ )*(?:(?:torchrun|accelerate launch)\b.*? -m |python -m )?crome "
)


def words(line):
    """The words behind `crome` that the command is given, without what the shell takes."""
    typed = re.split(r"\s(?:\||>|>>|2>|<|&&|&|;)\s|\s&$", LAUNCHERS.sub("", line))[0]
    return shlex.split(typed)


@pytest.mark.parametrize(
    ("block", "line"),
    [(block, line) for block, line in TYPED if LAUNCHERS.match(line)],
    ids=lambda x: x if isinstance(x, str) else x.page.stem,
)
def test_commands_parse(block, line, monkeypatch):
    """Up to the call of the verb's function, whose signature is kept."""
    called = []
    load = cli.load

    def recording(verb):
        function = load(verb)
        return functools.wraps(function)(lambda **given: called.append(given))

    monkeypatch.setattr(cli, "load", recording)
    monkeypatch.chdir(ROOT)
    try:
        with redirect_stdout(StringIO()):
            cli.run(words(line))
    except SystemExit:
        assert "--help" in words(line), f"{block}: {line}"
    except cli.InputError as error:
        pytest.fail(f"{block}: {line}\n{error}")
    else:
        assert len(called) == (words(line) != ["--help"]), f"{block}: {line}"


@functools.cache
def options(verb):
    """The options that the help of a verb names."""
    page = StringIO()
    with redirect_stdout(page), suppress(SystemExit):
        cli.main([*verb.split(), "--help"])
    return set(re.findall(r"--[a-z][\w.-]*", page.getvalue()))


@pytest.mark.parametrize("page", PRESENT, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_in_sentences_have_verbs_and_options(page):
    wrong = []
    for code in INLINE.findall(prose(page)):
        if not re.match(r"crome [a-z]", code):
            continue
        typed = code.split()[1:]
        verb = next((v for v in (" ".join(typed[:2]), typed[0]) if v in cli.VERBS), None)
        groups = {name.split()[0] for name in cli.VERBS if " " in name}
        if verb is None and not (typed[0] in groups and len(typed) == 1):
            wrong.append(code)
        named = [word.partition("=")[0] for word in typed if word.startswith("--")]
        wrong += [f"{code}: {name}" for name in named if verb and name not in options(verb)]
    assert wrong == []


def test_programs_that_are_named_exist():
    for block, line in TYPED:
        for path in re.findall(r"\bpython ([\w/]+\.py)\b", line):
            assert (ROOT / path).exists(), f"{block}: {line}"
        for name in re.findall(r"\bpython -m (crome[\w.]*)", line):
            assert import_module(name.removesuffix(".__main__")), f"{block}: {line}"


PYTHON = [block for block in BLOCKS if block.language == "python"]


@pytest.mark.parametrize("block", PYTHON, ids=str)
def test_python_compiles_and_its_names_exist(block):
    tree = ast.parse(block.code)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "crome":
            module = import_module(node.module)
            for alias in node.names:
                assert hasattr(module, alias.name) or import_module(f"{node.module}.{alias.name}")
