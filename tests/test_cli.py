"""The command: what it writes, what it says, and one sentence for every kind of bad input."""

import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import minitrain
from minitrain import cli
from minitrain.cli import commands, recipes
from minitrain.cli.options import Demo, ImageModel, ImageTraining, Machine, Model, TextTraining, Train, TrainImages
from minitrain.lab.course import Predict, ask
from minitrain.lab.samples import python_accepts
from minitrain.recipe import describe, difference
from minitrain.runtime.checkpoint import checkpoints
from minitrain.runtime.files import only_writer

TINY = ["--depth", "1", "--width", "32", "--context", "16", "--batch-size", "64", "--steps", "6", "--threads", "1"]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("".join(f"def f{i}(x):\n    return x + {i}\n" for i in range(200)))
    return path


@pytest.fixture(autouse=True)
def settings_of_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The command sets threads, precision and the printing of warnings; put them back, and keep `runs/` out of here."""
    import warnings

    before = torch.get_num_threads(), torch.get_float32_matmul_precision(), warnings.showwarning
    monkeypatch.chdir(tmp_path)
    yield
    torch.set_num_threads(before[0])
    torch.set_float32_matmul_precision(before[1])
    warnings.showwarning = before[2]


def outcome(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Exit code and standard error of a command."""
    try:
        cli.main(arguments)
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    return code, capsys.readouterr().err


BAD = {  # arguments after TINY, and what the sentence must name
    "lr negative": (["--lr", "-0.1"], ["lr", "-0.1", "above 0"]),
    "lr zero": (["--lr", "0"], ["lr", "0", "above 0"]),
    "lr nan": (["--lr", "nan"], ["lr", "nan", "above 0"]),
    "lr word": (["--lr", "fast"], ["--lr takes a number", "fast"]),
    "decay nan": (["--weight-decay", "nan"], ["weight_decay", "nan"]),
    "betas": (["--betas", "0.9", "1.5"], ["betas", "1.5"]),
    "betas of sgd": (["--optimizer", "sgd", "--betas", "0.9", "0.9"], ["sgd", "betas"]),
    "clip nan": (["--clip", "nan"], ["clip", "nan"]),
    "warmup nan": (["--warmup", "nan"], ["warmup", "nan"]),
    "warmup and cooldown": (["--warmup", "0.9"], ["warmup", "cooldown", "6 steps"]),
    "steps zero": (["--steps", "0"], ["steps", "at least 1", "0"]),
    "steps fraction": (["--steps", "1.5"], ["--steps takes a whole number", "1.5"]),
    "one beta": (["--betas", "0.9"], ["--betas takes two numbers", "0.9"]),
    "missing value": (["--steps"], ["Missing value", "--steps"]),
    "cooldown of cosine": (["--schedule", "cosine", "--cooldown", "0.2"], ["cosine", "cooldown", "wsd"]),
    "shape of linear": (["--schedule", "linear", "--shape", "square"], ["linear", "shape", "wsd"]),
    "resume and out": (["--resume", "run"], ["--out"]),
    "seed negative": (["--seed", "-1"], ["seed", "-1"]),
    "heads": (["--heads", "3"], ["32", "3 heads"]),
    "depth zero": (["--depth", "0"], ["depth", "at least 1", "0"]),
    "context zero": (["--context", "0"], ["context", "at least 1"]),
    "context longer than the data": (["--context", "9000", "--batch-size", "9000"], ["too short", "9000"]),
    "batch not in rows": (["--batch-size", "65"], ["batch_size", "multiples", "16"]),
    "batch larger than the split": (["--batch-size", "1600000"], ["batch_size", "1,600,000", "larger"]),
    "micro batch": (["--micro-batch-size", "48"], ["micro_batch_size", "48", "divide"]),
    "seed beyond torch": (["--seed", str(2**64)], ["seed must be from", "9,223,372,036,854,775,807"]),
    "steps beyond torch": (["--steps", "9" * 30], ["steps must be from"]),
    "depth beyond patience": (["--depth", "1000000"], ["depth must be from", "10,000, not 1,000,000"]),
    "width beyond memory": (["--width", str(2**40), "--heads", "1"], ["not enough memory"]),
    "device": (["--device", "abacus"], ["abacus", "cpu"]),
    "precision": (["--precision", "fp8"], ["--precision", "fp8", "bf16"]),
    "threads": (["--threads", "0"], ["threads", "at least 1"]),
    "unknown option": (["--sped", "3"], ["--sped"]),
    "norm": (["--norm", "batch"], ["--norm", "batch", "rms"]),
    "loss chunk zero": (["--loss-chunk", "0"], ["loss_chunk", "at least 1"]),
    "bits": (["--split-weights", "17"], ["bits", "0 to 16", "17"]),
    "clipping in backward": (["--step-in-backward"], ["step_in_backward", "--clip 0"]),
    "accumulating in backward": (
        ["--step-in-backward", "--clip", "0", "--micro-batch-size", "32"],
        ["step_in_backward", "micro_batch_size"],
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence_that_names_it(case: str, text: Path, capsys: pytest.CaptureFixture[str]):
    arguments, named = BAD[case]
    code, error = outcome(["train", *TINY, "--data", str(text), "--out", "out", *arguments], capsys)
    assert code == 2
    assert "Traceback" not in error
    assert all(word in error for word in named), error
    assert error.startswith("minitrain: ")
    assert error.count("\n") == 1
    assert not Path("out").exists()


def folder_without_text() -> str:
    Path("pictures").mkdir()
    Path("pictures/a.png").write_bytes(b"\x89PNG\0")
    return "pictures"


def file_of(content: bytes) -> str:
    Path("file").write_bytes(content)
    return "file"


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: file_of(b""), "empty"),
        (lambda: file_of(b"x"), "too short"),
        (lambda: file_of(bytes(range(256)) * 100), "not a text"),
        (lambda: "nowhere.txt", "nowhere.txt"),
        (folder_without_text, "no text file"),
    ],
    ids=["empty", "one byte", "binary", "missing", "folder without text"],
)
def test_bad_data_is_one_sentence(make, named: str, capsys: pytest.CaptureFixture[str]):
    code, error = outcome(["train", *TINY, "--data", make(), "--out", "out"], capsys)
    assert (code, error.count("\n")) == (2, 1)
    assert named in error


