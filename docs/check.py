"""Looks over the built site; `make docs` calls it last. Uses the standard library, and Node.js for formulas if it is there.

Every internal link, anchor and image must exist, no page may fetch anything from another host (links to click on are no
fetching), each image needs words in its place and each figure for light pages its twin for dark ones, and KaTeX must be
able to set each formula.
"""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).parents[1]
KATEX = "assets/katex"
FETCHING_LINKS = {
    "stylesheet",
    "icon",
    "preload",
    "modulepreload",
    "prefetch",
    "preconnect",
    "dns-prefetch",
    "manifest",
}
# Addresses in the themes' scripts that are fetched only for pages with an element of such a class, and for what else.
UNUSED = {
    "https://unpkg.com/mermaid": "mermaid",
    "https://unpkg.com/glightbox": "glightbox",
    "https://unpkg.com/pyodide": "pyodide",
    "https://cdn.jsdelivr.net/pyodide": "pyodide",
    "https://unpkg.com/ace-builds": "pyodide",
    "https://unpkg.com/resize-observer-polyfill": "",  # browsers older than 2020
    "https://api.github.com": "",  # where the configuration names a repository
    "https://gitlab.com": "",
}
RENDER = """
const katex = require(process.argv[1]), bad = []
for (const tex of JSON.parse(require("fs").readFileSync(0)))
  try { katex.renderToString(tex, { throwOnError: true, strict: "ignore" }) } catch (e) { bad.push(`${tex}: ${e.message}`) }
console.log(JSON.stringify(bad))
"""


