"""README and docs/ against what they talk about: links, commands, options, public names."""

import argparse
import ast
import re
import shlex
from pathlib import Path

import pytest

import pyunetsep
from pyunetsep.cli import parser

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
if not (ROOT / "README.md").is_file() or not DOCS.is_dir():
    pytest.skip("README.md and docs/ are in the repository only", allow_module_level=True)
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
SHELL_OPERATORS = {"|", "||", "&", "&&", ";", ">", "<", ">>"}

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def prose(page):
    """The page without its code blocks."""
    return BLOCK.sub("", page.read_text(encoding="utf-8"))


def blocks(page, language):
    return [code for kind, code in BLOCK.findall(page.read_text(encoding="utf-8")) if kind == language]


def anchors(page):
    """What GitHub makes of headings."""
    titles = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


def broken_links(page):
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        if not file.exists() or (anchor and (file.suffix != ".md" or anchor not in anchors(file))):
            broken.append(target)
    return broken


def commands(command_parser):
    """{name: its parser}, of a parser's subcommands."""
    for action in command_parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def flags(command_parser):
    return {flag for action in command_parser._actions for flag in action.option_strings}


def invocations(code):
    """The words after each `pyunetsep` of a shell script, up to the end of its command."""
    for line in code.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words = list(lexer)
        docker = "docker" in words[:1]
        for i, word in enumerate(words):
            if word != "pyunetsep" or (docker and words[i - 1] == "--tag"):
                continue
            if i and words[i - 1] not in SHELL_OPERATORS | {"-m"} and not docker:
                continue  # an argument of something else
            rest = words[i + 1 :]
            end = next((j for j, later in enumerate(rest) if set(later) <= set("|&;<>")), len(rest))
            yield rest[:end]


def problems(words):
    """What the parser does not know of a command line."""
    here = parser()
    while (below := commands(here)) and words:
        if words[0] not in below:
            return [] if words[0] in flags(here) else [f"no command {words[0]}"]
        here, words = below[words[0]], words[1:]
    given = {word.partition("=")[0] for word in words if re.match(r"--?[a-zA-Z]", word)}
    return sorted(given - flags(here))


@pages
def test_links_lead_somewhere(page):
    assert broken_links(page) == []


def test_a_broken_link_is_noticed(tmp_path):
    (tmp_path / "there.md").write_text("# A title, and `code`\n")
    page = tmp_path / "page.md"
    page.write_text(
        "[a](there.md#a-title-and-code) [b](gone.md) [c](there.md#gone) [d](#gone) [e](https://example.org)\n"
    )
    assert broken_links(page) == ["gone.md", "there.md#gone", "#gone"]


@pages
def test_commands_and_options_exist(page):
    found = [words for code in blocks(page, "sh") for words in invocations(code)]
    assert {" ".join(words): wrong for words in found if (wrong := problems(words))} == {}


def test_unknown_commands_and_options_are_noticed():
    script = """
        ffmpeg -i film.mkv - | pyunetsep separate - -o - --stem vocals --fast > vocals.wav   # --comment
        pyunetsep models fetch x --force && pyunetsep sing
        torchrun --nproc-per-node 2 -m pyunetsep train --data my-songs \\
          --epochs 3
        docker build --tag pyunetsep . ; docker run --rm pyunetsep separate song.wav --loud
        pip install pyunetsep --quiet
    """
    found = [problems(words) for words in invocations(script)]
    assert found == [["--fast"], [], ["no command sing"], ["--epochs"], ["--loud"]]


@pages
def test_python_blocks_are_python(page):
    for code in blocks(page, "python"):
        ast.parse(code)


def sections(page, level):
    """{title: text} of the page's headings of this level."""
    parts = re.split(rf"^{'#' * level} (.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_the_reference_has_every_public_name():
    text = (DOCS / "python.md").read_text(encoding="utf-8")
    assert [name for name in pyunetsep.__all__ if not re.search(rf"`[^`]*\b{name}\b[^`]*`", text)] == []


def test_the_reference_has_every_command_with_its_options():
    reference = DOCS / "command-line.md"
    found, missing = sections(reference, 2), []
    for name, command in commands(parser()).items():
        actions = commands(command)
        below = {f"{name} {action}": action_parser for action, action_parser in actions.items()}
        for title, documented in {name: command, **below}.items():
            text = (found if title == name else sections(reference, 3)).get(title, "")
            options = flags(documented) - {"-h", "--help"}
            missing += [title] if not text else [f"{title} {flag}" for flag in options if not in_table(flag, text)]
    assert missing == []


def in_table(flag, text):
    return re.search(rf"^\|[^|]*`{flag}[` ]", text, re.MULTILINE) is not None


def test_the_index_has_every_page():
    index = (DOCS / "README.md").read_text(encoding="utf-8")
    assert [page.name for page in DOCS.glob("*.md") if page.name != "README.md" and f"({page.name})" not in index] == []