def test_unwritable_folder_is_one_sentence(text: Path, capsys: pytest.CaptureFixture[str]):
    code, error = outcome(["train", *TINY, "--data", str(text), "--out", f"{text}/below"], capsys)
    assert (code, error.count("\n")) == (2, 1)
    assert "cannot write" in error


def test_a_run_leaves_its_folder_and_is_never_overwritten(text: Path, capsys: pytest.CaptureFixture[str]):
    command = ["train", *TINY, "--data", str(text), "--out", "run"]
    assert outcome(command, capsys)[0] == 0
    names = {"recipe.txt", "metrics.jsonl", "options.json", "model.safetensors", "picture.png", "checkpoints"}
    assert {path.name for path in Path("run").iterdir()} == names
    before = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}
    code, error = outcome([*command, "--lr", "0.1"], capsys)
    assert code == 2
    assert "--resume" in error
    assert before == {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}


def test_resume_takes_the_runs_own_options_and_refuses_others(text: Path, capsys: pytest.CaptureFixture[str]):
    assert outcome(["train", *TINY, "--data", str(text), "--out", "run", "--precision", "fp32"], capsys)[0] == 0
    assert outcome(["train", "--resume", "run"], capsys)[0] == 0
    code, error = outcome(["train", "--resume", "run", "--lr", "0.5"], capsys)
    assert code == 2
    assert "make_optimizer.lr" in error
    assert "0.5" in error
    code, error = outcome(["train", "--resume", "elsewhere"], capsys)
    assert code == 2
    assert "elsewhere" in error


