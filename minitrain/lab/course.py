"""Running a lesson: question, prediction, runs, table, verdicts, figure, record; and reading the records of all lessons."""

import ast
import shutil
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from minitrain.lab.claims import evaluate, said
from minitrain.lab.compare import CACHE, Result, Runs, compare, number_of_workers
from minitrain.lab.lessons import lesson_files, load_lesson
from minitrain.lab.places import results_folder
from minitrain.lab.plots import LIGHT, save_figure, save_pair
from minitrain.lab.records import make_record, read_record, rounded, runs_of, table, write_record
from minitrain.recipe import Recipe
from minitrain.runtime.device import choose_device
from minitrain.runtime.files import check_writable


@dataclass(frozen=True)
class Predict:
    """A question that the reader answers before the run, with a number from `low` to `high`."""

    question: str
    low: float
    high: float
    answer: Callable[[Runs], float] | None = None
    """What turned out, to be said beside the prediction."""


def at_a_terminal() -> bool:
    """Whether somebody is there to be asked."""
    return bool(sys.stdin and sys.stdin.isatty() and sys.stdout.isatty())


def ask(predict: Predict) -> float | None:
    """The reader's prediction; None where nobody is at a terminal, or for none."""
    if not at_a_terminal():
        return None
    try:
        given = input(f"{predict.question} (Enter skips) ").strip()
    except EOFError:
        given = ""
    try:
        guess = float(given)
    except ValueError:
        guess = float("nan")
    if predict.low <= guess <= predict.high:
        return guess
    print(
        f"{given!r} is not a number from {predict.low:g} to {predict.high:g}; none taken." if given else "None taken."
    )
    return None


def list_of_lessons() -> str:
    """The lessons with their titles and questions, for the console."""
    words = {
        slug: ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) for slug, path in lesson_files().items()
    }
    width = max(map(len, words))
    lines = [f"{slug:<{width}}  {(text or '').partition(chr(10))[0]}" for slug, text in words.items()]
    return "\n".join([*lines, "Run one with: minitrain lesson SLUG"])


def run_lesson(
    slug: str, preset: str, out: Path | None = None, workers: int | None = None, cache: Path = CACHE
) -> dict[str, Any]:
    """Runs a lesson with everything that a person wants to see around it, and returns its record.

    The record and figure of the preset `record` go into the documentation where the lesson stands in a checkout; all
    others, and a PNG, into `runs/lessons/SLUG`. Raises `ValueError` for a lesson or preset that is not there.
    """
    number_of_workers(workers)  # refuses before anything is printed
    lesson = load_lesson(slug)
    wanted = wanted_by(lesson, preset)
    folder = out or Path("runs") / "lessons" / slug
    check_writable(folder)
    device = device_of(preset, wanted["arms"].values())
    how: dict[str, Any] = {"workers": workers, "cache": cache, "progress": True, "device": device}
    print((lesson.__doc__ or slug).partition("\n")[0])
    prediction = introduce(lesson, wanted, how)
    print("\n--- runs")
    announce(slug, preset, wanted)
    runs = compare(**wanted, **how)
    claims = [claim for claim in lesson.CLAIMS if can_be_judged(claim, runs)]
    record = make_record(slug, preset, runs, lesson.MEASURES, claims)
    tell(record, runs, [claim.sentence for claim in lesson.CLAIMS if claim not in claims])
    if runs.crashed():
        write_record(folder / "record.json", record)
        print(f"\nNo picture, since runs crashed; what the others measured is in {folder / 'record.json'}")
        return record
    if prediction is not None and lesson.PREDICT.answer:
        print(f"\nYou predicted {prediction:g}; it turned out to be {lesson.PREDICT.answer(runs):.3g}.")
    write_outputs(lesson, record, folder, prediction, docs=preset == "record" and out is None)
    if hasattr(lesson, "after") and at_a_terminal():
        lesson.after(runs)
    return record


