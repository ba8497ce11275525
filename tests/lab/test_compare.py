import importlib
import json
import math
import signal
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import toys
from small import BASE
from toys import crash, crash_on_seed_1, dies_on_seed_1, draws, leave_a_mark, sum_of

from minitrain.data.text import own_text
from minitrain.lab.compare import Plan, at, compare, difference, final, mean_late, ratio, series
from minitrain.lab.probes import Rotation
from minitrain.optim import AdamW, Lion
from minitrain.train import train

QUIET: dict[str, Any] = {"log_every": 5, "evaluate_every": 10}


def test_a_run_in_a_worker_is_the_run_in_this_process(tmp_path: Path):
    runs = compare({"A": BASE}, seeds=[0, 3], probes=(partial(Rotation, every=5),), cache=tmp_path, **QUIET)
    for seed in (0, 3):
        here = train(replace(BASE, seed=seed), probes=[Rotation(every=5)], **QUIET)
        assert runs.metrics("A", seed) == json.loads(json.dumps(here.metrics))
    assert runs.metrics("A") == runs.metrics("A", 0) != runs.metrics("A", 3)


def test_a_second_call_runs_only_what_is_missing(tmp_path: Path):
    log = tmp_path / "log"
    arm = partial(leave_a_mark, path=str(log))
    first = compare({"A": arm}, seeds=[0, 1], cache=tmp_path / "cache")
    assert sorted(log.read_text().split()) == ["0", "1"]
    again = compare({"A": arm, "same": arm}, seeds=[0, 1, 2], cache=tmp_path / "cache")
    assert sorted(log.read_text().split()) == ["0", "1", "2"]
    assert again.values("same", final("x"))[:2] == first.values("A", final("x"))


def test_a_learning_rate_reaches_optimizer_and_function(tmp_path: Path):
    arms = {"recipe": BASE, "function": sum_of}
    runs = compare(arms, seeds=[1], learning_rates=[1e-3, 1e-2], cache=tmp_path, **QUIET)
    for lr in (1e-3, 1e-2):
        assert runs.values("function", final("x"), lr) == [1 + lr]
        by_hand = train(replace(BASE, seed=1, make_optimizer=partial(BASE.make_optimizer, lr=lr)), **QUIET)
        assert runs.values("recipe", final("val_loss"), lr) == [by_hand.metrics[-1]["val_loss"]]
    assert runs.best_lr("function", final("x")) == 1e-3
    lost = runs.values("function", final("x"), 1e-3)  # a value that is no number is never the best
    assert runs.best_lr("function", lambda m: math.nan if m[-1]["x"] in lost else m[-1]["x"]) == 1e-2
    assert runs.best_lr("function", lambda metrics: -metrics[-1]["x"], seed=1) == 1e-2


def test_a_crash_is_reported_and_the_others_finish(tmp_path: Path):
    arms = {"good": sum_of_no_lr(), "raises": crash_on_seed_1, "dies": dies_on_seed_1, "always": crash}
    runs = compare(arms, seeds=[0, 1, 2], cache=tmp_path)
    assert {(r.arm, r.seed) for r in runs.crashed()} == {("raises", 1), ("dies", 1), *(("always", s) for s in range(3))}
    assert runs.values("good", final("x")) == [0, 1, 2]
    assert "no such thing" in (runs.results["raises", None, 1].crashed or "")
    assert "toys.py, line" in (runs.results["raises", None, 1].crashed or "")
    assert f"signal {signal.SIGKILL:d}" in (runs.results["dies", None, 1].crashed or "")
    with pytest.raises(ValueError, match="'dies' with seed 1 has no result"):
        runs.values("dies", final("x"))


def sum_of_no_lr() -> partial:
    return partial(sum_of, lr=0)


def test_a_diverged_run_is_infinitely_bad_and_keeps_what_it_measured(tmp_path: Path):
    runs = compare({"A": BASE}, seeds=[0], learning_rates=[1e-3, 1e30], cache=tmp_path, **QUIET)
    assert runs.values("A", final("val_loss"), 1e30) == [math.inf]
    assert "lower lr" in (runs.result("A", 0, 1e30).diverged or "")
    assert runs.metrics("A", 0, 1e30)[0]["step"] == 0
    assert runs.best_lr("A", final("val_loss")) == 1e-3


