"""Every page of the built site as a browser shows it: light, dark and as wide as a phone. `make browser` runs this.

`faults` says what is wrong with a page; the tests at the end hold it against pages that have one fault each.
"""

import ast
import re
import shutil
import threading
from collections.abc import Generator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

pytestmark = pytest.mark.browser

ROOT = Path(__file__).parents[2]
SITE = ROOT / "site"
PAGES = sorted(path.relative_to(SITE).as_posix().removesuffix("index.html") for path in SITE.rglob("*.html"))
VIEWS = {"light": (1280, "light"), "dark": (1280, "dark"), "phone": (360, "light")}
FAULTS = Path(__file__).with_name("faults.js").read_text()
TECHNIQUES = sorted((ROOT / "minitrain" / "techniques").glob("[!_]*.py"))


class Silent(SimpleHTTPRequestHandler):
    """Does not print what is asked for."""

    def log_message(self, format, *args):
        pass


@contextmanager
def served(folder: Path) -> Generator[str]:
    """The address of a server of the folder, on a free port."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Silent, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture(scope="session")
def browser():
    """A Chromium on the path, else Playwright's own."""
    driver = pytest.importorskip("playwright.sync_api", reason="needs Playwright, which `make browser` installs")
    names = ("chromium", "chromium-browser", "google-chrome")
    with driver.sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=next(filter(None, map(shutil.which, names)), None))
        except driver.Error:
            pytest.skip(
                "found no Chromium: install it with your system, or call `.venv/bin/playwright install chromium`"
            )
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def site() -> Generator[str]:
    if not (SITE / "assets" / "katex").is_dir():
        pytest.skip("there is no site with its formulas: call `make docs`, with Node.js installed")
    with served(SITE) as address:
        yield address


@contextmanager
def opened(browser, site: str, view: str = "light", found: list[str] | None = None):
    """A fresh page in this view; what goes wrong behind it is added to `found`."""
    width, scheme = VIEWS[view]
    found = [] if found is None else found
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
    context.set_default_timeout(10_000)
    page = context.new_page()
    page.on("console", lambda said: said.type == "error" and found.append(f"says on the console: {said.text}"))
    page.on("pageerror", lambda error: found.append(f"stops with an error: {error}"))
    page.on(
        "request", lambda asked: asked.url.startswith((site, "data:", "blob:")) or found.append(f"asks {asked.url}")
    )
    page.on("requestfailed", lambda asked: found.append(f"does not get {asked.url}"))
    page.on("response", lambda got: got.status >= 400 and found.append(f"gets {got.status} for {got.url}"))
    yield page
    context.close()


def faults(browser, site: str, address: str, view: str) -> list[str]:
    """One sentence for each thing that is wrong with a page in this view."""
    found: list[str] = []
    with opened(browser, site, view, found) as page:
        page.goto(site + address)
        return [*page.evaluate(FAULTS, view == "dark"), *found]


# --- the site ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("address", PAGES)
def test_page(browser, site: str, address: str, view: str):
    assert faults(browser, site, address, view) == []


@pytest.mark.parametrize("address", [address for address in PAGES if address != "404.html"])
def test_last_section_from_another_page(browser, site: str, address: str):
    """Formulas and pictures grow while the page loads; the section that was asked for must not move away."""
    with opened(browser, site) as page:
        page.goto(site + address)
        anchor = page.locator(".md-content :is(h1, h2, h3)[id]").last.get_attribute("id")
    with opened(browser, site) as page:
        page.goto(f"{site}{address}#{anchor}")
        assert 0 <= page.locator(f"[id='{anchor}']").bounding_box()["y"] < 800


def test_switch_and_instant_navigation(browser, site: str):
    found: list[str] = []
    with opened(browser, site, "light", found) as page:
        page.goto(site)
        page.locator(".md-header label[for^='__palette']:visible").click()
        page.locator(".md-nav--primary").get_by_text("One neuron").click()
        page.wait_for_url("**/one_neuron/")
        page.locator(".katex").first.wait_for()
        assert [*page.evaluate(FAULTS, True), *found] == []


@pytest.mark.parametrize("technique", TECHNIQUES, ids=lambda technique: technique.stem)
def test_search_finds_technique(browser, site: str, technique: Path):
    """By its name, and in the reference by those of its classes."""
    with opened(browser, site) as page:

        def search(text: str) -> None:
            page.locator(".md-search__input").fill(text)
            page.locator(".md-search__input").press("End")  # the theme listens to keys

        page.goto(site)
        search(technique.stem.replace("_", " "))
        name = re.compile(technique.stem.replace("_", "[ _]"), re.IGNORECASE)
        page.locator(".md-search-result__item", has_text=name).first.wait_for()
        for node in ast.parse(technique.read_text()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                search(node.name)
                entry = f"reference/#minitrain.techniques.{technique.stem}.{node.name}"
                page.locator(f".md-search-result__link[href*='{entry}']").first.wait_for(state="attached")


# --- the faults, one page each ------------------------------------------------------------------------------------------

PIXEL = '<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>'
SOUND = """<title>A page</title><a href="#end">end</a><p>Costs $5, $6; <code>\\(</code></p>
<img src="x.svg" alt="a square"><img src="x.svg#only-light" alt="for light pages">
<span class="arithmatex"><span class="katex">x</span></span><p style="height: 2000px"><h2 id="end">End</h2>"""


def broken(browser, folder: Path, body: str, view: str = "light") -> list[str]:
    (folder / "x.svg").write_text(PIXEL)
    (folder / "index.html").write_text(f"<!doctype html><link rel='icon' href='data:,'>{body}")
    with served(folder) as address:
        return faults(browser, address, "", view)


def test_sound_page(browser, tmp_path: Path):
    assert broken(browser, tmp_path, SOUND) == []


@pytest.mark.parametrize(
    ("more", "fault"),
    [
        ("<p style='width: 2000px'>wide</p>", "scrolls sideways by"),
        ("<img src='x.svg'>", "has no text in place of the picture x.svg"),
        ("<img src='x.svg#only-dark' alt='x'>", "shows x.svg#only-dark"),
        ("<img src='x.svg#only-light' alt='x' style='display: none'>", "hides x.svg#only-light"),
        ("<img src='data:,' alt='x'>", "cannot show the picture"),
        ("<span class='arithmatex'>\\(x\\)</span>", "leaves \\(x\\) as TeX"),
        ("<span class='arithmatex'><b class='katex'><b class='katex-error'>y</b></b></span>", "leaves y as TeX"),
        ("<p>\\[x\\]</p>", "has raw TeX: \\[x\\]"),
        ("<p>$$x$$</p>", "has raw TeX: $$x$$"),
        ("<a href='#gone'>a</a>", "does not show #gone"),
        ("<a href='#far'>a</a><p id='far' style='scroll-margin-top: 900px'>", "puts #far at"),
        ("<script>console.error('a')</script>", "says on the console: a"),
        ("<script>nothing()</script>", "stops with an error: nothing is not defined"),
        ("<script src='https://example.invalid/x.js'></script>", "asks https://example.invalid/x.js"),
        ("<script src='gone.js'></script>", "gets 404 for"),
        ("<script>document.title = ''</script>", "has no title"),
    ],
)
def test_fault(browser, tmp_path: Path, more: str, fault: str):
    assert any(found.startswith(fault) for found in broken(browser, tmp_path, SOUND + more))