@pytest.mark.filterwarnings("default")
def test_damaged_options_and_checkpoints_are_sentences(text: Path, capsys: pytest.CaptureFixture[str]):
    assert outcome(["train", *TINY, "--data", str(text), "--out", "run"], capsys)[0] == 0
    for path in checkpoints(Path("run")):
        path.write_bytes(path.read_bytes()[:100])
    code, error = outcome(["sample", "run"], capsys)
    assert code == 2
    assert "damaged" in error
    assert "Traceback" not in error
    options = Path("run/options.json").read_text()
    for damaged in (options.replace('"rms"', '"foo"'), '{"model": 3}', "[1]", "[" * 100_000, "{"):
        Path("run/options.json").write_text(damaged)
        code, error = outcome(["sample", "run"], capsys)
        assert (code, error.count("\n")) == (2, 1)
    Path("run/options.json").write_text("{")
    code, error = outcome(["train", "--resume", "run"], capsys)
    assert (code, error.count("\n")) == (2, 1)
    assert "options.json" in error


def test_sample_writes_text_and_refuses_bad_values(text: Path, capsys: pytest.CaptureFixture[str]):
    assert outcome(["train", *TINY, "--data", str(text), "--out", "run"], capsys)[0] == 0
    text.unlink()  # sampling needs the run but not its data
    cli.main(["sample", "run", "--prompt", "def ", "--tokens", "5"])
    assert capsys.readouterr().out.startswith("def ")
    for option, value in [("--tokens", "0"), ("--temperature", "nan"), ("--temperature", "-1"), ("--top-k", "0")]:
        code, error = outcome(["sample", "run", option, value], capsys)
        assert (code, error.count("\n")) == (2, 1)
        assert option.strip("-").replace("-", "_") in error


def test_each_option_reaches_the_recipe():
    base = recipes.recipe_of(Model(), TextTraining(), "fp32")
    for options, path in (
        ({"optimizer": "lion"}, "make_optimizer"),
        ({"lr": 0.5}, "make_optimizer.lr"),
        ({"clip": 0.0}, "before_step"),
        ({"schedule": "cosine"}, "schedules.*.lr"),
        ({"shape": "square"}, "schedules.*.lr.shape"),
        ({"batch_size": 2048}, "batch_size"),
        ({"loss_chunk": 64}, "loss.chunk"),
        ({"recompute_blocks": True}, "build_model.0"),
        ({"split_weights": 8}, "make_optimizer.by.0.bits"),
        ({"step_in_backward": True, "clip": 0.0}, "make_optimizer.by.0"),
    ):
        assert path in difference(base, recipes.recipe_of(Model(), replace(TextTraining(), **options), "fp32"))


def test_every_schedule_runs_over_all_steps():
    for schedule in ("constant", "wsd", "cosine", "linear", "exponential", "inverse-sqrt", "one-cycle"):
        recipe = recipes.recipe_of(Model(), TextTraining(schedule=schedule, steps=50), "fp32")
        assert all(0 < recipe.schedules["*", "lr"](step) <= 1 for step in range(50))
    # two shares of a half fit into an odd number of steps
    recipe = recipes.recipe_of(Model(), TextTraining(steps=3, warmup=0.5, cooldown=0.5), "fp32")
    assert all(0 < recipe.schedules["*", "lr"](step) <= 1 for step in range(3))


@pytest.mark.parametrize("field", ["norm", "mlp", "attention", "positions"])
def test_every_model_option_builds(field: str):
    choices = re.findall(r"'([a-z-]+)'", str(Model.__annotations__[field]))
    assert len(choices) >= 2
    texts = {str(describe(recipes.recipe_of(replace(Model(), **{field: x}), TextTraining(), "fp32"))) for x in choices}
    assert len(texts) == len(choices)
    for choice in choices:
        model = recipes.recipe_of(replace(Model(depth=1), **{field: choice}), TextTraining(), "fp32").build_model()
        assert model(torch.zeros(1, 4, dtype=torch.long)).shape == (1, 4, 256)


