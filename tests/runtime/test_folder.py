"""A run's folder: what is in it, and that a stopped, killed or damaged run ends as if nothing had happened."""

import functools
import json
import math
import shutil
import signal
import warnings
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import small
import torch
from small import (
    BASE,
    CONTEXT,
    STEPS,
    VARIANTS,
    At,
    Poison,
    dropout_gpt,
    same,
    stop_at,
    train_in,
)

import minitrain.train
from minitrain.lab.probes import Rotation
from minitrain.optim import AdamW, ClipGradNorm
from minitrain.recipe import Recipe, describe
from minitrain.runtime.checkpoint import checkpoints, load_checkpoint
from minitrain.runtime.folder import environment
from minitrain.train import Run, build


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """`uninterrupted(recipe)`: the folder of the recipe's run from start to end, made once; not to be written to."""

    @functools.cache
    def folder_of(text: str) -> Path:
        return tmp_path_factory.mktemp("uninterrupted")

    def make(recipe: Recipe) -> Path:
        folder = folder_of(str(recipe))
        if not (folder / "metrics.jsonl").exists():
            train_in(folder, recipe)
        return folder

    return make


@pytest.fixture
def finished(uninterrupted: Any, tmp_path: Path) -> Path:
    """A finished run's folder, a copy to be harmed."""
    return Path(shutil.copytree(uninterrupted(BASE), tmp_path / "finished"))


@pytest.fixture
def stopped(tmp_path: Path) -> Path:
    """The folder of a run stopped after step 9, with checkpoints at 6 and 9 and lines up to step 8."""
    train_in(tmp_path / "stopped", probes=[stop_at(9)])
    assert [path.name for path in checkpoints(tmp_path / "stopped")] == ["00000009.pt", "00000006.pt"]
    return tmp_path / "stopped"


def content(folder: Path) -> dict[str, bytes]:
    """Every file in a folder by its path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_same_end(folder: Path, expected: Path) -> None:
    """The same metrics byte for byte, the same weights, optimizer, hooks, losses and random state bit for bit."""
    assert (folder / "metrics.jsonl").read_text() == (expected / "metrics.jsonl").read_text()
    assert (folder / "recipe.txt").read_bytes() == (expected / "recipe.txt").read_bytes()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found, wanted = load_checkpoint(folder), load_checkpoint(expected)
    assert found["step"] == wanted["step"]
    different = [key for key in wanted if not same(found[key], wanted[key])]
    assert different == []


def assert_same_run(run: Run, folder: Path) -> None:
    """The run in memory is the one whose end the folder holds."""
    saved = load_checkpoint(folder)
    assert run.finished
    assert same(run.model.state_dict(), saved["model"])
    assert same(run.optimizer.state_dict(), saved["optimizer"])
    assert same(run.losses, saved["losses"])


# --- what is in the folder --------------------------------------------------------------------------------------------


def test_a_folder_holds_the_recipe_the_metrics_and_the_newest_two_checkpoints(finished: Path) -> None:
    assert sorted(content(finished)) == [
        "checkpoints/00000018.pt", "checkpoints/00000020.pt", "metrics.jsonl", "recipe.txt"
    ]  # fmt: skip


def test_recipe_txt_says_all_that_the_bits_depend_on(finished: Path) -> None:
    run = build(BASE)
    facts = {**describe(BASE), "data digest": run.data.digest, **environment(run)}
    lines = (finished / "recipe.txt").read_text().splitlines()
    assert lines == [f"{name}: {text}" for name, text in facts.items()]
    for name in ("make_optimizer.lr: 0.01", "seed: 0", "device: cpu", "threads: 1", f"torch: {torch.__version__}"):
        assert name in lines


def lines_of(folder: Path) -> list[dict[str, Any]]:
    """`metrics.jsonl` as a strict reader sees it: Python's own would let NaN and Infinity pass, which are not JSON."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_metrics_are_json_lines_with_what_was_due_at_each_step(finished: Path) -> None:
    lines = lines_of(finished)
    logged, evaluated = {"step", "loss", "lr", "grad_norm"}, {"step", "val_loss"}
    expected = {0: evaluated, 5: evaluated, 10: evaluated, 15: evaluated, 20: logged | evaluated}
    expected |= dict.fromkeys((4, 8, 12, 16), logged)
    assert {line["step"]: set(line) for line in lines} == expected
    assert [line["step"] for line in lines] == sorted(expected)


