"""For code that was edited without changing what it computes: runs the first seed of every arm of a record again.

    python docs/again.py SLUG...

Where every digit agrees, the record notes the present code beside the code that made it, and counts as up to date; else it
must be made again as a whole. Times of a machine never agree: their lesson is run again.
"""

import sys

from minitrain.lab.course import run_again
from minitrain.lab.places import results_folder
from minitrain.lab.records import is_stale, read_record, runs_of, source_digest, write_record


def main() -> None:
    """One lesson after the other; ends with exit code 1 if one of them differs."""
    differ = []
    for slug in sys.argv[1:]:
        path = results_folder() / f"{slug}.json"
        record = read_record(path)
        if not is_stale(record):
            print(f"{slug} is up to date")
        elif run_again(slug, workers=1):
            differ.append(slug)
        else:
            write_record(path, {**record, "source_of_first_seed": source_digest(runs_of(record))})
    if differ:
        sys.exit(f"make these records again: {', '.join(differ)}")


if __name__ == "__main__":
    main()
