"""The pages: every block of Python on them runs, and what they quote exists."""

import os
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path) -> list[str]:
    """The Python blocks of a page that stand there in full, not by inclusion."""
    found = re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
    return [block for block in found if "--8<--" not in block]


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=lambda page: page.name)
def test_python_on_a_page_runs_and_prints_what_it_says(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """From top to bottom; behind `# ->` stands what a line prints."""
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "page"}
    for block in blocks(page):
        exec(compile(block, page.name, "exec"), names)
        printed = capsys.readouterr().out.splitlines()
        assert [said for said in re.findall("# -> (.*)", block) if said not in printed] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_a_page_names_exist(page: Path):
    text = page.read_text()
    named = re.findall(r"`((?:benchmarks|tests|minitrain|docs)/[\w./]+\.\w+)`", text)
    linked = [os.path.normpath(page.parent / path) for path in re.findall(r"\]\(([\w./-]+\.\w+)[)#]", text)]
    assert all((ROOT / name).is_file() for name in named)
    assert all(Path(path).is_file() for path in linked), linked
