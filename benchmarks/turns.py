"""What the benchmarks share whose contestants take turns: their options, and the record of what was measured."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from minitrain.runtime.files import write_text


def benchmark(
    words: str | None, measure: Callable[[int, int], dict[str, Any]], show: Callable[[dict[str, Any]], None],
    record: Path, rounds: int, steps: int,
) -> None:  # fmt: skip
    """Reads the options, calls `measure(rounds, steps)`, shows what it found, and writes it to `record`."""
    parser = argparse.ArgumentParser(description=words, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--steps", type=int, default=steps, help="steps of each in a round")
    parser.add_argument("--quick", action="store_true", help="3 rounds, and no record")
    asked = parser.parse_args()
    if min(asked.rounds, asked.steps) < 1:
        parser.error("give at least one round and one step")
    found = measure(3 if asked.quick else asked.rounds, asked.steps)
    show(found)
    if not asked.quick:
        short = json.loads(json.dumps(found), parse_float=lambda digits: float(f"{float(digits):.4g}"))
        write_text(record, json.dumps(short, sort_keys=True, indent=1) + "\n")