def introduce(lesson: ModuleType, wanted: dict[str, Any], how: dict[str, Any]) -> float | None:
    """What comes before the runs: the idea by hand, one seed where the lesson begins with it, and the prediction."""
    if hasattr(lesson, "by_hand"):
        print("\n--- by hand")
        lesson.by_hand()
    if hasattr(lesson, "first_look"):
        print("\n--- a first look: one seed")
        one_seed: dict[str, Any] = wanted | {"seeds": list(wanted["seeds"])[:1]}
        first = compare(**one_seed, **how)
        if not first.crashed():
            print(lesson.first_look(first))
    return ask(lesson.PREDICT) if hasattr(lesson, "PREDICT") else None


def tell(record: dict[str, Any], runs: Runs, not_measured: list[str]) -> None:
    """Prints what crashed, the table of measures, and the verdicts."""
    for result in runs.crashed():
        print(f"crashed: {result.arm}, seed {result.seed}: {result.crashed}")
    print("\n" + table(record))
    print("\n--- claims")
    for outcome in record["claims"]:
        print(said(outcome))
    for sentence in not_measured:
        print(f"{'not measured':<19}  {sentence}")


def wanted_by(lesson: ModuleType, preset: str) -> dict[str, Any]:
    """The arguments of `compare` for a preset. Raises `ValueError` for one that the lesson has not."""
    if preset not in lesson.PRESETS:
        raise ValueError(f"this lesson has no preset {preset!r}; choose {', '.join(lesson.PRESETS)}")
    return lesson.experiment(**lesson.PRESETS[preset])


def device_of(preset: str, arms: Iterable[Any]) -> str:
    """The preset `gpu` trains on the fastest device there is, all others on the CPU, so that results can be compared.

    Raises `ValueError` where there is none but the CPU, on which a real size takes days.
    """
    if preset != "gpu" or not any(isinstance(arm, Recipe) for arm in arms):
        return "cpu"
    device = choose_device()
    if device.value == "cpu":
        raise ValueError("the preset gpu needs an accelerator, and torch finds none here; choose record, cpu or quick")
    return device.value


def announce(slug: str, preset: str, wanted: dict[str, Any]) -> None:
    """How many runs there will be; for the preset `record`, how many minutes the committed record took."""
    rates = wanted.get("learning_rates") or [None]
    arms, seeds = len(wanted["arms"]), len(list(wanted["seeds"]))
    sweep = f" x {len(rates)} learning rates" if rates != [None] else ""
    print(f"{arms} arms{sweep} x {seeds} seeds; what was run before is taken from the cache")
    committed = results_folder() / f"{slug}.json"
    if preset == "record" and committed.exists():
        print(f"The committed record took {read_record(committed)['minutes']:g} minutes of one core.")


def can_be_judged(claim: Any, runs: Runs) -> bool:
    """Whether all the runs that a claim needs are there and have a result; a preset may leave arms out."""
    needed = set(runs.arms if claim.arms is None else claim.arms)
    return needed <= set(runs.arms) and not needed & {result.arm for result in runs.crashed()}


def write_outputs(
    lesson: ModuleType, record: dict[str, Any], folder: Path, prediction: float | None, docs: bool
) -> None:
    """Record and figure; both follow from the record alone, so that they can be drawn again from it."""
    slug, height = record["lesson"], getattr(lesson, "HEIGHT", 4.0)
    draw = partial(draw_record, lesson, record, prediction)
    if docs and (results_folder().parent / "figures").is_dir():
        write_record(results_folder() / f"{slug}.json", record)
        save_pair(results_folder().parent / "figures", slug, draw, height)
        print(f"\nRecord and figure: {results_folder()}, {results_folder().parent / 'figures'}")
        return
    write_record(folder / "record.json", record)
    save_figure(folder / "picture.png", draw, LIGHT, height)
    print(f"\nPicture: {folder / 'picture.png'}")


def draw_record(lesson: ModuleType, record: dict[str, Any], prediction: float | None, figure: Any, theme: Any) -> None:
    """Draws a lesson's figure from its record."""
    lesson.draw(figure, runs_of(record), theme, prediction)


# --- the records of all lessons --------------------------------------------------------------------------------------------


