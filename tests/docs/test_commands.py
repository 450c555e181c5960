"""What the pages tell people to type can be typed: verbs, options, files and Python names exist."""

import ast
import functools
import itertools
import os
import re
import shlex
import subprocess
import sys
import tomllib
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


def test_the_page_of_installation_lists_every_extra():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    listed = re.findall(r"^\| `([\w-]+)` \|", (ROOT / "docs/start/install.md").read_text(), re.M)
    assert sorted(listed) == sorted(settings["optional-dependencies"])


START = [ROOT / "README.md", *sorted((ROOT / "docs" / "start").glob("*.md"))]
RUN_HERE = re.compile(
    r"^(?:python examples/lamps\.py|crome (?:validate lamps|assets --list|--help))"
)


@pytest.mark.parametrize(
    "line", sorted({line for block in BLOCKS if block.page in START for line in commands(block)
                    if RUN_HERE.match(line)})
)  # fmt: skip
def test_cheap_commands_of_the_first_pages_print_what_is_shown(line, tmp_path):
    """Those that need no weights, typed as they stand; the page shows their output below."""
    run = {"cwd": tmp_path, "capture_output": True, "text": True, "check": True}
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "COLUMNS": "100"}
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    lamps = [sys.executable, "examples/lamps.py", "lamps"]
    if "validate" in line:
        subprocess.run(lamps, env=environment, **run)
    name, _, rest = line.partition(" ")
    python = shlex.quote(sys.executable)
    program = f"{python} -m crome {rest}" if name == "crome" else f"{python} {rest}"
    printed = subprocess.run(["bash", "-c", program], env=environment, **run).stdout
    assert printed.strip()
    for page in START:
        found = blocks(page)
        for block, shown in itertools.pairwise(found):
            if line in commands(block) and shown.language == "text":
                assert printed.strip() == shown.code.strip(), shown
    if "lamps.py" in line:
        rows = (tmp_path / "lamps" / "rows.jsonl").read_text().splitlines()
        assert "\n".join(rows[:2]) in (ROOT / "docs/start/own-data.md").read_text()
