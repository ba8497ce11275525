"""Finding and importing lessons: `lessons/03_one_neuron.py` is the module `lesson_one_neuron`, whatever its number.

So a lesson's functions have the same names in its own process, in workers and in records, and renumbering is free.
"""

import difflib
import importlib
import importlib.util
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

from minitrain.lab.places import lessons_folder

PREFIX = "lesson_"


def lesson_files() -> dict[str, Path]:
    """The lessons by slug, in the order of the course."""
    return {path.stem.partition("_")[2]: path for path in sorted(lessons_folder().glob("[0-9][0-9]_*.py"))}


class LessonFinder:
    """Python's import system asks this for modules that it does not find by itself."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        file = lesson_files().get(name.removeprefix(PREFIX)) if name.startswith(PREFIX) else None
        return importlib.util.spec_from_file_location(name, file) if file else None


def make_lessons_importable() -> None:
    """Lets this process import lessons by their module names."""
    if LessonFinder not in sys.meta_path:
        sys.meta_path.append(LessonFinder)


def load_lesson(slug: str) -> ModuleType:
    """The lesson's module. Raises `ValueError` for a slug that no lesson has."""
    there = lesson_files()
    if slug not in there:
        near = difflib.get_close_matches(slug, there, n=1)
        hint = f"did you mean {near[0]}?" if near else f"the lessons are {', '.join(there)}"
        raise ValueError(f"there is no lesson {slug!r}; {hint}")
    make_lessons_importable()
    return importlib.import_module(PREFIX + slug)