@pytest.mark.parametrize(
    ("arguments", "named"), [([], "demo, train, train-images, plan, sample"), (["frob"], "frob"), (["sample"], "PATH")]
)
def test_a_command_that_is_none_is_one_sentence(arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]):
    code, error = outcome(arguments, capsys)
    assert (code, error.count("\n")) == (2, 1)
    assert named in error


def test_a_run_can_be_resumed_from_elsewhere_after_its_data_moved(text: Path, capsys: pytest.CaptureFixture[str]):
    """What counts is the data, told by its digest, not where it lies."""
    assert outcome(["train", *TINY, "--data", text.name, "--out", "run"], capsys)[0] == 0
    moved = text.rename(text.with_name("moved.txt"))
    Path("elsewhere").mkdir()
    os.chdir("elsewhere")
    assert outcome(["train", "--resume", "../run", "--data", str(moved)], capsys)[0] == 0
    moved.write_text(moved.read_text() + "more")
    code, error = outcome(["train", "--resume", "../run", "--data", str(moved)], capsys)
    assert code == 2
    assert "data are not those" in error


def test_a_folder_of_text_does_not_grow_by_the_run_inside_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    Path("book.txt").write_text("It was a dark and stormy night.\n" * 200)
    Path(".hidden").write_text("not to be read")
    assert outcome(["train", *TINY, "--data", ".", "--out", "run"], capsys)[0] == 0
    assert outcome(["train", "--resume", "run"], capsys)[0] == 0


def test_before_the_first_checkpoint_a_resumed_run_takes_new_options(text: Path, capsys: pytest.CaptureFixture[str]):
    assert outcome(["train", *TINY, "--data", str(text), "--out", "run"], capsys)[0] == 0
    for path in checkpoints(Path("run")):
        path.unlink()
    assert outcome(["train", "--resume", "run", "--depth", "2"], capsys)[0] == 0
    assert outcome(["sample", "run", "--tokens", "3"], capsys)[0] == 0
    assert cli.read_options(Path("run")).model.depth == 2


def test_a_loss_that_is_no_number_at_the_end_is_one_sentence(text: Path, capsys: pytest.CaptureFixture[str]):
    wild = ["--steps", "1", "--schedule", "constant", "--warmup", "0", "--lr", "1e30", "--precision", "fp32"]
    code, error = outcome(["train", *TINY, "--data", str(text), "--out", "run", *wild], capsys)
    assert code == 2
    assert "no longer a number" in error
    assert "Traceback" not in error


