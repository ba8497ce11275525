"""SIGKILL at random moments, over and over: the end is that of work that was left alone, and nothing else is left behind.

`test_folder.py` kills at every single operation on a file; here the moment is any, and the work is what people run.
"""

from pathlib import Path

import pytest
from small import in_own_process

KILLS = {"text": 12, "split text": 8, "images": 8, "split images": 8}
pytestmark = pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks for orphans where Linux lists processes")


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_run_killed_four_times_is_the_calm_one():
    assert "4 kills" in in_own_process("storm('split text', 4)", "kills")


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "kills"), KILLS.items())
def test_a_run_killed_many_times_is_the_calm_one(kind: str, kills: int):
    assert f"{kills} kills" in in_own_process(f"storm({kind!r}, {kills})", "kills", seconds=1500)


@pytest.mark.parametrize("kills", [1, pytest.param(13, marks=pytest.mark.slow)])
def test_a_comparison_whose_caller_or_workers_are_killed_loses_nothing(kills: int):
    assert f"{kills} kills" in in_own_process(f"storm_over_compare({kills})", "kills", seconds=1500)