def records() -> dict[str, dict[str, Any]]:
    """The committed records of all lessons that have one, in the order of the course."""
    paths = {slug: results_folder() / f"{slug}.json" for slug in lesson_files()}
    return {slug: read_record(path) for slug, path in paths.items() if path.exists()}


def ledger() -> str:
    """Every claim of every committed record with its verdict, for the console."""
    found = [
        (f"{slug}/{outcome['name']}", said(outcome))
        for slug, record in records().items()
        for outcome in record["claims"]
    ]
    if not found:
        return "No record has been committed yet."
    width = max(len(name) for name, _ in found)
    return "\n".join(f"{name.ljust(width)}  {words}" for name, words in found)


def reproduce(name: str, workers: int | None = None, cache: Path = Path("runs") / "reproduce") -> bool:
    """Runs what one claim needs again, as it was recorded, and says whether this machine agrees with the record.

    Of a lesson alone the first seed of every arm is run, and every number compared. `name` is `SLUG/claim` or `SLUG`. Takes
    nothing from an earlier call but one that was interrupted: `cache` is removed in the end. Raises `ValueError` for a
    claim that is not there, `FileNotFoundError` without a record.
    """
    slug, _, wanted = name.partition("/")
    if not wanted:
        return not run_again(slug, workers, cache)
    lesson = load_lesson(slug)
    record = read_record(results_folder() / f"{slug}.json")
    claim = next((claim for claim in lesson.CLAIMS if claim.name == wanted), None)
    committed = next((outcome for outcome in record["claims"] if outcome["name"] == wanted), None)
    if claim is None or committed is None:
        raise ValueError(
            f"{slug} has no recorded claim {wanted!r}; it has {', '.join(c['name'] for c in record['claims'])}"
        )
    plan = wanted_by(lesson, record["preset"])
    plan["arms"] = {arm: recipe for arm, recipe in plan["arms"].items() if claim.arms is None or arm in claim.arms}
    runs = compare(**plan, workers=workers, cache=cache, progress=True)
    shutil.rmtree(cache)
    if runs.crashed():
        raise ValueError(f"arm {runs.crashed()[0].arm!r} crashed: {runs.crashed()[0].crashed}")
    here = evaluate(claim, rounded(runs))
    print(f"recorded  {said(committed)}\nhere      {said(here)}")
    agrees = here["verdict"] == committed["verdict"]
    same = " to the last digit kept" if here["values"] == committed["values"] else ""
    print(f"This machine {'agrees' + same if agrees else 'does not agree'}; the record is of {environment_of(record)}.")
    if runs.environment["data"] != record["environment"]["data"]:
        print("It trained on other data: another version of Python has another standard library.")
    return agrees


def run_again(slug: str, workers: int | None = None, cache: Path = Path("runs") / "reproduce") -> list[str]:
    """Runs the first seed of every arm of a lesson's record again, and names the arms with a digit that differs."""
    lesson, record = load_lesson(slug), read_record(results_folder() / f"{slug}.json")
    plan = {**wanted_by(lesson, record["preset"]), "seeds": record["seeds"][:1]}
    runs = rounded(compare(**plan, workers=workers, cache=cache, progress=True))
    shutil.rmtree(cache)
    recorded = runs_of(record).results
    differ = [
        key[0]
        for key, result in runs.results.items()
        if key not in recorded or outcome(result) != outcome(recorded[key])
    ]
    differ = list(dict.fromkeys([*differ, *(arm for arm in record["arms"] if arm not in runs.arms)]))
    print(
        f"Of {len(runs.arms)} arms, seed {record['seeds'][0]}, {len(runs.arms) - len(differ)} agree in every digit with "
        f"the record, which is of {environment_of(record)}." + f" Not: {', '.join(differ)}." * bool(differ)
    )
    return differ


def outcome(result: Result) -> tuple[Any, ...]:
    """What must agree."""
    return result.metrics, result.diverged, result.crashed


def environment_of(record: dict[str, Any]) -> str:
    """What a record was measured on, in words."""
    e = record["environment"]
    return f"Python {e['python']}, torch {e['torch']}, {e['device']} ({e['cpu']})"
