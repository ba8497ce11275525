"""How long each lesson's `quick` preset takes, without anything in the cache: docs/results/lesson_minutes.json.

python benchmarks/lessons.py [SLUG ...]         # without a slug: all
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from minitrain.lab.lessons import lesson_files
from minitrain.runtime.files import write_text

RECORD = Path(__file__).parents[1] / "docs" / "results" / "lesson_minutes.json"


def main() -> None:
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    for slug in sys.argv[1:] or lesson_files():
        with tempfile.TemporaryDirectory() as folder:  # `runs/cache` is in the folder that one is in
            started = time.monotonic()
            command = [sys.executable, "-m", "minitrain", "lesson", slug]
            subprocess.run(command, cwd=folder, check=True, stdin=subprocess.DEVNULL)
            record[slug] = {"quick": round(time.monotonic() - started)}
    write_text(RECORD, json.dumps(record, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
