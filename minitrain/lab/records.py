"""A record: what an experiment measured and how to make it again, as small JSON from which its tables and figure follow.

It holds no dates and hosts. Numbers are rounded first and judged afterwards, so that whoever reads the record comes
to the same verdicts.
"""

import json
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from minitrain.lab import source
from minitrain.lab.claims import Claim, evaluate, said
from minitrain.lab.compare import Measure, Result, Runs
from minitrain.lab.words import plus_minus
from minitrain.runtime.files import write_text

DIGITS = 6


def make_record(
    lesson: str, preset: str, runs: Runs, measures: Mapping[str, Measure], claims: Sequence[Claim]
) -> dict[str, Any]:
    """The record of a lesson's runs, with the verdicts on `claims`; `minutes` are of one core, over all runs.

    Runs that crashed are left out; `claims` must not need them.
    """
    runs = rounded(runs)
    return {
        "lesson": lesson,
        "preset": preset,
        "command": f"minitrain lesson {lesson} --preset {preset}",
        "environment": {
            "python": ".".join(platform.python_version_tuple()[:2]),
            "numpy": np.__version__,
            **runs.environment,
            "cpu": torch.cpu.get_capabilities().get("cpu_name") or platform.processor() or platform.machine(),
        },
        "source": source_digest(runs),
        "arms": runs.arms,
        "probes": runs.probes,
        "seeds": runs.seeds,
        "learning_rates": runs.learning_rates,
        "minutes": round(sum(r.seconds for r in runs.results.values()) / 60, 1),
        "measures": measured(runs, measures),
        "claims": [evaluate(claim, runs) for claim in claims],
        "runs": [
            {"arm": r.arm, "lr": r.lr, "seed": r.seed, "diverged": r.diverged, "metrics": r.metrics}
            for r in runs.results.values()
            if not r.crashed
        ],
    }


def measured(runs: Runs, measures: Mapping[str, Measure]) -> list[dict[str, Any]]:
    """What each measure gave in each arm, one value per seed; arms without such a number are left out."""
    found = []
    for name, measure in measures.items():
        for arm in runs.arms:
            for lr in runs.learning_rates:
                try:
                    values = runs.values(arm, measure, lr)
                except ValueError:  # crashed, or another kind of arm
                    continue
                if all(map(math.isnan, values)):
                    continue
                found.append(
                    {"name": name, "arm": arm, "lr": lr, "values": [x if abs(x) < 1e300 else None for x in values]}
                )
    return found


def rounded(runs: Runs) -> Runs:
    """The same runs with every number rounded to what a record keeps."""

    def short(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: short(x) for key, x in value.items()}
        if isinstance(value, list | tuple):
            return [short(x) for x in value]
        return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value

    results = {key: replace(result, metrics=short(result.metrics)) for key, result in runs.results.items()}
    return replace(runs, results=results)


def runs_of(record: dict[str, Any]) -> Runs:
    """The runs that a record holds."""
    results = {
        (r["arm"], r["lr"], r["seed"]): Result(r["arm"], r["lr"], r["seed"], r["metrics"], r["diverged"])
        for r in record["runs"]
    }
    made_with = {key: record[key] for key in ("arms", "probes", "seeds", "learning_rates", "environment")}
    return Runs(results=results, **made_with)


def source_digest(runs: Runs) -> str:
    """The digest of the source that the runs' arms and probes reach."""
    names = [text for part in (*runs.arms.values(), runs.probes) for text in part.values()]
    return source.digest([*names, "minitrain.train.train"])


def is_stale(record: dict[str, Any]) -> bool | None:
    """Whether the code that made a record has changed since; None under another Python, which reads code differently.

    Where it has, but the first seed of every arm was run again and gave the same digits, that code counts as well.
    """
    if "probes" not in record:
        return True  # made before records held this
    if record["environment"]["python"] != ".".join(platform.python_version_tuple()[:2]):
        return None
    return source_digest(runs_of(record)) not in (record["source"], record.get("source_of_first_seed"))


def write_record(path: Path, record: dict[str, Any]) -> None:
    """Writes a record, one run and one claim to a line."""
    lines = []
    for key, value in record.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            inside = ",\n  ".join(json.dumps(x, ensure_ascii=False, separators=(",", ":")) for x in value)
            lines.append(f" {json.dumps(key)}: [\n  {inside}\n ]")
        else:
            lines.append(f" {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}")
    write_text(path, "{\n" + ",\n".join(lines) + "\n}\n")


def read_record(path: Path) -> dict[str, Any]:
    """A record from its file. Raises `FileNotFoundError` or `ValueError` where it is not there or damaged."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        _ = runs_of(record), [said(outcome) for outcome in record["claims"]]  # what is whole can be read
        return record
    except FileNotFoundError:
        raise FileNotFoundError(
            f"there is no record {path}; make it by running the lesson with --preset record"
        ) from None
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise ValueError(
            f"record {path} is damaged; make it again by running the lesson with --preset record"
        ) from None


def table(record: dict[str, Any]) -> str:
    """Mean and standard error over the seeds, a line for each arm and learning rate, for the console."""
    rows: dict[tuple[str, float | None], dict[str, str]] = {}
    names = list(dict.fromkeys(m["name"] for m in record["measures"]))
    for m in record["measures"]:
        rows.setdefault((m["arm"], m["lr"]), {})[m["name"]] = plus_minus(m["values"])
    swept = any(lr is not None for _, lr in rows)
    head = ["arm", *(["lr"] if swept else []), *names]
    lines = [
        [arm, *([f"{lr:g}"] if swept else []), *(found.get(name, "") for name in names)]
        for (arm, lr), found in rows.items()
    ]
    widths = [max(len(line[i]) for line in (head, *lines)) for i in range(len(head))]
    return "\n".join(
        "  ".join(x.ljust(w) for x, w in zip(line, widths, strict=True)).rstrip() for line in (head, *lines)
    )
