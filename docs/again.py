"""What follows from a record is made anew: measures, verdicts and figures, from the record's own runs.

    python docs/again.py SLUG...

For edited claims, measures or figures, and for code that was edited without changing what it computes. Then the first seed
of every arm is run again. Where every digit agrees, the record notes the present code beside the code that made it, and
counts as up to date; else it must be made again as a whole. Times of a machine never agree: their lesson is run again.
"""

import sys
from pathlib import Path

from minitrain.lab.claims import evaluate
from minitrain.lab.course import run_again, write_outputs
from minitrain.lab.lessons import load_lesson
from minitrain.lab.places import results_folder
from minitrain.lab.records import is_stale, measured, read_record, runs_of, source_digest


def main() -> None:
    """One lesson after the other; ends with exit code 1 if one of them differs."""
    differ = []
    for slug in sys.argv[1:]:
        lesson, record = load_lesson(slug), read_record(results_folder() / f"{slug}.json")
        runs = runs_of(record)
        if is_stale(record) is not False:  # None where it cannot be known
            if run_again(slug, workers=1):
                differ.append(slug)
                continue
            record["source_of_first_seed"] = source_digest(runs)
        record["measures"] = measured(runs, lesson.MEASURES)
        record["claims"] = [evaluate(claim, runs) for claim in lesson.CLAIMS]
        write_outputs(lesson, record, Path(), None, docs=True)
    if differ:
        sys.exit(f"make these records again: {', '.join(differ)}")


if __name__ == "__main__":
    main()
