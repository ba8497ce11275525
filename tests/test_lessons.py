"""Every lesson: its form, its presets, its committed record, its figure. What is wrong in one is named by its slug."""

import re
from collections.abc import Generator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from minitrain.data import download
from minitrain.lab.claims import Claim, evaluate
from minitrain.lab.compare import Runs, compare, final
from minitrain.lab.course import draw_record, ledger, list_of_lessons, records, reproduce, run_lesson, wanted_by
from minitrain.lab.lessons import lesson_files, load_lesson
from minitrain.lab.places import lessons_folder
from minitrain.lab.plots import THEMES, save_figure
from minitrain.lab.records import is_stale, make_record, read_record, runs_of, write_record
from minitrain.recipe import Recipe, describe
from minitrain.train import build, gradient

SLUGS = list(lesson_files())
PRESETS = ["quick", "cpu", "record", "gpu"]
ROOT = lessons_folder().parent
every_lesson = pytest.mark.parametrize("slug", SLUGS)


@pytest.fixture
def lesson(slug: str) -> ModuleType:
    return load_lesson(slug)


def test_the_numbers_of_lessons_have_two_digits_and_rise():
    """They are those of the course's plan, which may have gaps until all of it is there."""
    numbers = [path.stem.partition("_")[0] for path in lesson_files().values()]
    assert all(re.fullmatch(r"\d\d", number) for number in numbers)
    assert numbers == sorted(set(numbers))
    for slug in SLUGS:
        assert slug in list_of_lessons()


@every_lesson
def test_a_lesson_opens_with_its_question_and_how_to_run_it(lesson: ModuleType, slug: str):
    first, *others = (lesson.__doc__ or "").splitlines()
    assert re.fullmatch(r"\d\d .+[.?] Question: .+\?", first)
    assert f"python lessons/{lesson_files()[slug].name}" in "".join(others)


@every_lesson
@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_makes_arms_that_differ(lesson: ModuleType, preset: str):
    wanted = wanted_by(lesson, preset)
    arms = list(wanted["arms"].values())
    for i, a in enumerate(arms):
        for b in arms[:i]:
            assert describe(a) != describe(b)
    assert len(list(wanted["seeds"])) >= 2
    if preset == "record":
        assert len(list(wanted["seeds"])) >= 3


@every_lesson
def test_presets_are_these_and_an_unknown_one_is_refused(lesson: ModuleType):
    assert list(lesson.PRESETS) == PRESETS
    with pytest.raises(ValueError, match="choose quick, cpu, record, gpu"):
        wanted_by(lesson, "none")


@every_lesson
def test_claims_have_names_of_their_own_and_arms_that_exist(lesson: ModuleType):
    names = [claim.name for claim in lesson.CLAIMS]
    assert len(set(names)) == len(names)
    arms = set(wanted_by(lesson, "record")["arms"])
    for claim in lesson.CLAIMS:
        assert re.fullmatch(r"[a-z0-9-]+", claim.name)
        assert set(claim.arms or arms) <= arms


@every_lesson
def test_by_hand_prints_numbers(lesson: ModuleType, capsys: pytest.CaptureFixture[str]):
    lesson.by_hand()
    assert re.search(r"\d\.\d", capsys.readouterr().out)


# --- a real size, without a GPU -------------------------------------------------------------------------------------------


@contextmanager
def fake_device() -> Generator[None]:
    """Tensors with shapes and dtypes but without memory; models stay where they are built."""
    with FakeTensorMode(allow_non_fake_inputs=True), pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.Module, "to", lambda self, device: self)
        yield


def few_images() -> dict[str, np.ndarray]:
    """In the place of CIFAR-10."""
    labels = np.arange(600) % 10
    arrays = {"train_images": np.zeros((600, 32, 32, 3), np.uint8), "train_labels": labels}
    return arrays | {"test_images": arrays["train_images"][:100], "test_labels": labels[:100]}


