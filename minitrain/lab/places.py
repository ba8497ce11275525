"""Where the lessons and the committed results lie: in the repository or, installed from a wheel, inside the package."""

from pathlib import Path

PACKAGE = Path(__file__).parent.parent


def lessons_folder() -> Path:
    """The folder of the lessons, with `exercises/` in it."""
    return first_there(PACKAGE / "lessons", PACKAGE.parent / "lessons")


def results_folder() -> Path:
    """The folder of the committed records, one JSON file each."""
    return first_there(PACKAGE / "results", PACKAGE.parent / "docs" / "results")


def first_there(inside: Path, beside: Path) -> Path:
    """Only a wheel has the copy inside; what lies beside an installed package belongs to others, so it comes second."""
    return inside if inside.is_dir() else beside
