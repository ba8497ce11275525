"""Writes the tables of the pages from the committed records, into build/tables; `make docs` calls it first.

A lesson SLUG has its record in docs/results/SLUG.json. Three files are written for its page (SLUG.md the measures,
SLUG-claims.md the claims, SLUG-command.md the command that made them), and two for all lessons: ledger.md and course.md.
"""

import ast
import json
import re
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minitrain.cli.commands import expected_band
from minitrain.lab.claims import found
from minitrain.lab.records import is_stale
from minitrain.lab.words import number, plus_minus

ROOT = Path(__file__).parents[1]
NOT_RECORDED = "*Not recorded yet.*\n"
STALE = "*Recorded with an earlier version of the code; the numbers may have changed since.*\n"


def table(*rows: tuple[Any, ...]) -> str:
    """A table in Markdown; the first row is its head."""
    lines = ["| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]]) + "\n"


# --- the demo and the benchmark ---------------------------------------------------------------------------------------


def bracket(x: dict[str, float]) -> str:
    """A median with smallest and largest value."""
    return f"{x['median']:.2f} ({x['min']:.2f} to {x['max']:.2f})"


def speed_table(record: dict[str, Any]) -> str:
    """Milliseconds, speed-up and loss of each trainer."""
    rows = [
        ("one step of 768 tokens", "CPU ms", "speed-up", "products alone, GFLOP/s", "validation loss", "minus plain")
    ]
    for name, loss in sorted(record["validation_loss"].items(), key=lambda item: item[0] in record["speed_up"]):
        gain, worse = record["speed_up"].get(name), record["loss_minus_plain"].get(name)
        rows.append(
            (
                name,
                f"{record['milliseconds_per_step']['cpu'][name]:.1f}",
                bracket(gain["cpu"]) if gain else "1",
                f"{record['product_gflops'][name]:.0f}",
                f"{statistics.mean(loss):.4f}",
                f"{worse['mean']:+.4f}, at most {worse['largest']:+.4f}" if worse else "",
            )
        )
    return table(*rows)


def shares_table(record: dict[str, Any]) -> str:
    """What is not the model, as a share of our step; and start-up times."""
    step = min(record["milliseconds_per_step"]["cpu"].values())
    shares = record["cpu_milliseconds_per_step_of"].items()
    starts = record["start_up_milliseconds"].items()
    return table(
        ("what", "how much"),
        *((name, f"{100 * ms / step:.2f} % of our fastest step") for name, ms in shares),
        *((name, f"{ms['cpu'] / 1000:.2f} s of CPU time") for name, ms in starts),
    )


def rotation_table(record: dict[str, Any]) -> str:
    """CPU milliseconds of one step of each optimizer, and of the rotational ones the ratios that have a goal."""
    rows: list[tuple[Any, ...]] = [("one step", *record["models"])]
    names = next(iter(record["models"].values()))["cpu_milliseconds"]
    rows += [(name, *(f"{m['cpu_milliseconds'][name]:.1f} ms" for m in record["models"].values())) for name in names]
    ratios = next(iter(record["models"].values()))["ratios"]
    for name in ratios:
        found = [m["ratios"][name] for m in record["models"].values()]
        rows.append((name, *(f"{bracket(x)}, goal {x['goal']:.2f}" for x in found)))
    return table(*rows)


def images_table(record: dict[str, Any]) -> str:
    """CPU milliseconds of a training step of ResNet-20 in each form, and the ratios; then online norm beside its loop."""
    rows: list[tuple[Any, ...]] = [(f"ResNet-20, {record['batch']} images", "CPU ms a step", "images a second")]
    for name, value in record["cpu_milliseconds"].items():
        rows.append((name, f"{value:.0f}", f"{record['images_per_second'][name]:.0f}"))
    ratios = [("ratio", "median (smallest to largest)", "goal")]
    ratios += [(name, bracket(x), goal_of(x)) for name, x in record["ratios"].items()]
    for name, x in record["online_norm"].items():
        words = f"online norm of {record['batch']} x {name}, a loop over samples / all at once"
        ratios.append((words, bracket(x["speed_up"]), goal_of(x["speed_up"])))
    return table(*rows) + "\n" + table(*ratios)


def goal_of(x: dict[str, Any]) -> str:
    """In words, where there is one."""
    return f"{x['bound']} {x['goal']:.2f}" if "goal" in x else ""


def memory_table(record: dict[str, Any]) -> str:
    """The predicted peak of a step of GPT-2 by batch and by what saves memory, and its share of the plain step's."""
    rows: list[tuple[Any, ...]] = [("a step of GPT-2", "peak", "of the plain step's", "TFLOP")]
    for step in record["gpt2"]:
        name = f"{count(step['rows'], 'text')}, {' + '.join(step['ways']) or 'plain'}"
        rows.append((name, f"{step['peak_gb']:.2f} GB", f"{step['share']:.2f}", f"{step['tflop']:.2f}"))
    return table(*rows)


def memory_times_table(record: dict[str, Any]) -> str:
    """What a step takes beside another one, by CPU time; and bytes a parameter where nearly all is weights."""
    times = record["times"]
    rows: list[tuple[Any, ...]] = [("CPU time", "as a multiple of", "median (smallest to largest)")]
    rows += [
        (f"optimizer step, {name}", "torch's fused float32 AdamW", bracket({"median": x["ratio"], **x}))
        for name, x in times["alone"].items()
    ]
    rows += [
        (f"whole step, {name}", f"whole step, {times['of'][name]}", bracket({"median": x["ratio"], **x}))
        for name, x in times["whole"].items()
    ]
    rows.append(("**bytes a parameter**", "**predicted**", "**measured on a CPU**"))
    for x in record["tower"]:
        name = f"AdamW, {' + '.join(x['ways']) or 'plain'}"
        rows.append((name, f"{x['predicted_cpu']:.2f}", f"{x['measured_cpu']:.2f}"))
    return table(*rows)


def estimate_table(record: dict[str, Any]) -> str:
    """The optimizer's share of a step on a GPU, from bytes and operations alone."""
    rows = [("GPU", "optimizer step", "of a step of 2,048 tokens", "of 65,536 tokens", "5 % of a step of")]
    for x in record["gpu_estimate"]:
        shares = (f"{100 * x[f'share_{tokens}']:.3g} %" for tokens in (2048, 65536))
        rows.append((x["gpu"], x["step"], *shares, f"{x['tokens_for_5_percent']:,.0f} tokens"))
    return table(*rows)


def band_table(record: dict[str, Any]) -> str:
    """Where the demo ends, per Python version and precision."""
    rows = [
        ("Python's source", "products in", "runs", "bits per byte: mean", "standard deviation", "99 % band of one run")
    ]
    for precision in ("bf16", "fp32"):
        for version, values in record.get(precision, {}).items():
            low, high, _ = expected_band(version)
            band = f"{low:.3f} to {high:.3f}" if precision == "bf16" else ""
            spread = (f"{statistics.mean(values):.3f}", f"{statistics.stdev(values):.3f}")
            rows.append((version, precision, len(values), *spread, band))
    return table(*rows)


# --- lessons ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Lesson:
    """What the tables need to know of a lesson; `record` is None until it was recorded."""

    slug: str
    number: str
    title: str
    question: str
    record: dict[str, Any] | None = None
    seconds: float | None = None
    """What the preset `quick` took."""

    def link(self, text: str) -> str:
        """A link from a page in docs/ to the lesson's page, or the text alone where there is no page."""
        page = f"lessons/{self.slug}.md"
        return f"[{text}]({page})" if (ROOT / "docs" / page).is_file() else text


def lessons() -> list[Lesson]:
    """All lessons, in order of their numbers."""
    times = read_json(ROOT / "docs" / "results" / "lesson_minutes.json") or {}
    course = []
    for path in sorted((ROOT / "lessons").glob("[0-9][0-9]_*.py")):
        position, slug = path.stem.split("_", 1)
        title, question = title_and_question(ast.get_docstring(ast.parse(path.read_text())) or "")
        record = read_json(ROOT / "docs" / "results" / f"{slug}.json")
        course.append(Lesson(slug, position, title, question, record, times.get(slug, {}).get("quick")))
    return course


def title_and_question(docstring: str) -> tuple[str, str]:
    """From a first sentence like `03 One neuron. Question: how long does it stay?`. Raises `ValueError` for another."""
    match = re.match(r"\d+ (.+?)\.? Question: (.+?\?)", " ".join(docstring.split()))
    if match is None:
        raise ValueError(f"a lesson begins with 'NN Title. Question: ...?', not with {docstring[:60]!r}")
    return match[1], match[2]


def read_json(path: Path) -> Any:
    """The content of the file, None where there is none."""
    return json.loads(path.read_text()) if path.is_file() else None


def lesson_files(lesson: Lesson) -> dict[str, str]:
    """The three files of a lesson's page: their names and contents."""
    names = (f"{lesson.slug}.md", f"{lesson.slug}-claims.md", f"{lesson.slug}-command.md")
    record = lesson.record
    if record is None:
        return dict.fromkeys(names, NOT_RECORDED)
    head = STALE + "\n" if is_stale(record) else ""
    return dict(zip(names, (head + measures_table(record), head + claims_table(lesson), command(record)), strict=True))


def measures_table(record: dict[str, Any]) -> str:
    """Arms and learning rates below each other, measures beside each other: mean and standard error over the seeds.

    Arms of which altogether other things were measured have a table of their own.
    """
    measures = list(dict.fromkeys(m["name"] for m in record["measures"]))
    rows = list(dict.fromkeys((m["arm"], m["lr"]) for m in record["measures"]))
    values = {(m["arm"], m["lr"], m["name"]): m["values"] for m in record["measures"]}
    sweep = any(lr is not None for _, lr in rows)
    kinds: list[tuple[set[str], list[tuple[str, float | None]]]] = []
    for row in rows:
        found = {name for name in measures if (*row, name) in values}
        names, members = next((kind for kind in kinds if found <= kind[0] or kind[0] <= found), (set(), []))
        if not members:
            kinds.append((names, members))
        names |= found
        members.append(row)
    tables = []
    for names, members in kinds:
        columns = [name for name in measures if name in names]
        body = []
        for arm, lr in members:
            cells = [plus_minus(values[arm, lr, name]) if (arm, lr, name) in values else "" for name in columns]
            body.append((arm, *([number(lr) if lr is not None else ""] if sweep else []), *cells))
        tables.append(table(("arm", *(["learning rate"] if sweep else []), *columns), *body))
    counts = sorted({len(v) for v in values.values()})
    seeds = "One seed." if counts == [1] else f"Mean ± standard error over {' or '.join(map(str, counts))} seeds."
    return "\n".join(tables) + f"\n{seeds}\n"


CLAIMS_HEAD = ("verdict", "claim", "measured, with 95 % interval")


def claims_table(lesson: Lesson) -> str:
    """One row a claim of one lesson."""
    claims = lesson.record["claims"] if lesson.record else []
    return table(CLAIMS_HEAD, *((verdict(claim), sentence(claim), measured(claim)) for claim in claims))


def cifar_files(record: dict[str, Any] | None) -> dict[str, str]:
    """Measures and claims of the benchmark on photographs."""
    if record is None:
        return {"cifar.md": NOT_RECORDED, "cifar-claims.md": ""}
    claims = ((verdict(claim), sentence(claim), measured(claim)) for claim in record["claims"])
    return {"cifar.md": measures_table(record), "cifar-claims.md": table(CLAIMS_HEAD, *claims)}


def ledger(all_lessons: Sequence[Lesson]) -> str:
    """All claims of all lessons, with links to their pages, and how many have which verdict."""
    claims = [(lesson, claim) for lesson in all_lessons if lesson.record for claim in lesson.record["claims"]]
    if not claims:
        return NOT_RECORDED
    rows = []
    for lesson, claim in claims:
        link = lesson.link(f"{lesson.number} {lesson.title}")
        code = f"`{lesson.slug}/{claim['name']}`"
        rows.append((verdict(claim), f"{sentence(claim)}<br>{link}, {code}", measured(claim)))
    counts = Counter(claim["verdict"] for _, claim in claims)
    summary = f"{len(claims)} claims: " + ", ".join(f"{n} *{name}*" for name, n in counts.most_common()) + ".\n"
    stale = [lesson.link(lesson.title) for lesson in all_lessons if lesson.record and is_stale(lesson.record)]
    flag = f"\nRecorded with an earlier version of the code: {', '.join(stale)}.\n" if stale else ""
    return summary + flag + "\n" + table(CLAIMS_HEAD, *rows)


def course(all_lessons: Sequence[Lesson]) -> str:
    """The map of the course: the question that each lesson answers and how long its quick run takes."""
    rows = [
        (
            lesson.link(f"{lesson.number} {lesson.title}"),
            lesson.question[0].upper() + lesson.question[1:],
            duration(lesson.seconds),
        )
        for lesson in all_lessons
    ]
    return table(("lesson", "the question it answers", "quick run"), *rows)


def sentence(claim: dict[str, Any]) -> str:
    """The claim's sentence, and the paper's own figure if there is one."""
    text = claim["sentence"].rstrip(".") + "."
    return f"{text} Paper: {claim['paper'].rstrip('.')}." if claim["paper"] else text


def measured(claim: dict[str, Any]) -> str:
    """What was found, what the claim asks for, and from how many seeds."""
    seeds = count(len(claim["values"]), "seed")
    return f"{found(claim)}<br>threshold: {claim['threshold']}<br>{claim['kind']}, {seeds}"


def verdict(claim: dict[str, Any]) -> str:
    """In bold where it holds, so that the others stand out by being plain."""
    return f"**{claim['verdict']}**" if claim["verdict"] == "holds" else f"*{claim['verdict']}*"


def command(record: dict[str, Any]) -> str:
    """The command that made the record, where, and in how long; and the record itself."""
    made = record["environment"]
    where = made["cpu"] if made["device"] == "cpu" else f"{made['device']}, {made['cpu']}"
    versions = f"Python {made['python']}, PyTorch {made['torch']}"
    link = f"[record](../results/{record['lesson']}.json)"
    took = f"{duration(60 * record['minutes'])} of one core"
    return f"```\n{record['command']}\n```\n\n{took} on {where}; {versions}; {link}.\n"


def count(n: int, thing: str) -> str:
    """`1 seed`, `5 seeds`."""
    return f"{n} {thing}" if n == 1 else f"{n} {thing}s"


def duration(seconds: float | None) -> str:
    """In words of the size that fits; empty where it was not measured."""
    if seconds is None:
        return ""
    if seconds < 60:
        return count(max(1, round(seconds)), "second")
    return count(round(seconds / 60), "minute")


def main() -> None:
    """Writes all tables."""
    folder = ROOT / "build" / "tables"
    folder.mkdir(parents=True, exist_ok=True)
    speed = json.loads((ROOT / "docs" / "results" / "bench_step.json").read_text())
    band = json.loads((ROOT / "minitrain" / "demo.json").read_text())
    rotation = json.loads((ROOT / "docs" / "results" / "rotation_speed.json").read_text())
    memory = json.loads((ROOT / "docs" / "results" / "memory_sizes.json").read_text())
    files = {
        "memory_sizes.md": memory_table(memory),
        "memory_times.md": memory_times_table(memory),
        "memory_estimate.md": estimate_table(memory),
        "speed.md": speed_table(speed),
        "shares.md": shares_table(speed),
        "band.md": band_table(band),
        "rotation_speed.md": rotation_table(rotation),
        "images_speed.md": images_table(read_json(ROOT / "docs" / "results" / "images_speed.json")),
        **cifar_files(read_json(ROOT / "docs" / "results" / "cifar.json")),
        "machine.md": f"{speed['cpu']}, {speed['threads']} thread, torch {speed['torch']}\n",
        "ledger.md": ledger(lessons()),
        "course.md": course(lessons()),
    }
    for lesson in lessons():
        files |= lesson_files(lesson)
    for name, text in files.items():
        (folder / name).write_text(text)


if __name__ == "__main__":
    main()
