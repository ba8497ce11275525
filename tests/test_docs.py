"""The pages: every block of Python on them runs, what they quote exists, and tables come out of records as they should."""

import importlib.util
import itertools
import json
import os
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from minitrain.lab.lessons import lesson_files

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]


def script(name: str) -> ModuleType:
    """A script of docs/ as a module."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", ROOT / "docs" / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


tables, check, katex = script("tables"), script("check"), script("katex")


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


# --- pages ------------------------------------------------------------------------------------------------------------


def blocks(page: Path) -> list[str]:
    """The Python blocks of a page that stand there in full, not by inclusion."""
    found = re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
    return [block for block in found if "--8<--" not in block]


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=name_of)
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


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_files_that_a_page_names_exist(page: Path):
    text = page.read_text()
    named = re.findall(r"`((?:benchmarks|tests|minitrain|docs|lessons)/[\w./]+\.\w+)`", text)
    linked = [os.path.normpath(page.parent / path) for path in re.findall(r"\]\(([\w./-]+\.\w+)[)#]", text)]
    assert all((ROOT / name).is_file() for name in named)
    assert all(Path(path).is_file() for path in linked), linked


HEADINGS = [  # of every lesson's page, in this order; its own come between them
    "The question",
    "What is run",
    "What turned out",
    "Claims",
    "Break it",
    "How it differs from the paper",
    "What this lesson does not show",
    "Exercise",
    "Further reading",
    "Where to go next",
]


@pytest.mark.parametrize(("slug", "following"), [*itertools.pairwise([*lesson_files(), None])])
def test_a_lesson_page_has_the_usual_headings_and_leads_to_the_next(slug: str, following: str | None):
    text = (ROOT / "docs" / "lessons" / f"{slug}.md").read_text()
    assert [found for found in re.findall("^## (.+)$", text, re.MULTILINE) if found in HEADINGS] == HEADINGS
    assert "\n## What turned out\n\n**The answer.** " in text
    first, *_ = re.findall(r"\]\(([^)]+)\)", text.partition("## Where to go next")[2])
    assert first == (f"{following}.md" if following else "../pieces.md")


def test_every_module_is_in_the_reference_or_only_serves_others():
    package = ROOT / "minitrain"
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts) for path in package.glob("**/[a-z]*.py")}
    shown = set(re.findall("^::: (.+)$", (ROOT / "docs" / "reference.md").read_text(), re.MULTILINE))
    serving = {f"lab.{name}" for name in ("grader", "places", "source", "words", "worker")}
    serving |= {f"runtime.{name}" for name in ("describe", "files", "rotate_rows")}
    missing = {name.removeprefix("minitrain.") for name in modules - shown if not name.startswith("minitrain.cli")}
    assert missing <= serving, f"add to docs/reference.md: {sorted(missing - serving)}"


def test_every_paper_that_is_named_stands_in_the_bibliography():
    sources = [path for folder in ("minitrain", "lessons", "docs") for path in (ROOT / folder).glob("**/*.[pm][yd]")]
    named = {id for path in sources for id in re.findall(r"arXiv:?\s+(\d{4}\.\d{4,5})", path.read_text())}
    listed = set(re.findall(r"arxiv\.org/abs/(\d{4}\.\d{4,5})", (ROOT / "docs" / "bibliography.md").read_text()))
    assert named <= listed, f"add to docs/bibliography.md: {sorted(named - listed)}"


# --- tables -----------------------------------------------------------------------------------------------------------


def claim(**changes: Any) -> dict[str, Any]:
    return {
        "name": "same-rotation",
        "sentence": "The rotation is the predicted one",
        "kind": "simulation",
        "threshold": "0.98 to 1.02",
        "unit": "",
        "paper": "",
        "values": [0.99, 1.0, 1.01],
        "mean": 1.0,
        "low": 0.9752,
        "high": 1.0248,
        "verdict": "not distinguishable",
    } | changes


def record(**changes: Any) -> dict[str, Any]:
    measure = {"name": "loss, nats", "lr": None}
    return {
        "lesson": "toy",
        "preset": "record",
        "command": "minitrain lesson toy --preset record",
        "environment": {"python": "3.11", "torch": "2.13.0", "device": "cpu", "cpu": "a CPU"},
        "minutes": 2.0,
        "measures": [
            {**measure, "arm": "A", "values": [2.1, 2.12, 2.14]},
            {**measure, "arm": "B", "values": [2.5, None, 2.5]},
            {"name": "norm", "lr": None, "arm": "A", "values": [3.0, 3.0, 3.0]},
        ],
        "claims": [claim()],
        "runs": [],
    } | changes


def lesson(record: dict[str, Any] | None, slug: str = "toy") -> Any:
    return tables.Lesson(slug, "07", "A toy", "what does it do?", record, 12.3)


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch):
    """Toy records are not stale unless a test says so."""
    monkeypatch.setattr(tables, "is_stale", lambda record: False)


def test_measures_are_mean_and_standard_error_with_two_digits_of_the_error():
    lines = tables.measures_table(record()).splitlines()
    assert lines[0] == "| arm | loss, nats | norm |"
    assert lines[2] == "| A | 2.120 ± 0.012 | 3 |"  # 0.02 / sqrt(3)
    assert lines[3] == "| B | diverged in 1 of 3 |  |"
    assert lines[5] == "Mean ± standard error over 3 seeds."


def test_a_sweep_has_a_column_of_learning_rates():
    measures = [{"name": "loss", "arm": "A", "lr": lr, "values": [lr]} for lr in (0.001, 0.01)]
    lines = tables.measures_table(record(measures=measures)).splitlines()
    assert lines[0] == "| arm | learning rate | loss |"
    assert lines[2:4] == ["| A | 0.001 | 0.001 |", "| A | 0.01 | 0.01 |"]
    assert lines[5] == "One seed."


@pytest.mark.parametrize(
    ("changes", "printed"),
    [
        ({}, "1.000 (0.975 to 1.025)"),
        ({"unit": "rad"}, "1.000 rad (0.975 to 1.025)"),
        ({"kind": "algebra"}, "0.99 to 1.01"),
        ({"kind": "algebra", "values": [0.5], "mean": 0.5, "low": None, "high": None}, "0.5"),
        ({"threshold": "at least 50 % of the seeds", "values": [1.0, 0.0, 1.0]}, "2 of 3 seeds"),
        ({"values": [1.0, None], "mean": None, "low": None, "high": None}, "not finite in every run"),
    ],
)
def test_what_was_found_for_a_claim(changes: dict[str, Any], printed: str):
    assert tables.found(claim(**changes)) == printed


def test_claims_say_sentence_threshold_and_verdict_and_what_the_paper_says():
    lines = tables.claims_table(lesson(record(claims=[claim(verdict="holds", paper="1.01, table 2")]))).splitlines()
    assert lines[0] == "| verdict | claim | measured, with 95 % interval |"
    assert lines[2].startswith("| **holds** | The rotation is the predicted one. Paper: 1.01, table 2. | 1.000 (")
    assert lines[2].endswith("<br>threshold: 0.98 to 1.02<br>simulation, 3 seeds |")


def test_a_bar_in_a_sentence_does_not_break_the_table():
    assert "\\|w\\|" in tables.claims_table(lesson(record(claims=[claim(sentence="|w| settles")])))


def test_the_ledger_counts_verdicts_and_links_only_to_pages_that_exist():
    claims = [claim(verdict="holds"), claim(verdict="holds"), claim()]
    text = tables.ledger([lesson(record(claims=claims)), lesson(None), lesson(record(), slug="train_a_gpt")])
    assert text.startswith("4 claims: 2 *holds*, 2 *not distinguishable*.\n")
    assert "<br>07 A toy, `toy/same-rotation` |" in text
    page = (ROOT / "docs" / "lessons" / "train_a_gpt.md").is_file()
    assert ("[07 A toy](lessons/train_a_gpt.md)" in text) == page


def test_without_records_one_line_says_so():
    assert set(tables.lesson_files(lesson(None)).values()) == {tables.NOT_RECORDED}
    assert tables.ledger([lesson(None)]) == tables.NOT_RECORDED


def test_the_files_of_a_page_and_a_stale_record(monkeypatch: pytest.MonkeyPatch):
    assert tables.lesson_files(lesson(record())).keys() == {"toy.md", "toy-claims.md", "toy-command.md"}
    monkeypatch.setattr(tables, "is_stale", lambda record: True)
    files = tables.lesson_files(lesson(record()))
    assert files["toy.md"].startswith(tables.STALE)
    assert files["toy-claims.md"].startswith(tables.STALE)
    assert "earlier version of the code: A toy." in tables.ledger([lesson(record())])


def test_the_command_says_where_and_how_long():
    assert tables.command(record()) == (
        "```\nminitrain lesson toy --preset record\n```\n\n"
        "2 minutes of one core on a CPU; Python 3.11, PyTorch 2.13.0; [record](../results/toy.json).\n"
    )


def test_the_course_tells_question_and_time():
    assert tables.course([lesson(None)]).splitlines()[2] == "| 07 A toy | What does it do? | 12 seconds |"


@pytest.mark.parametrize(("seconds", "words"), [(None, ""), (0.2, "1 second"), (59.4, "59 seconds"), (90, "2 minutes")])
def test_durations(seconds: float | None, words: str):
    assert tables.duration(seconds) == words


def test_every_lesson_begins_with_title_and_question():
    for found in tables.lessons():
        assert found.title
        assert found.question.endswith("?")
    with pytest.raises(ValueError, match="a lesson begins with"):
        tables.title_and_question("A lesson.")


# --- the check of the built site ----------------------------------------------------------------------------------------


def site(folder: Path, body: str, head: str = "") -> list[str]:
    (folder / "other").mkdir(exist_ok=True)
    (folder / "other" / "index.html").write_text('<h1 id="there">Other</h1>')
    (folder / "x-light.svg").touch()
    (folder / "x-dark.svg").touch()
    (folder / "index.html").write_text(f"<html><head>{head}</head><body>{body}</body></html>")
    return check.faults(folder)


@pytest.mark.parametrize(
    "body",
    [
        '<a href="other/#there">a</a> <a href="/other/">b</a> <a href="#here">c</a> <p id="here">',
        '<a href="https://arxiv.org/abs/1412.6980">links to papers may leave the site</a>',
        '<img src="x-light.svg#only-light" alt="x"><img src="x-dark.svg#only-dark" alt="x">',
        '<script src="assets/katex/katex.min.js"></script> not there: no npm, which was said',
    ],
)
def test_a_sound_site_has_no_faults(tmp_path: Path, body: str):
    assert site(tmp_path, body) == []


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        ('<a href="nowhere/">a</a>', "refers to nowhere/, which does not exist"),
        ('<a href="other/#gone">a</a>', "no such anchor"),
        ('<img src="gone.svg" alt="x">', "refers to gone.svg"),
        ('<img src="x-light.svg#only-light" alt="x">', "without its twin x-dark.svg#only-dark"),
        ('<img src="https://example.org/x.png" alt="x">', "fetches https://example.org/x.png from another host"),
        ('<link rel="stylesheet" href="//example.org/x.css">', "from another host"),
        ('<p style="background: url(https://example.org/x.png)">', "from another host"),
        ("<style>@import 'https://example.org/x.css'</style>", "from another host"),
        ('<img srcset="https://example.org/x.png 2x" alt="x">', "from another host"),
        ('<img src="x-light.svg" alt=" ">', "shows x-light.svg without words"),
        ('<pre class="mermaid">a</pre>', "class mermaid"),
    ],
)
def test_each_fault_of_a_site_is_found(tmp_path: Path, body: str, fault: str):
    (found,) = site(tmp_path, body)
    assert found.startswith("index.html")
    assert fault in found


def test_faults_in_style_sheets_and_scripts_are_found(tmp_path: Path):
    (tmp_path / "x.css").write_text("p { background: url('https://example.org/x.png') } a { background: url(data:x) }")
    (tmp_path / "x.js").write_text('/* fetch("https://a.org") */ fetch("https://example.org/x.json")')
    assert len(site(tmp_path, "")) == 2


def test_a_formula_that_cannot_be_set_is_found(tmp_path: Path):
    if check.shutil.which("node") is None or katex.present_version() is None:
        pytest.skip("needs Node.js and the KaTeX that `make docs` brings")
    (tmp_path / "assets").mkdir()
    (tmp_path / "assets" / "katex").symlink_to(katex.TARGET)
    formula = '<span class="arithmatex">\\({}\\)</span>'
    assert site(tmp_path, formula.format("\\frac{a}{b}")) == []
    (found,) = site(tmp_path, formula.format("\\frac{a}{b"))
    assert "\\frac{a}{b" in found


# --- KaTeX --------------------------------------------------------------------------------------------------------------


def test_without_npm_one_sentence_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(katex, "TARGET", tmp_path / "katex")
    monkeypatch.setattr(katex.shutil, "which", lambda name: None)
    katex.main()
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("npm was not found, so the pages show their formulas as TeX")


def test_the_lock_pins_katex_and_names_no_registry():
    lock = (ROOT / "package-lock.json").read_text()
    package = json.loads(lock)["packages"]["node_modules/katex"]
    assert package["version"] == katex.pinned_version()
    assert package["integrity"].startswith("sha512-")
    assert "resolved" not in lock