def test_weights_are_kept_on_request(tmp_path: Path):
    without = compare({"A": BASE}, seeds=[0], cache=tmp_path, **QUIET)
    with pytest.raises(ValueError, match="keep_weights=True"):
        without.weights("A", 0)
    log = tmp_path / "log"
    arms = {"A": BASE, "function": partial(leave_a_mark, path=str(log))}
    for _ in range(2):
        assert compare(arms, seeds=[0], cache=tmp_path, keep_weights=True, **QUIET).weights("A", 0).is_file()
    assert log.read_text() == "0\n"


def plan(recipe: Any = BASE, probes: Any = (), log_every: int = 25, device: str = "cpu") -> Plan:
    return Plan(recipe, probes, log_every, 250, device, False)


def key(*given: Any, **options: Any) -> str:
    return plan(*given, **options).key({})


def test_the_key_changes_with_all_that_the_result_depends_on():
    keys = [
        key(),
        key(replace(BASE, seed=1)),
        key(replace(BASE, make_optimizer=partial(AdamW, lr=0.5))),
        key(replace(BASE, make_optimizer=Lion)),
        key(probes=(Rotation,)),
        key(probes=(partial(Rotation, every=5),)),
        key(log_every=5),
        key(partial(draws, seed=0)),
        key(partial(sum_of, seed=0)),
    ]
    assert len(set(keys)) == len(keys)
    assert key(replace(BASE)) == keys[0]


def test_the_key_changes_with_nested_values_and_with_probes_named_like_arguments():
    @dataclass(frozen=True)
    class Pair:
        left: int

    keys = [key(partial(sum_of, m=Pair(a), n=Pair(b))) for a, b in ((2, 9), (3, 9), (2, 8))]
    keys += [key(partial(sum_of, probes=n)) for n in (3, 4)]
    assert len(set(keys)) == len(keys)


def test_the_key_changes_with_the_data_even_between_two_calls(tmp_path: Path):
    text = tmp_path / "text.txt"
    text.write_text("0123456789\n" * 100)
    recipe = replace(BASE, data=partial(own_text, context=16, path=str(text)))
    before = compare({"A": recipe}, seeds=[0], cache=tmp_path / "cache", **QUIET)
    text.write_text("9876543210\n" * 100)
    after = compare({"A": recipe}, seeds=[0], cache=tmp_path / "cache", **QUIET)
    assert before.metrics("A") != after.metrics("A")
    assert before.environment["data"] != after.environment["data"]


@pytest.mark.parametrize("what", ["platform.python_version", "minitrain.lab.compare.np.__version__"])
def test_the_key_changes_with_the_versions(monkeypatch: pytest.MonkeyPatch, what: str):
    before = key(partial(sum_of, seed=0))
    monkeypatch.setattr(what, (lambda: "9.9") if what.endswith("python_version") else "9.9")
    assert key(partial(sum_of, seed=0)) != before


def test_code_that_changes_while_it_runs_is_not_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(tmp_path)
    arm_file = tmp_path / "edited_arm.py"
    arm_file.write_text(
        "import pathlib\ndef arm(seed):\n    pathlib.Path(__file__).write_text(NEW)\n    return []\nNEW = 'x = 1'\n"
    )
    arm = importlib.import_module("edited_arm").arm
    runs = compare({"A": arm}, seeds=[0], cache=tmp_path / "cache")
    assert "changed while this ran" in (runs.crashed()[0].crashed or "")
    assert not list((tmp_path / "cache").glob("*/result.json"))


def test_a_run_that_is_told_to_stop_is_not_taken_for_finished(tmp_path: Path):
    recipe = replace(BASE, steps=20_000, before_step=(toys.EndsItself,))
    runs = compare({"A": recipe}, seeds=[0], cache=tmp_path, **QUIET)
    assert "stopped after step" in (runs.crashed()[0].crashed or "")
    assert list(tmp_path.glob("*/run/checkpoints/*.pt"))


def test_modules_beside_the_caller_do_not_stand_in_for_pythons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "queue.py").write_text("raise RuntimeError")
    monkeypatch.chdir(tmp_path)
    assert not compare({"A": partial(sum_of, lr=0)}, seeds=[0], cache=tmp_path / "cache").crashed()


def test_what_a_kill_left_behind_is_cleared_away(tmp_path: Path):
    compare({"A": BASE}, seeds=[0], cache=tmp_path, **QUIET)
    (folder,) = tmp_path.iterdir()
    (folder / "run").mkdir()
    (folder / ".result.json.123.tmp").touch()
    before = (folder / "result.json").stat().st_mtime_ns
    compare({"A": BASE}, seeds=[0], cache=tmp_path, **QUIET)
    assert {path.name for path in folder.iterdir()} == {"result.json", "seconds"}
    assert (folder / "result.json").stat().st_mtime_ns == before


