"""Writes the tables of the pages from the committed records, into build/tables; `make docs` calls it first."""

import json
import statistics
from pathlib import Path
from typing import Any

from minitrain.commands import expected_band

ROOT = Path(__file__).parents[1]


def table(*rows: tuple[Any, ...]) -> str:
    """A table in Markdown; the first row is its head."""
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]]) + "\n"


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


def main() -> None:
    """Writes all tables."""
    folder = ROOT / "build" / "tables"
    folder.mkdir(parents=True, exist_ok=True)
    speed = json.loads((ROOT / "docs" / "results" / "bench_step.json").read_text())
    band = json.loads((ROOT / "minitrain" / "demo.json").read_text())
    (folder / "speed.md").write_text(speed_table(speed))
    (folder / "shares.md").write_text(shares_table(speed))
    (folder / "band.md").write_text(band_table(band))
    (folder / "machine.md").write_text(f"{speed['cpu']}, {speed['threads']} thread, torch {speed['torch']}\n")


if __name__ == "__main__":
    main()