def test_the_logged_loss_is_the_mean_since_the_last_log(tmp_path: Path) -> None:
    run = train_in(tmp_path, log_every=6)
    logged = [line["loss"] for line in lines_of(tmp_path) if "loss" in line]
    parts = [run.losses[first:last].mean().item() for first, last in [(0, 6), (6, 12), (12, 18), (18, 20)]]
    assert logged == parts


def test_metrics_hold_no_times_so_that_a_second_run_writes_the_same_file(finished: Path, tmp_path: Path) -> None:
    train_in(tmp_path / "again")
    assert_same_end(tmp_path / "again", finished)


def test_metrics_in_memory_are_those_in_the_file(tmp_path: Path) -> None:
    assert train_in(tmp_path, probes=[Rotation(every=3)]).metrics == lines_of(tmp_path)


def test_a_measurement_that_is_no_number_is_still_written_as_json(tmp_path: Path) -> None:
    """A head that starts at zero has no direction to turn from."""
    train_in(tmp_path, probes=[Rotation("head", every=1)])
    assert lines_of(tmp_path)[1]["rotation_of_head"] == {"head.weight": None}


def test_a_new_run_does_not_overwrite_an_old_one_nor_mix_with_its_checkpoints(finished: Path) -> None:
    """They would count as the newest: those of the new run would be removed, and a resume would take the old one's."""
    for _ in range(2):
        before = content(finished)
        with pytest.raises(FileExistsError, match="already holds a run; go on with it by --resume"):
            train_in(finished)
        assert content(finished) == before
        (finished / "metrics.jsonl").unlink(missing_ok=True)