def test_a_stopped_command_does_not_end_as_a_success(text: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    weights = commands.Rotation.weights

    def stop(self: commands.Rotation, run: commands.Run) -> list:
        signal.raise_signal(signal.SIGTERM)
        return weights(self, run)

    monkeypatch.setattr(commands.Rotation, "weights", stop)
    code, _ = outcome(["train", *TINY, "--data", str(text), "--out", "run", "--steps", "40"], capsys)
    assert code == 130
    small = Train(Model(depth=1, width=32), TextTraining(steps=40, batch_size=256), Machine(threads=1))
    monkeypatch.setattr(commands, "demo_options", lambda seed, machine: small)
    assert outcome(["demo"], capsys)[0] == 130
    assert len(checkpoints(Path("run"))) == 1


@pytest.mark.parametrize("stream", ["stdin", "stdout", "stderr"])
def test_closed_streams_and_poor_terminals_end_no_run(stream: str, text: Path):
    code = f"import sys; sys.{stream} = None; from minitrain.cli import main; main(sys.argv[1:])"
    command = [sys.executable, "-c", code, "train", *TINY, "--data", str(text), "--out", "run"]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, capture_output=True, env=environment, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_ctrl_c_before_the_run_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def interrupt(options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(commands, "carry_out", interrupt)
    assert outcome(["demo"], capsys) == (130, "minitrain: interrupted\n")


def test_the_module_is_the_command():
    done = subprocess.run([sys.executable, "-m", "minitrain", "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "demo" in done.stdout


def test_options_survive_their_file(tmp_path: Path):
    options = Train(Model(depth=2), TextTraining(data=Path("x").resolve(), betas=(0.8, 0.9)), Machine(threads=1))
    cli.write_options(tmp_path, options)
    assert cli.read_options(tmp_path) == options


ALL_TRICKS = ["--loss-chunk", "16", "--recompute-blocks", "--split-weights", "8", "--step-in-backward", "--clip", "0"]


def test_a_run_that_saves_memory_is_resumed_with_its_own_options(text: Path, capsys: pytest.CaptureFixture[str]):
    cli.main(["train", *TINY, *ALL_TRICKS, "--data", str(text), "--out", "run"])
    assert "MB predicted; the process grew by" in capsys.readouterr().out
    assert cli.read_options(Path("run")).training.split_weights == 8
    weights = torch.load(checkpoints(Path("run"))[0], weights_only=True)["model"]
    assert weights["head.weight"].dtype == torch.bfloat16
    assert outcome(["train", "--resume", "run"], capsys)[0] == 0
    assert "bits" in outcome(["train", "--resume", "run", "--split-weights", "16"], capsys)[1]
    assert outcome(["sample", "run", "--tokens", "3"], capsys)[0] == 0


def test_a_plan_says_what_fits_and_what_would_help(text: Path, capsys: pytest.CaptureFixture[str]):
    cli.main(["plan", *TINY[:8], "--data", str(text), "--gb", "0.0001"])
    shown = capsys.readouterr().out
    for expected in ("28,768 parameters", "optimizer state", "(peak)", "does not fit into 0.0001 GB"):
        assert expected in shown
    helps = [float(line.split()[-2]) for line in shown.partition("With one more option:\n")[2].splitlines()]
    assert helps == sorted(helps)
    assert len(helps) == 5
    cli.main(["plan", *TINY[:8], *ALL_TRICKS, "--data", str(text), "--device", "cpu", "--run", "1"])
    shown = capsys.readouterr().out
    assert "fits into 24 GB" in shown
    assert "With one more option" not in shown
    assert "the process grew by" in shown
    assert "run must be" in outcome(["plan", "--run", "-1"], capsys)[1]


def test_the_plan_that_a_page_shows_is_what_the_command_prints(capsys: pytest.CaptureFixture[str]):
    """docs/run.md has the command in one block and what it prints in the next."""
    page = (Path(__file__).parents[1] / "docs" / "run.md").read_text()
    shown = re.search(r"^```\n(minitrain plan .*?)^```\n\n```\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    assert shown
    command, printed = shown.groups()
    cli.main(command.replace("\\\n", " ").split()[1:])
    assert capsys.readouterr().out.splitlines() == printed.splitlines()


def test_the_demo_shows_samples_band_and_picture(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    small = Train(Model(depth=1, width=32), TextTraining(steps=8, batch_size=256), Machine(threads=1))
    monkeypatch.setattr(commands, "demo_options", lambda seed, machine: small)
    cli.main(["demo"])
    shown = capsys.readouterr().out
    words = "step 0", "Python accepts", "bits per byte", "outside the band", "picture.png", "sample runs/demo"
    for expected in words:
        assert expected in shown
    assert Path("runs/demo/picture.png").stat().st_size > 10_000
    assert cli.next_free_folder("demo") == Path("runs/demo-2")


def test_the_demos_model_is_as_large_as_it_says():
    model = recipes.recipe_of(Model(), commands.demo_options().training, "fp32").build_model()
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(0.85e6, rel=0.01)


def test_lines_are_judged_as_python_would_inside_a_function():
    right = "return x", "else:", "except ValueError as error:", "elif x > 3:", "def f(self):", "await x", "break"
    assert {line for line in (*right, "x = (", "def f(:", "if x", "\0") if python_accepts(line)} == set(right)


def test_the_band_is_students_t_over_the_record():
    from scipy import stats

    record = json.loads(Path(minitrain.__file__).with_name("demo.json").read_text())
    for version, values in record["bf16"].items():
        assert len(values) == 8
        low, high, measured = commands.expected_band(version)
        mean, spread = torch.tensor(values, dtype=torch.float64).mean(), torch.tensor(values, dtype=torch.float64).std()
        reach = stats.t.ppf(0.995, df=7) * spread * (1 + 1 / 8) ** 0.5
        assert measured == version
        assert (low, high) == pytest.approx((float(mean - reach), float(mean + reach)), rel=1e-4)
    assert commands.expected_band("9.9")[2] in record["bf16"]


def test_outside_the_band_the_reader_is_told_what_to_do():
    assert "inside" in commands.judge(2.0, (1.9, 2.1, "3.11"))
    assert "--seed 1" in commands.judge(2.2, (1.9, 2.1, "3.11"))


def test_help_does_not_import_torch():
    lines = ["import atexit, os, sys", "from minitrain import cli"]
    lines += ["atexit.register(lambda: os._exit('torch' in sys.modules))", "cli.main(['--help'])"]
    assert subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, check=False).returncode == 0


def test_demo_takes_a_seed():
    assert commands.demo_options(seed=3).training.seed == 3
    assert Demo().seed == commands.demo_options().training.seed == 0


# --- the course --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["lesson", "one_neutron"], "did you mean one_neuron"),
        (["lesson", "one_neuron", "--preset", "huge"], "choose quick, cpu, record, gpu"),
        (["lesson", "one_neuron", "--workers", "0"], "workers must be at least 1"),
        (["exercise", "one_neutron"], "one_neuron"),
        (["check", "one_neuron"], "one_neuron.py"),
        (["check", "one_neutron"], "one_neuron"),
        (["reproduce", "one_neuron/none"], "has no recorded claim 'none'"),
        (["reproduce", "two_neurons"], "there is no lesson 'two_neurons'"),
    ],
)
def test_bad_input_to_the_course_is_one_sentence(
    arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    code, error = outcome(arguments, capsys)
    assert (code, error.count("\n")) == (2, 1)
    assert words in error
    assert not list(tmp_path.glob("runs/cache/*"))


def test_the_course_without_a_name_lists_what_there_is(capsys: pytest.CaptureFixture[str]):
    for arguments in (["lesson"], ["exercise"], ["ledger"]):
        cli.main(arguments)
        out = capsys.readouterr().out
        for slug in ("train_a_gpt", "is_it_real", "one_neuron"):
            assert slug in out


def test_an_exercise_is_written_once_and_its_stub_fails_the_check(capsys: pytest.CaptureFixture[str]):
    cli.main(["exercise", "one_neuron"])
    assert "check one_neuron" in capsys.readouterr().out
    assert outcome(["exercise", "one_neuron"], capsys)[0] == 2  # never overwritten
    assert outcome(["check", "one_neuron"], capsys)[0] == 1


@pytest.mark.parametrize(("given", "guess"), [("2.5", 2.5), ("", None), ("nan", None), ("-1", None), ("many", None)])
def test_a_prediction_is_a_number_in_its_range_or_none(
    given: str, guess: float | None, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("builtins.input", lambda _: given)
    for stream in ("stdin", "stdout"):
        monkeypatch.setattr(f"sys.{stream}.isatty", lambda: True, raising=False)
    assert ask(Predict("How many?", low=0.0, high=8.0)) == guess


def test_nobody_is_asked_without_a_terminal(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("builtins.input", lambda _: pytest.fail("asked"))
    assert ask(Predict("How many?", low=0.0, high=8.0)) is None


# --- images ------------------------------------------------------------------------------------------------------------

TINY_IMAGES = [
    "--data",
    "own.npz",
    "--depth",
    "8",
    "--width",
    "4",
    "--batch-size",
    "8",
    "--steps",
    "6",
    "--threads",
    "1",
]


@pytest.fixture
def own_npz(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of dark and bright images of 8x8 pixels, in the working folder."""
    monkeypatch.chdir(tmp_path)
    labels = (np.arange(60) % 2).astype(np.uint8)
    noise = np.random.default_rng(0).integers(0, 100, (60, 8, 8, 3), dtype=np.uint8)
    images = noise + 150 * labels[:, None, None, None]
    arrays = {"images": images, "labels": labels}
    parts = {"train": slice(40), "test": slice(40, None)}
    np.savez("own.npz", **{f"{part}_{name}": x[rows] for part, rows in parts.items() for name, x in arrays.items()})


@pytest.mark.usefixtures("own_npz")
def test_a_resnet_is_trained_on_own_images_and_resumed(capsys: pytest.CaptureFixture[str]):
    tricks = ["--ghost-noise", "4", "--weight-standardization", "--held-out", "test", "--recompute-blocks"]
    cli.main(["train-images", *TINY_IMAGES, *tricks, "--out", "run"])
    said = capsys.readouterr().out
    assert "8 images a step, 6 steps" in said
    accuracy = json.loads(Path("run/metrics.jsonl").read_text().splitlines()[-1])["val_accuracy"]
    assert f"{100 * accuracy:.1f} % of images that it has never trained on named rightly" in said
    assert Path("run/picture.png").stat().st_size > 10_000
    cli.main(["train-images", "--resume", "run"])
    assert f"{100 * accuracy:.1f} % of images" in capsys.readouterr().out


@pytest.mark.usefixtures("own_npz")
def test_a_run_on_images_is_not_taken_for_one_on_text(capsys: pytest.CaptureFixture[str]):
    cli.main(["train-images", *TINY_IMAGES, "--out", "run"])
    capsys.readouterr()
    code, error = outcome(["sample", "run"], capsys)
    assert code == 2
    assert "writes no text" in error
    code, error = outcome(["train", "--resume", "run"], capsys)
    assert code == 2
    assert error == "minitrain: run was written by minitrain train-images; resume it with that command\n"


@pytest.mark.usefixtures("own_npz")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--data", "nothing.npz"], "nothing.npz"),
        (["--depth", "9"], "depth must be 6n + 2"),
        (["--batch-size", "80"], "larger than the"),
        (["--ghost-noise", "0"], "ghost"),
        (["--norm", "online", "--ghost-noise", "4"], "norm"),
        (["--width", "0"], "width must be at least 1"),
        (["--width", str(2**31)], "not enough memory"),
        (["--split-weights", "16"], "choose another norm"),
        (["--data", "letters", "--held-out", "test"], "letters have no test images"),
        (["--norm", "online", "--recompute-blocks"], "blocks cannot be recomputed"),
        (["--betas", "0.9", "0.99"], "sgd has no betas"),
    ],
)
def test_bad_options_of_images_end_in_one_sentence(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
):
    code, error = outcome(["train-images", *TINY_IMAGES, *arguments, "--out", "run"], capsys)
    assert code == 2
    assert words in error
    assert error.count("\n") == 1
    assert not Path("run").exists()


def test_options_of_images_go_round():
    options = TrainImages(
        ImageModel(depth=18, ghost_noise=16), ImageTraining(data=Path("x.npz").resolve()), Machine(threads=1)
    )
    stored = cli.arguments_of(options)
    assert stored[0] == "train-images"
    assert cli.parse(TrainImages, stored[1:]) == options


def test_the_options_of_a_run_in_progress_are_not_replaced(text: Path, capsys: pytest.CaptureFixture[str]):
    assert outcome(["train", *TINY, "--data", str(text), "--out", "run"], capsys)[0] == 0
    for path in checkpoints(Path("run")):
        path.unlink()  # as before its first checkpoint
    before = Path("run/options.json").read_bytes()
    with only_writer(Path("run")):
        code, error = outcome(["train", "--resume", "run", "--lr", "0.5"], capsys)
    assert (code, Path("run/options.json").read_bytes()) == (2, before)
    assert "another process is writing" in error
