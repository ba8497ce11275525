"""Bad input of every kind, made by chance: it ends in one sentence, or in the run that was asked for; nothing is lost."""

import pytest
from small import in_own_process

ATTACKS = {  # how many cases of each
    "command_line": 150, "options": 80, "checkpoint": 80, "other_files": 20, "image_file": 80, "text_file": 40,
    "cached_run": 30, "record": 30, "exercise_file": 30,
}  # fmt: skip


def test_a_few_of_each():
    in_own_process(f"main({list(ATTACKS)}, 0, 2)", "attacks")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ATTACKS)
def test_many(kind: str):
    in_own_process(f"main([{kind!r}], 2, {ATTACKS[kind]})", "attacks", seconds=1500)