def test_what_cannot_be_run_is_refused_before_anything_runs(tmp_path: Path):
    for arms, seeds, rates in (({}, [0], None), ({"A": BASE}, [], None), ({"A": BASE}, [0], [])):
        with pytest.raises(ValueError, match="at least one arm, one seed"):
            compare(arms, seeds=seeds, learning_rates=rates, cache=tmp_path)
    with pytest.raises(ValueError, match="twice"):
        compare({"A": BASE}, seeds=[0, 0], cache=tmp_path)
    with pytest.raises(TypeError, match="no stable name"):
        compare({"A": lambda seed: []}, seeds=[0], cache=tmp_path)
    with pytest.raises(ValueError, match="not available here"):
        compare({"A": BASE}, seeds=[0], cache=tmp_path, device="no such device")
    assert not list(tmp_path.iterdir())


def test_asking_for_what_was_not_run(tmp_path: Path):
    runs = compare({"A": partial(sum_of, lr=0)}, seeds=[0], cache=tmp_path)
    for call in (
        lambda: runs.values("B", final("x")),
        lambda: runs.metrics("A", 7),
        lambda: runs.values("A", final("x"), 1.0),
    ):
        with pytest.raises(ValueError, match="there is no run of arm"):
            call()
    with pytest.raises(ValueError, match="not logged at step 3"):
        runs.values("A", at("x", 3))
    with pytest.raises(ValueError, match="no line of this run has 'y'"):
        runs.values("A", final("y"))


METRICS = [
    {"step": 0, "a": 4.0},
    {"step": 5, "a": 2.0, "b": {"p": 1.0, "q": 3.0}},
    {"step": 9, "b": {"p": 5.0}},
]


def test_measures():
    assert series(METRICS, "a") == [(0, 4.0), (5, 2.0)]
    assert series(METRICS, "b.q") == [(5, 3.0)]
    assert final("a")(METRICS) == 2.0
    assert at("a", 0)(METRICS) == 4.0
    assert mean_late("a", 1.0)(METRICS) == 3.0
    assert mean_late("b", 1.0)(METRICS) == (2.0 + 5.0) / 2
    assert mean_late("b.p", 0.5)(METRICS) == 5.0


def test_what_was_no_number_is_not_answered_by_what_came_before_it():
    lost = [*METRICS, {"step": 12, "a": None, "b": {"p": None}}]
    assert [step for step, _ in series(lost, "a")] == [0, 5, 12]
    lost = [*lost, {"step": 15, "b": None, "c": [1.0, None]}]
    assert [step for step, _ in series(lost, "b.p")] == [5, 9, 12]
    assert math.isnan(final("c")(lost)[1])
    for value in (final("a")(lost), mean_late("a", 1.0)(lost), at("b.p", 12)(lost), mean_late("b", 0.5)(lost)):
        assert math.isnan(value)
    assert mean_late("a", 1.0)(METRICS) == 3.0


def test_differences_and_ratios_are_paired_by_seed(tmp_path: Path):
    runs = compare({"A": draws, "B": partial(draws, add=2.0)}, seeds=range(4), cache=tmp_path)
    assert difference(runs, "B", "A", final("x")) == pytest.approx([2.0] * 4)
    a = runs.values("A", final("x"))
    assert ratio(runs, "B", "A", final("x")) == pytest.approx([(x + 2) / x for x in a])
    assert len(set(a)) == 4


@pytest.mark.parametrize(
    ("file", "damaged"),
    [
        ("result.json", "{"),
        ("result.json", "[" * 100_000),
        ("result.json", '{"metrics": 3, "diverged": null}'),
        ("result.json", '{"metrics": [1], "diverged": null}'),
        ("result.json", '{"metrics": [{"x": 1}], "diverged": null}'),
        ("result.json", None),
        ("seconds", ""),
        ("seconds", None),
    ],
)
def test_a_damaged_result_says_what_to_do(file: str, damaged: str | None, tmp_path: Path):
    """None stands for a folder in the file's place."""
    compare({"A": partial(sum_of, lr=0)}, seeds=[0], cache=tmp_path)
    (path,) = tmp_path.glob(f"*/{file}")
    path.unlink()
    path.mkdir() if damaged is None else path.write_text(damaged)
    with pytest.raises(ValueError, match="is damaged; delete it"):
        compare({"A": partial(sum_of, lr=0)}, seeds=[0], cache=tmp_path)