@every_lesson
def test_the_gpu_preset_takes_a_step_on_a_fake_device(lesson: ModuleType, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(download, "cifar10_arrays", few_images)  # without the network
    recipes = [arm for arm in wanted_by(lesson, "gpu")["arms"].values() if isinstance(arm, Recipe)]
    for recipe in recipes[:1]:
        with fake_device():
            run = build(recipe)
            loss = gradient(run, run.model)
            for hook in run.before_step:
                hook(run.model, run.optimizer)
            run.optimizer.step()
            assert loss.shape == ()
            assert all(p.grad is not None and p.grad.shape == p.shape for p in run.model.parameters())
        real = 10_000_000 if run.data.row_size > 1 else 250_000  # a text's model, or ResNet-20
        assert sum(p.numel() for p in run.model.parameters()) > real


def test_a_real_size_is_refused_where_there_is_only_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("torch.accelerator.is_available", lambda: False)
    with pytest.raises(ValueError, match="needs an accelerator"):
        run_lesson("train_a_gpt", "gpu", tmp_path)


# --- committed records -----------------------------------------------------------------------------------------------


@every_lesson
def test_a_committed_record_gives_its_own_verdicts(lesson: ModuleType, slug: str):
    record = records()[slug]
    runs = runs_of(record)
    assert [outcome["name"] for outcome in record["claims"]] == [claim.name for claim in lesson.CLAIMS]
    for claim, outcome in zip(lesson.CLAIMS, record["claims"], strict=True):
        again = evaluate(claim, runs)
        assert again["values"] == pytest.approx(outcome["values"], rel=1e-9), claim.name
        assert {k: again[k] for k in ("verdict", "threshold", "sentence", "kind")} == {
            k: outcome[k] for k in ("verdict", "threshold", "sentence", "kind")
        }


@every_lesson
def test_algebra_and_simulations_hold(slug: str):
    for outcome in records()[slug]["claims"]:
        assert outcome["kind"] == "training" or outcome["verdict"] == "holds", outcome["name"]


@every_lesson
def test_a_committed_record_is_of_the_present_code_and_preset(lesson: ModuleType, slug: str):
    record = records()[slug]
    assert is_stale(record) is not True
    wanted = wanted_by(lesson, "record")
    assert (record["preset"], record["seeds"]) == ("record", list(wanted["seeds"]))
    assert record["arms"] == {name: describe(arm) for name, arm in wanted["arms"].items()}
    assert record["probes"] == describe(tuple(wanted.get("probes", ())), "probes")
    assert record["learning_rates"] == (wanted.get("learning_rates") or [None])
    assert (ROOT / "docs" / "results" / f"{slug}.json").stat().st_size < 400_000


@every_lesson
def test_the_committed_figure_is_drawn_from_the_committed_record(lesson: ModuleType, slug: str, tmp_path: Path):
    draw = partial(draw_record, lesson, records()[slug], None)
    for theme in THEMES:
        path = tmp_path / f"{slug}-{theme.name}.svg"
        save_figure(path, draw, theme, getattr(lesson, "HEIGHT", 4.0))
        assert path.read_bytes() == (ROOT / "docs" / "figures" / path.name).read_bytes()


@every_lesson
def test_a_prediction_is_drawn_when_there_is_one(lesson: ModuleType, slug: str, tmp_path: Path):
    pictures = []
    for prediction in (None, lesson.PREDICT.low + 0.4 * (lesson.PREDICT.high - lesson.PREDICT.low)):
        path = tmp_path / f"{prediction}.svg"
        save_figure(
            path, partial(draw_record, lesson, records()[slug], prediction), THEMES[0], getattr(lesson, "HEIGHT", 4.0)
        )
        pictures.append(path.read_bytes())
    assert pictures[0] != pictures[1]


@every_lesson
def test_every_lesson_has_page_figure_record_and_exercise(slug: str):
    for path in (
        f"docs/lessons/{slug}.md",
        f"docs/figures/{slug}-light.svg",
        f"docs/figures/{slug}-dark.svg",
        f"docs/results/{slug}.json",
        f"lessons/exercises/{slug}/check.py",
    ):
        assert (ROOT / path).is_file(), path


# --- running and reproducing -------------------------------------------------------------------------------------------


def test_a_lesson_from_its_question_to_its_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    record = run_lesson("one_neuron", "quick", tmp_path / "out", cache=tmp_path / "cache")
    out = capsys.readouterr().out
    for words in (
        "03 One neuron. Question:",
        "--- by hand",
        "--- claims",
        "holds",
        str(tmp_path / "out" / "picture.png"),
    ):
        assert words in out
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"record.json", "picture.png"}
    assert read_record(tmp_path / "out" / "record.json") == record
    assert record["command"] == "minitrain lesson one_neuron --preset quick"


