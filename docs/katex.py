"""Brings KaTeX, which sets the formulas, from the npm registry into docs/assets/katex; `make docs` calls it.

The version stands in package.json, the checksum in package-lock.json. Without npm, or without a registry, one sentence
says so, and the pages show their formulas as TeX.
"""

import json
import re
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]
TARGET = ROOT / "docs" / "assets" / "katex"


def pinned_version() -> str:
    """The version that package.json asks for."""
    return json.loads((ROOT / "package.json").read_text())["devDependencies"]["katex"]


def present_version() -> str | None:
    """The version in docs/assets/katex, None where there is none."""
    mark = TARGET / "version.txt"
    return mark.read_text().strip() if mark.is_file() else None


def install() -> str | None:
    """Installs into node_modules; None where it worked, otherwise what went wrong and what helps."""
    npm = shutil.which("npm")
    if npm is None:
        return "npm was not found, so the pages show their formulas as TeX; install Node.js and call `make docs` again"
    command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--no-update-notifier", "--loglevel=error"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return None
    reason = next(iter(done.stderr.splitlines()), "no reason given")
    return (
        f"npm could not reach KaTeX ({reason}), so the pages show their formulas as TeX; call `make docs` again online"
    )


def copy(version: str) -> None:
    """Style sheet, script, licence and fonts, of these only woff2, which every present browser reads; the version last."""
    package = ROOT / "node_modules" / "katex"
    shutil.rmtree(TARGET, ignore_errors=True)
    (TARGET / "fonts").mkdir(parents=True)
    style = (package / "dist" / "katex.min.css").read_text()
    (TARGET / "katex.min.css").write_text(re.sub(r',url\([^)]+\.(woff|ttf)\) format\("\w+"\)', "", style))
    shutil.copy(package / "dist" / "katex.min.js", TARGET)
    shutil.copy(package / "LICENSE", TARGET)
    for font in (package / "dist" / "fonts").glob("*.woff2"):
        shutil.copy(font, TARGET / "fonts")
    (TARGET / "version.txt").write_text(version + "\n")


def main() -> None:
    """Brings KaTeX unless it is there already."""
    version = pinned_version()
    if present_version() == version:
        return
    problem = install()
    if problem:
        print(problem)
    else:
        copy(version)


if __name__ == "__main__":
    main()