def test_there_must_be_a_run_to_resume(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no run to resume"):
        train_in(tmp_path / "nothing", resume=True)
    assert not (tmp_path / "nothing").exists()


def test_a_run_without_a_folder_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    small.train_small(BASE, probes=[stop_at(7)])
    assert content(tmp_path) == {}


# --- stopped and resumed ----------------------------------------------------------------------------------------------


STOPS = {"fp32": (1, 11, 20), "bf16": (5, 19), "accumulated": (6, 19), "dropout": (5, 6, 11), "averaged": (1, 19)}


@pytest.mark.parametrize(("variant", "step"), [(variant, step) for variant in VARIANTS for step in STOPS[variant]])
def test_a_stopped_and_resumed_run_is_the_uninterrupted_one(
    variant: str, step: int, uninterrupted: Any, tmp_path: Path
) -> None:
    recipe = VARIANTS[variant]
    first = train_in(tmp_path, recipe, probes=[stop_at(step)])
    assert first.step == step
    assert load_checkpoint(tmp_path)["step"] == step
    second = train_in(tmp_path, recipe, resume=True)
    assert_same_end(tmp_path, uninterrupted(recipe))
    assert_same_run(second, uninterrupted(recipe))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_many_stops_of_either_kind_in_one_history(number: int, uninterrupted: Any, tmp_path: Path) -> None:
    recipe = VARIANTS["dropout"]
    for step in (3, 4, 9, 14):
        assert not train_in(tmp_path, recipe, resume=step > 3, probes=[stop_at(step, number)]).finished
    assert train_in(tmp_path, recipe, resume=True).finished
    assert_same_end(tmp_path, uninterrupted(recipe))


def test_a_stop_before_the_first_step_is_resumed_too(
    uninterrupted: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate = minitrain.train.evaluate

    def stop_and_evaluate(run: Run) -> float:
        signal.raise_signal(signal.SIGTERM)
        return evaluate(run)

    with monkeypatch.context() as patch:
        patch.setattr(minitrain.train, "evaluate", stop_and_evaluate)
        assert train_in(tmp_path).step == 0
    train_in(tmp_path, resume=True)
    assert_same_end(tmp_path, uninterrupted(BASE))


def crash() -> None:
    raise RuntimeError("the power went off")


@pytest.mark.parametrize("step", [3, 5, 17])
def test_a_crashed_run_takes_the_steps_after_its_checkpoint_again(
    step: int, uninterrupted: Any, tmp_path: Path
) -> None:
    """Before the first checkpoint, at step 6, it starts anew; lines written since are not written twice."""
    with pytest.raises(RuntimeError, match="the power went off"):
        train_in(tmp_path, probes=[At(step, crash)])
    assert bool(checkpoints(tmp_path)) == (step > 6)
    train_in(tmp_path, resume=True)
    assert_same_end(tmp_path, uninterrupted(BASE))


def test_resuming_a_finished_run_changes_nothing(finished: Path) -> None:
    before = content(finished)
    run = train_in(finished, resume=True)
    assert run.finished
    assert run.metrics == lines_of(finished)
    assert content(finished) == before


@pytest.mark.parametrize(
    ("variant", "forgotten"),
    [("averaged", "small.Averaging.load_state_dict"), ("dropout", "minitrain.runtime.folder.set_random_state")],
)
def test_without_a_part_of_its_checkpoint_a_resumed_run_is_another_one(
    variant: str, forgotten: str, uninterrupted: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The comparison above can tell."""
    recipe = VARIANTS[variant]
    train_in(tmp_path, recipe, probes=[stop_at(11)])
    monkeypatch.setattr(forgotten, lambda *_: None)
    train_in(tmp_path, recipe, resume=True)
    with pytest.raises(AssertionError):
        assert_same_end(tmp_path, uninterrupted(recipe))


# --- killed -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run killed at its second file operation, resumed, killed at its fifth, and so on to its end.

    The numbers take in a kill before the first checkpoint and several with a checkpoint half written.
    """
    folder = tmp_path_factory.mktemp("killed")
    operations = small.in_own_process(f"kill_again_and_again({str(folder)!r}, 'dropout', first=2, stride=3)")
    assert int(operations) > 20
    return folder


def test_a_run_killed_again_and_again_is_the_uninterrupted_one(killed: Path, uninterrupted: Any) -> None:
    assert_same_end(killed, uninterrupted(VARIANTS["dropout"]))


def test_killed_runs_leave_no_half_written_files_behind(killed: Path) -> None:
    """A kill cannot clean up, so the resumed run has to: each leftover is as large as a checkpoint."""
    assert [name for name in content(killed) if name.endswith(".tmp")] == []


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["bf16", "dropout", "averaged"])
def test_a_run_killed_at_any_file_operation_is_the_uninterrupted_one(
    variant: str, uninterrupted: Any, tmp_path: Path
) -> None:
    operations = small.in_own_process(f"kill_once_at_each_operation({str(tmp_path)!r}, {variant!r})")
    assert int(operations) > 30
    for operation in range(1, int(operations) + 1):
        assert_same_end(tmp_path / str(operation), uninterrupted(VARIANTS[variant]))


# --- another run than the checkpoint's --------------------------------------------------------------------------------

OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "value": (
        {"make_optimizer": partial(AdamW, lr=2e-2, betas=(0.9, 0.95), weight_decay=0.1)},
        r"make_optimizer.lr was 0.01 and is now 0.02; make them equal",
    ),
    "model": (
        {"build_model": dropout_gpt},
        r"build_model.mlp was None and is now small.mlp_with_dropout; make them equal",
    ),
    "hook": (
        {"before_step": (partial(ClipGradNorm, 0.3), ClipGradNorm)},
        r"before_step.1 was None and is now minitrain.optim.ClipGradNorm; make them equal",
    ),
    "two values": (
        {"micro_batch_size": CONTEXT, "seed": 3},
        r"micro_batch_size was None and is now 16 \(and 1 more\); make them equal",
    ),
    "steps": ({"steps": STEPS + 1}, r"steps was 20 and is now 21; make them equal"),
}


@pytest.mark.parametrize(("changed", "said"), OTHERS.values(), ids=OTHERS)
def test_another_recipes_checkpoint_is_refused_and_the_difference_named(
    changed: dict[str, Any], said: str, stopped: Path
) -> None:
    before = content(stopped)
    with pytest.raises(ValueError, match=f"the checkpoint is of another run: {said}"):
        train_in(stopped, replace(BASE, **changed), resume=True)
    assert content(stopped) == before


def test_other_data_under_the_same_name_are_refused(stopped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = content(stopped)
    monkeypatch.setattr(small, "TEXT", small.TEXT[::-1])
    with pytest.raises(ValueError, match="the data are not those the checkpoint was trained on"):
        train_in(stopped, resume=True)
    assert content(stopped) == before


def test_another_precision_is_a_warning(stopped: Path) -> None:
    with pytest.warns(UserWarning, match="precision was fp32 and is now bf16: the run goes on, but not bit for bit"):
        run = train_in(stopped, replace(BASE, precision="bf16"), resume=True)
    assert run.finished


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def faster_products() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    yield
    torch.set_float32_matmul_precision(before)


def test_another_number_of_threads_is_a_warning(stopped: Path, two_threads: None) -> None:
    now = torch.get_num_threads()
    with pytest.warns(UserWarning, match=f"threads was {now - 1} and is now {now}: the run goes on"):
        assert train_in(stopped, resume=True, probes=[stop_at(10)]).step == 10


def test_another_kind_of_product_is_a_warning(stopped: Path, faster_products: None) -> None:
    with pytest.warns(UserWarning, match="float32 products was highest and is now medium: the run goes on"):
        assert train_in(stopped, resume=True, probes=[stop_at(10)]).step == 10


# --- damaged files ----------------------------------------------------------------------------------------------------


def cut(path: Path, share: float) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])