def test_a_crashed_arm_leaves_its_claims_unmeasured_and_the_rest_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    import toys

    lesson = load_lesson("one_neuron")
    claims = [
        Claim(arm, f"{arm} is positive", partial(Runs.values, arm=arm, measure=final("x")), above=0.0, arms=(arm,))
        for arm in ("good", "bad")
    ]
    monkeypatch.setattr(
        lesson, "experiment", lambda **_: {"arms": {"good": toys.draws, "bad": toys.crash}, "seeds": [0, 1]}
    )
    monkeypatch.setattr(lesson, "CLAIMS", claims)
    monkeypatch.setattr(lesson, "MEASURES", {"x": final("x")})
    monkeypatch.setattr("minitrain.lab.course.ask", lambda predict: 1.0)
    record = run_lesson("one_neuron", "quick", tmp_path / "out", cache=tmp_path / "cache")
    out = capsys.readouterr().out
    assert "crashed: bad, seed 0: RuntimeError: always" in out
    assert re.search("not measured +bad is positive", out)
    assert "No picture, since runs crashed" in out
    assert read_record(tmp_path / "out" / "record.json") == record
    assert {run["arm"] for run in record["runs"]} == {"good"}
    assert [outcome["name"] for outcome in record["claims"]] == ["good"]


def test_reproducing_a_claim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    name = "coin-decides-no-length"
    assert reproduce(f"one_neuron/{name}", cache=tmp_path / "cache")
    out = capsys.readouterr().out
    assert "This machine agrees" in out
    assert "recorded" in out
    assert not (tmp_path / "cache").exists()
    lesson = load_lesson("one_neuron")
    wrong = [
        Claim(name, "wrong", lambda runs: [2.0] * len(runs.seeds), below=1.0, kind="algebra", arms=("two weights",))
    ]
    monkeypatch.setattr(lesson, "CLAIMS", wrong)
    assert not reproduce(f"one_neuron/{name}", cache=tmp_path / "cache")
    assert "does not agree" in capsys.readouterr().out


def test_a_first_seed_is_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    import toys

    arms: dict[str, Any] = {"A": partial(toys.draws, add=1.0), "B": toys.draws}
    monkeypatch.setattr(load_lesson("one_neuron"), "experiment", lambda **_: {"arms": arms, "seeds": [4, 5]})
    monkeypatch.setattr("minitrain.lab.course.results_folder", lambda: tmp_path)
    runs = compare(arms, seeds=[4, 5], cache=tmp_path / "first")
    write_record(tmp_path / "one_neuron.json", make_record("one_neuron", "record", runs, {}, []))
    assert reproduce("one_neuron", cache=tmp_path / "again")
    assert "Of 2 arms, seed 4, 2 agree in every digit" in capsys.readouterr().out
    arms["A"] = partial(toys.draws, add=1.001)
    assert not reproduce("one_neuron", cache=tmp_path / "again")
    assert "1 agree in every digit" in capsys.readouterr().out


def test_what_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(ValueError, match="did you mean one_neuron"):
        run_lesson("one_neutron", "quick", tmp_path)
    with pytest.raises(ValueError, match="the lessons are"):
        load_lesson("xyz")
    with pytest.raises(ValueError, match="has no recorded claim 'none'"):
        reproduce("one_neuron/none", cache=tmp_path)


def test_the_ledger_lists_every_claim_with_its_verdict():
    lines = ledger().splitlines()
    outcomes: list[Any] = [(slug, outcome) for slug, record in records().items() for outcome in record["claims"]]
    assert len(lines) == len(outcomes)
    for line, (slug, outcome) in zip(lines, outcomes, strict=True):
        assert line.startswith(f"{slug}/{outcome['name']} ")
        assert outcome["verdict"] in line


@pytest.mark.slow
@every_lesson
def test_quick_runs_whole(slug: str, tmp_path: Path):
    record = run_lesson(slug, "quick", tmp_path / "out", cache=tmp_path / "cache")
    for outcome in record["claims"]:
        assert outcome["kind"] != "algebra" or outcome["verdict"] == "holds"