@dataclass
class Page(HTMLParser):
    """What one page refers to, offers as anchors, and has as formulas."""

    path: Path
    links: list[str] = field(default_factory=list)
    fetched: list[str] = field(default_factory=list)
    wordless: list[str] = field(default_factory=list)
    anchors: set[str] = field(default_factory=set)
    formulas: list[str] = field(default_factory=list)
    classes: set[str] = field(default_factory=set)
    formula_depth: int = 0

    def __post_init__(self):
        super().__init__()
        self.feed(self.path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        classes = given.get("class", "").split()
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        self.classes |= set(classes)
        if tag == "a":
            self.links += [given["href"]] if "href" in given else []
        elif tag == "link":
            fetches = FETCHING_LINKS & set(given.get("rel", "").split())
            (self.fetched if fetches else self.links).append(given.get("href", ""))
        else:
            self.fetched += [given[name] for name in ("src", "data", "poster") if name in given]
            self.fetched += [part.split()[0] for part in given.get("srcset", "").split(",") if part.strip()]
        if tag == "img" and not given.get("alt", "").strip():
            self.wordless.append(given.get("src", "an image"))
        self.fetched += addresses_in_style(given.get("style", ""))
        if self.formula_depth or "arithmatex" in classes:
            self.formula_depth += 1
            self.formulas += [""] if self.formula_depth == 1 else []

    def handle_endtag(self, tag: str) -> None:
        self.formula_depth = max(0, self.formula_depth - 1)

    def handle_data(self, data: str) -> None:
        if self.formula_depth:
            self.formulas[-1] += data
        elif self.cdata_elem == "style":
            self.fetched += addresses_in_style(data)


def addresses_in_style(text: str) -> list[str]:
    """What a style sheet fetches."""
    found = re.findall(r"url\(\s*['\"]?([^'\")]+)", text) + re.findall(r"@import\s+['\"]([^'\"]+)", text)
    return [address for address in found if not address.startswith("data:")]


def is_external(address: str) -> bool:
    """Whether the address names a host."""
    return bool(urlsplit(address).netloc)


def target(address: str, page: Path, site: Path) -> Path:
    """The file that an internal address on `page` means."""
    path = unquote(urlsplit(address).path)
    file = site / path.lstrip("/") if path.startswith("/") else page.parent / path
    file = page if not path else file.resolve()
    return file / "index.html" if file.is_dir() else file


def faults(site: Path) -> list[str]:
    """One sentence for each fault of the site."""
    site = site.resolve()
    pages = {path: Page(path) for path in sorted(site.rglob("*.html"))}
    if not pages:
        return [f"{site} has no pages; run `make docs`"]
    found = [fault for page in pages.values() for fault in page_faults(page, pages, site)]
    for style in site.rglob("*.css"):
        for address in addresses_in_style(style.read_text()):
            if is_external(address) or not target(address, style, site).is_file():
                found.append(f"{style.relative_to(site)} fetches {address}, which is not part of the site")
    for script in site.rglob("*.js"):
        found += [f"{script.relative_to(site)} could fetch {address}" for address in addresses_in_script(script)]
    return found + formula_faults([formula for page in pages.values() for formula in page.formulas], site / KATEX)


def page_faults(page: Page, pages: dict[Path, Page], site: Path) -> list[str]:
    """What is wrong with one page."""
    found = [reference_fault(address, page, pages, site) for address in page.links]
    for address in page.fetched:
        external = f"fetches {address} from another host" if is_external(address) else None
        found.append(external or reference_fault(address, page, pages, site))
    needs = sorted((page.classes & set(UNUSED.values())) - {""})
    found += [f"has an element of class {thing}, whose script is fetched from another host" for thing in needs]
    found += [f"shows {image} without words for those who do not see it" for image in page.wordless]
    found += twin_faults(page.fetched)
    return [f"{page.path.relative_to(site)} {fault}" for fault in found if fault]


def reference_fault(address: str, page: Page, pages: dict[Path, Page], site: Path) -> str | None:
    """What is wrong with an address on a page; None where it is external or exists."""
    if is_external(address) or urlsplit(address).scheme in ("mailto", "data", "javascript"):
        return None
    file, anchor = target(address, page.path, site), unquote(urlsplit(address).fragment)
    if not file.is_file():
        return None if is_missing_katex(file, site) else f"refers to {address}, which does not exist"
    is_dead = anchor and file in pages and anchor not in pages[file].anchors
    return f"refers to {address}, and there is no such anchor" if is_dead else None


def is_missing_katex(file: Path, site: Path) -> bool:
    """Whether a file is missing only because there was no npm to bring KaTeX, which docs/katex.py has said."""
    return file.is_relative_to(site / KATEX) and not (site / KATEX).exists()


def twin_faults(images: list[str]) -> list[str]:
    """Figures of one scheme without the other: `x-light.svg#only-light` goes with `x-dark.svg#only-dark`."""
    shown = {image for image in images if "#only-" in image}
    twins = {image: swap(image) for image in sorted(shown)}
    return [f"shows {image} without its twin {twin}" for image, twin in twins.items() if twin not in shown]


def swap(image: str) -> str:
    """The address of the same figure for the other colour scheme."""
    return re.sub("light|dark", lambda found: "dark" if found[0] == "light" else "light", image)


def addresses_in_script(script: Path) -> list[str]:
    """Hosts whose scripts or data a script could ask for, without those in comments and those known not to be used."""
    text = re.sub(r"/\*.*?\*/", "", script.read_text(), flags=re.DOTALL)
    found = re.findall(r"(?:fetch|import|src\s*=|open|script)\W{0,6}[\"'`](https?://[^\"'`\s]+)", text)
    found += [x for x in re.findall(r"[\"'`](https?://[^\"'`\s]+)", text) if "unpkg" in x or "cdn" in x]
    return sorted({address for address in found if not address.startswith(tuple(UNUSED))})


def formula_faults(formulas: list[str], katex: Path) -> list[str]:
    """The formulas that KaTeX cannot set; none are looked at without Node.js."""
    node, script = shutil.which("node"), katex / "katex.min.js"
    if not formulas or node is None or not script.is_file():
        return []
    tex = json.dumps(sorted({formula.strip()[2:-2] for formula in formulas}))
    done = subprocess.run([node, "-e", RENDER, str(script)], input=tex, capture_output=True, text=True, check=True)
    return [f"the formula {fault}" for fault in json.loads(done.stdout)]


def main() -> None:
    """Prints the faults of the site, and ends with an error if there are any."""
    found = faults(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "site")
    print(
        "\n".join(found)
        if found
        else "links, anchors, images and formulas are in order; nothing is fetched from elsewhere"
    )
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