def flip(path: Path, where: int) -> None:
    """Inverts one byte."""
    whole = bytearray(path.read_bytes())
    whole[where] ^= 0xFF
    path.write_bytes(whole)


@pytest.mark.parametrize("share", [0, 0.3, 0.9999])
def test_a_cut_checkpoint_is_reported_and_the_one_before_it_used(
    share: float, stopped: Path, uninterrupted: Any
) -> None:
    cut(stopped / "checkpoints" / "00000009.pt", share)
    with pytest.warns(UserWarning, match=r"checkpoint .*00000009.pt is damaged; trying the one before it"):
        assert load_checkpoint(stopped)["step"] == 6
    with pytest.warns(UserWarning, match="is damaged"):
        train_in(stopped, resume=True)
    assert_same_end(stopped, uninterrupted(BASE))


def damage_in_weights(path: Path, weights: torch.Tensor) -> None:
    """Inverts a byte in the middle of a tensor's bytes."""
    raw = weights.numpy().tobytes()
    flip(path, path.read_bytes().index(raw) + len(raw) // 2)


def test_a_checkpoint_with_a_wrong_byte_in_a_weight_is_reported(stopped: Path, uninterrupted: Any) -> None:
    newest = stopped / "checkpoints" / "00000009.pt"
    damage_in_weights(newest, load_checkpoint(stopped)["model"]["blocks.0.mlp.up.weight"])
    with pytest.warns(UserWarning, match=r"checkpoint .*00000009.pt is damaged"):
        train_in(stopped, resume=True)
    assert_same_end(stopped, uninterrupted(BASE))


def test_no_wrong_byte_anywhere_changes_what_is_loaded(stopped: Path) -> None:
    """It is reported, or it lies in the padding and the content is the same."""
    newest = stopped / "checkpoints" / "00000009.pt"
    whole, undamaged, older = newest.read_bytes(), load_checkpoint(stopped), 0
    for where in range(0, len(whole), len(whole) // 41):
        flip(newest, where)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            loaded = load_checkpoint(stopped)
        assert same(loaded, undamaged) or (loaded["step"] == 6 and "damaged" in str(said[0].message)), where
        older += loaded["step"] == 6
        newest.write_bytes(whole)
    assert older > 20


def test_where_all_checkpoints_are_damaged_a_sentence_says_so(stopped: Path) -> None:
    for path in checkpoints(stopped):
        cut(path, 0.5)
    before = content(stopped)
    with (
        pytest.warns(UserWarning, match="is damaged"),
        pytest.raises(ValueError, match=r"every checkpoint in .* is damaged; start a new run in another folder"),
    ):
        train_in(stopped, resume=True)
    assert content(stopped) == before


@pytest.mark.parametrize(
    "changed",
    [{"step": math.nan}, {"step": 10**30}, {"random": {}}, {"metrics": 3}, {"environment": []}, {"optimizer": {}}],
    ids=repr,
)
def test_a_checkpoint_that_no_run_wrote_is_refused_in_a_sentence(changed: dict[str, Any], stopped: Path) -> None:
    """Its bytes are whole, but somebody has put something else into it."""
    path = checkpoints(stopped)[0]
    torch.save(load_checkpoint(stopped) | changed, path)
    before = content(stopped)
    with pytest.raises(ValueError, match=r"the checkpoint (in .* is not as a run wrote it|is of step)"):
        train_in(stopped, resume=True)
    assert content(stopped) == before


def test_where_there_is_no_checkpoint_a_sentence_says_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no checkpoint in .*; start a new run"):
        load_checkpoint(tmp_path)


def test_temporary_files_do_not_count_as_checkpoints(stopped: Path) -> None:
    (stopped / "checkpoints" / ".00000012.pt.77.tmp").write_bytes(b"half")
    assert [path.name for path in checkpoints(stopped)] == ["00000009.pt", "00000006.pt"]
    assert load_checkpoint(stopped)["step"] == 9


HARMS = {
    "last line cut": lambda metrics: metrics[:-7],
    "first line damaged": lambda metrics: '{"st' + metrics[8:],
    "last line lost": lambda metrics: "".join(metrics.splitlines(keepends=True)[:-1]),
    "blank line": lambda metrics: metrics + "\n",
}


@pytest.mark.parametrize("harm", HARMS.values(), ids=HARMS)
def test_metrics_harmed_by_a_power_failure_are_whole_again_after_the_resume(
    harm: Any, stopped: Path, uninterrupted: Any
) -> None:
    """Lines are not flushed to the disk one by one, checkpoints are: the file may be behind them."""
    metrics = stopped / "metrics.jsonl"
    metrics.write_text(harm(metrics.read_text()))
    train_in(stopped, resume=True)
    assert_same_end(stopped, uninterrupted(BASE))


# --- numbers that are none --------------------------------------------------------------------------------------------


def poisoned(step: int) -> Recipe:
    return replace(BASE, after_step=(partial(Poison, step),))


def test_a_loss_that_is_no_number_leaves_the_earlier_checkpoints_as_they_are(tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError, match="the loss is nan at step 14"):
        train_in(tmp_path, poisoned(14))
    assert [path.name for path in checkpoints(tmp_path)] == ["00000012.pt", "00000006.pt"]
    for path in checkpoints(tmp_path):
        saved = torch.load(path, weights_only=True)
        assert all(x.isfinite().all() for x in saved["model"].values())
        assert saved["losses"][: saved["step"]].isfinite().all()
    lines_of(tmp_path)


def test_after_a_loss_that_is_no_number_the_run_can_be_resumed_from_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(FloatingPointError):
        train_in(tmp_path / "a", poisoned(14))
    monkeypatch.setattr(Poison, "__call__", lambda self, model, optimizer: None)
    assert train_in(tmp_path / "a", poisoned(14), resume=True).finished
    train_in(tmp_path / "b", poisoned(14))
    assert_same_end(tmp_path / "a", tmp_path / "b")


@pytest.mark.parametrize("step", [12, 20])
def test_weights_that_are_no_numbers_never_get_into_a_checkpoint(step: int, tmp_path: Path) -> None:
    """Though every loss up to then is finite, at a checkpoint in the middle and at the last."""
    with pytest.raises(FloatingPointError, match=f"a weight is no longer a number after step {step}; lower lr"):
        train_in(tmp_path, poisoned(step))
    assert load_checkpoint(tmp_path)["step"] == (6 if step == 12 else 18)


def test_a_stop_does_not_save_a_loss_that_is_no_number(tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError, match="the loss is nan at step 8"):
        train_in(tmp_path, poisoned(8), probes=[stop_at(9)], log_every=5)
    assert load_checkpoint(tmp_path)["step"] == 6


def test_metrics_stay_json_where_the_weights_are_no_numbers(tmp_path: Path) -> None:
    """Poisoned just before an evaluation, whose loss is none then."""
    with pytest.raises(FloatingPointError):
        train_in(tmp_path, poisoned(5))
    assert lines_of(tmp_path)[0]["step"] == 0
