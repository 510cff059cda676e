"""Documentation that is true: every block is run, every link leads somewhere, every name exists.

The blocks of one page are run in their order, in one process and one empty folder: ``python`` in
one namespace, ``bash`` with the installed ``monro``; ``yaml`` and ``json`` must parse. A block in
``console`` may only show what sets the project up, which running the tests has done already; one
in ``text`` shows output. No other language may stand at a fence, and none of it is left out.
"""

from __future__ import annotations

import ast
import importlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from warm import Warm

ROOT = Path(__file__).parent.parent

FOLDERS = ("benchmarks", "docs")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
PAGES += sorted(page for folder in FOLDERS for page in (ROOT / folder).rglob("*.md"))
FENCE = re.compile(r"^(?P<indent> *)```(?P<language>.*)$")
LINK = re.compile(r"\[[^\]]*\]\((?P<target>[^)#\s]+)[^)]*\)|<img[^>]*src=\"(?P<image>[^\"]+)\"")
SET_UP = re.compile(r"(make|git|cd|accelerate launch|\.ci/run|\.venv/bin/pre-commit|#)(\s|$)")
LIMIT = 900  # seconds for all the blocks of one page


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its code, and the line where the code begins."""

    language: str
    code: str
    line: int


def read_blocks(text: str) -> Iterator[Block]:
    """Yield the fenced blocks of a page; one that is not closed is an error."""
    language, indent, start, code = "", "", 0, list[str]()
    inside = False
    for number, line in enumerate(text.splitlines(), 1):
        fence = FENCE.match(line)
        if not inside and fence:
            inside, language, indent = True, fence["language"].strip(), fence["indent"]
            start, code = number + 1, []
        elif inside and line.strip() == "```":
            inside = False
            yield Block(language, "\n".join(code) + "\n", start)
        elif inside:
            code.append(line.removeprefix(indent))
    if inside:
        raise ValueError(f"the block that begins at line {start} is not closed")


def run_page(page: Path) -> None:
    """Run the python and bash blocks of a page in the current folder, in their order."""
    module = sys.modules["__docs__"] = ModuleType("__docs__")  # dataclasses look there for names
    namespace = vars(module)
    sys.path.insert(0, os.getcwd())  # as `python -c` does
    for block in read_blocks(page.read_text(encoding="utf-8")):
        where = f"{page}:{block.line}"
        print(f"--- {where}", flush=True)
        if block.language == "python":
            importlib.invalidate_caches()  # a bash block may have written a module
            # Blank lines before it, so that a traceback names the page's own line.
            code = "\n" * (block.line - 1) + block.code
            exec(compile(code, str(page), "exec"), namespace)
        elif block.language == "bash":
            done = subprocess.run(["bash", "-euo", "pipefail", "-c", block.code], check=False)
            if done.returncode:
                sys.exit(f"{where}: exit code {done.returncode}\n{block.code}")


def runs(page: Path) -> bool:
    blocks = read_blocks(page.read_text(encoding="utf-8"))
    return any(block.language in ("python", "bash") for block in blocks)


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


every_page = pytest.mark.parametrize("page", PAGES, ids=name)


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if runs(page)], ids=name)
def test_blocks_of_a_page_run(page: Path, tmp_path: Path, warmed: Warm) -> None:
    found = (str(warmed.bin), str(Path(sys.executable).parent), os.environ["PATH"])
    done = subprocess.run(
        [warmed.python, __file__, str(page)],
        cwd=tmp_path,
        env=warmed.environment | {"PATH": os.pathsep.join(found)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-8000:]


@every_page
def test_every_block_is_of_a_kind_that_is_checked(page: Path) -> None:
    for block in read_blocks(page.read_text(encoding="utf-8")):
        where = f"{name(page)}:{block.line}"
        if block.language == "python":
            ast.parse(block.code)
        elif block.language == "yaml":
            yaml.safe_load(block.code)
        elif block.language == "json":
            json.loads(block.code)
        elif block.language == "console":
            wrong = [s for s in block.code.splitlines() if s.strip() and not SET_UP.match(s)]
            assert not wrong, f"{where}: console is for set-up; put {wrong} into a bash block"
        else:
            assert block.language in ("bash", "text"), f"{where}: unknown {block.language!r}"


@every_page
def test_links_within_the_repository_lead_somewhere(page: Path) -> None:
    for link in LINK.finditer(page.read_text(encoding="utf-8")):
        target = link["target"] or link["image"]
        if "://" not in target and not target.startswith("mailto:"):
            assert (page.parent / target).exists(), f"{name(page)}: {target}"


def test_readme_is_a_page_long() -> None:
    assert (ROOT / "README.md").read_text(encoding="utf-8").count("\n") < 120


def names_in_papers() -> list[str]:
    text = (ROOT / "docs" / "papers.md").read_text(encoding="utf-8")
    return re.findall(r"`((?:launch|rl|posttrain|generative)(?:\.\w+)+:\w[\w.]*)`", text)


def test_every_row_of_papers_names_what_computes_it() -> None:
    rows = [
        line
        for line in (ROOT / "docs" / "papers.md").read_text(encoding="utf-8").splitlines()
        if line.startswith("|") and not line.startswith(("|-", "| Paper"))
    ]
    assert len(rows) > 10
    assert [row for row in rows if not re.search(r"`[\w.]+:\w", row)] == []


@pytest.mark.parametrize("target", names_in_papers())
def test_what_papers_names_exists(target: str) -> None:
    module, _, path = target.partition(":")
    found: object = importlib.import_module(module)
    for attribute in path.split("."):
        found = getattr(found, attribute)
    assert callable(found)
    assert found.__doc__


def test_decisions_are_all_in_the_index() -> None:
    folder = ROOT / "docs" / "decisions"
    index = (folder / "README.md").read_text(encoding="utf-8")
    for page in folder.glob("0*.md"):
        assert f"]({page.name})" in index, page.name


# --- the runner itself ------------------------------------------------------------------------


def test_blocks_are_read_with_language_line_and_indent() -> None:
    text = "a\n```python\nx = 1\n```\n- b\n  ```bash\n  monro list\n\n  ```\n"
    assert list(read_blocks(text)) == [
        Block("python", "x = 1\n", 3),
        Block("bash", "monro list\n\n", 7),
    ]
    with pytest.raises(ValueError, match="line 2 is not closed"):
        list(read_blocks("```python\nx\n"))


PYTHON_THEN_BASH = "```python\nx = 1\n```\n```bash\ntouch here\n```\n"


@pytest.mark.parametrize(
    ("text", "exit_code", "said"),
    [
        (f"{PYTHON_THEN_BASH}```python\nopen('here').close(); print(x)\n```\n", 0, "1"),
        ("```bash\necho y=2 >my.py\n```\n```python\nimport my\nassert my.y == 2\n```\n", 0, ""),
        ("```bash\nfalse | true\necho on\n```\n", 1, "exit code 1"),
        ("\n```python\nx = 1\n1 / 0\n```\n", 1, 'page.md", line 4'),
        (f"{PYTHON_THEN_BASH}```python\nassert x == 2\n```\n", 1, "AssertionError"),
    ],
)
def test_runner_sees_what_fails(tmp_path: Path, text: str, exit_code: int, said: str) -> None:
    page = tmp_path / "page.md"
    page.write_text(text, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, __file__, str(page)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == exit_code, done.stderr
    assert said in done.stdout + done.stderr


if __name__ == "__main__":
    run_page(Path(sys.argv[1]))
