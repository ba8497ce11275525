"""What `minitrain demo`, `train`, `train-images`, `plan` and `sample` do and show."""

import json
import math
import os
import shutil
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from minitrain.cli import next_free_folder, read_options, write_options
from minitrain.cli.options import (
    Check,
    Demo,
    Exercise,
    Ledger,
    Lesson,
    Machine,
    Plan,
    Reproduce,
    Sample,
    TextTraining,
    Train,
    TrainImages,
)
from minitrain.cli.recipes import image_recipe_of, recipe_of
from minitrain.data.text import decode, python_version
from minitrain.lab.accuracy import Accuracy
from minitrain.lab.course import Predict, ask, ledger, list_of_lessons, reproduce, run_lesson
from minitrain.lab.exercises import exercises, grade, print_report, write_stub
from minitrain.lab.intervals import prediction_interval
from minitrain.lab.plan import Gauge, plan, size_text, take_step
from minitrain.lab.plots import draw_run
from minitrain.lab.probes import Rotation
from minitrain.lab.samples import printable, python_accepts, sample_text
from minitrain.runtime.checkpoint import checkpoints, export_weights, load_checkpoint, load_model
from minitrain.runtime.device import choose_device, choose_precision, use_fast_cpu
from minitrain.runtime.files import check_writable, only_writer
from minitrain.runtime.folder import refuse_to_overwrite
from minitrain.train import Run, build, evaluation_model, train

PROMPT = "def "
SECONDS_BETWEEN_SAMPLES = 15


def carry_out(options: Any) -> None:
    """Carries out a command. A run that was stopped ends with exit code 130, so that no script takes it for a success."""
    match options:
        case Demo():
            finished = run_demo(options).finished
        case Train() | TrainImages():
            folder = options.resume or options.out or next_free_folder("train")
            finished = train_and_report(options, folder, resume=options.resume is not None).finished
        case Plan():
            run_plan(options)
            finished = True
        case Sample():
            run_sample(options)
            finished = True
        case _:
            learn(options)
            finished = True
    if not finished:
        sys.exit(130)


def learn(options: Lesson | Exercise | Check | Reproduce | Ledger) -> None:
    """Carries out the commands of the course; what has failed ends with exit code 1."""
    match options:
        case Lesson(slug=None):
            print(list_of_lessons())
        case Lesson(slug=str(slug)):
            record = run_lesson(slug, options.preset, options.out, options.workers)
            if len(record["runs"]) < len(record["arms"]) * len(record["seeds"]) * len(record["learning_rates"]):
                sys.exit(1)  # some crashed
        case Exercise(slug=None):
            print("\n".join(exercises()))
        case Exercise(slug=str(slug)):
            path = write_stub(slug, Path())
            print(f"Wrote {path}. Complete it, then: {command()} check {slug}")
        case Check():
            if not print_report(grade(options.slug, options.file or Path(f"{options.slug}.py"))):
                sys.exit(1)
        case Reproduce():
            if not reproduce(options.claim, options.workers):
                sys.exit(1)
        case Ledger():
            print(ledger())


def run_demo(options: Demo) -> Run:
    """`minitrain demo`: a GPT of 0.85 M parameters learns to write Python."""
    folder = options.out or next_free_folder("demo")
    print("A GPT of 0.85 M parameters is about to read the source of Python's standard library, byte by byte,")
    print("and to guess each next byte. How surprised it is, on average, is measured in bits per byte.")
    guess = ask(Predict("How many bits per byte will it need in the end? 8 is a blind guess.", low=0, high=8))
    run = train_and_report(demo_options(options.seed, options.machine), folder, samples=True, guess=guess)
    if run.finished:
        value = bits_per_byte(run)
        if guess is not None:
            off = abs(guess - value)
            print(f"You guessed {guess:.2f}, it needs {value:.2f}: you were off by {off:.2f} bits per byte.")
        print(judge(value, expected_band(python_version())))
        print(f'Next: {command()} sample {folder} --prompt "class "')
    return run


def demo_options(seed: int = 0, machine: Machine = Machine()) -> Train:  # noqa: B008  (frozen, so it can be shared)
    """The demo as options of `minitrain train`."""
    return Train(training=TextTraining(seed=seed), machine=machine)


def train_and_report(
    options: Train | TrainImages, folder: Path, resume: bool = False, samples: bool = False, guess: float | None = None
) -> Run:
    """Trains what the options say, with everything a person wants to see around it."""
    device, precision = set_up(options.machine)
    of_images = isinstance(options, TrainImages)
    make = image_recipe_of if of_images else recipe_of
    recipe = make(options.model, options.training, precision)  # ty: ignore[invalid-argument-type]
    gauge = Gauge(recipe, device, compiled=options.machine.compile)
    run = build(recipe, device)
    if not resume:
        check_writable(folder)
        refuse_to_overwrite(folder)
    source = options.training.data or f"the standard library of Python {python_version()}"
    print(f"Data: {source}; {recipe.batch_size:,} {'images' if of_images else 'bytes'} a step, {recipe.steps:,} steps")
    print(table_of_groups(run.optimizer))
    with only_writer(folder):  # the options of a run that another process is in the middle of are not ours to replace
        if not checkpoints(folder):
            write_options(folder, options)
    shown = [LastAccuracy(recipe.steps)] if of_images else [Sampler()] if samples else []
    started = time.monotonic()
    compile = options.machine.compile
    train(run, folder=folder, resume=resume, probes=[Rotation(), *shown], compile=compile, progress=True)
    if not run.finished:
        name = "train-images" if of_images else "train"
        print(
            f"Stopped after step {run.step} of {recipe.steps} and saved; go on with: {command()} {name} --resume {folder}"
        )
        return run
    memory = str(gauge)
    export_weights(run.model, folder / "model.safetensors")
    draw_run(run.metrics, folder / "picture.png", guess)
    print(f"{result_of(run)}, after {time.monotonic() - started:.0f} seconds.")
    if samples:
        print(count_accepted_lines(run))
    print(memory)
    print(f"Picture: {folder / 'picture.png'}")
    return run


class LastAccuracy(Accuracy):
    """Accuracy every 250 steps, and after the last one."""

    def __init__(self, steps: int):
        super().__init__(every=1)
        self.steps = steps

    def after(self, run: Run) -> dict[str, float]:
        return super().after(run) if run.step % 250 == 0 or run.step == self.steps else {}


def result_of(run: Run) -> str:
    """What came out, in words."""
    accuracy = [m["val_accuracy"] for m in run.metrics if "val_accuracy" in m]
    if accuracy:
        return f"{100 * accuracy[-1]:.1f} % of images that it has never trained on named rightly"
    return f"{bits_per_byte(run):.3f} bits per byte on text it has never seen"


def set_up(machine: Machine) -> tuple[str, str]:
    """Chooses device and precision, sets the process's threads where it computes on the CPU, and prints all with reasons."""
    device = choose_device(machine.device)
    precision = choose_precision(device.value, machine.precision)
    settings = [device, precision, *(use_fast_cpu(machine.threads) if torch.device(device.value).type == "cpu" else [])]
    print("Machine:", "; ".join(f"{value} ({reason})" for value, reason in settings))
    return device.value, precision.value


def table_of_groups(optimizer: torch.optim.Optimizer) -> str:
    """Who owns what, for people: one line a group with its hyper-parameters."""
    lines = [f"{'group':<12} {'tensors':>7} {'parameters':>11}  {'lr':>8} {'decay':>6}"]
    for i, group in enumerate(optimizer.param_groups):
        count = sum(p.numel() for p in group["params"])
        name, decay = group.get("name", f"group {i}"), group.get("weight_decay", 0.0)
        lines.append(f"{name:<12} {len(group['params']):>7} {count:>11,}  {group['lr']:>8.3g} {decay:>6.3g}")
    return "\n".join(lines)


def command() -> str:
    """How this command is called from here: by its name where the shell finds it, else by its path."""
    return "minitrain" if shutil.which("minitrain") else os.path.relpath(sys.argv[0])


def bits_per_byte(run: Run) -> float:
    """The latest validation loss, in bits."""
    loss = next(m["val_loss"] for m in reversed(run.metrics) if "val_loss" in m)
    if loss is None:
        raise FloatingPointError("the validation loss is no longer a number; lower lr or warm up for longer")
    return loss / math.log(2)


# --- memory ------------------------------------------------------------------------------------------------------------


def run_plan(options: Plan) -> None:
    """`minitrain plan`: what a step takes, whether that fits, and what would help."""
    if options.run < 0 or not options.gb > 0:
        raise ValueError("run must be a number of steps, 0 or above, and gb a size above 0")
    device = choose_device(options.device).value if options.run else options.device
    recipe = recipe_of(options.model, options.training, options.precision, options.vocabulary)
    planned = plan(recipe, options.device)
    print(planned)
    kind = max(planned.peak, key=planned.peak.__getitem__)
    fits = "fits" if planned.fits(options.gb) else "does not fit"
    print(f"Most of the peak is {kind}. {size_text(planned.total)} {fits} into {options.gb:g} GB.")
    print("\n".join(what_would_help(options, planned.total)))
    if options.run:
        gauge = Gauge(recipe, device)
        run = build(recipe, device)
        for _ in range(options.run):
            take_step(run, nullcontext)
        print(gauge)


def what_would_help(options: Plan, total: int) -> list[str]:
    """The peak with each further option by itself, the lowest first."""
    training = options.training
    tokens = training.micro_batch_size or training.batch_size
    chunk, half = max(1, min(1024, tokens // 4)), tokens // 2
    choices: dict[str, dict[str, Any]] = {}
    if training.loss_chunk is None:
        choices[f"--loss-chunk {chunk}"] = {"loss_chunk": chunk}
    if not training.recompute_blocks:
        choices["--recompute-blocks"] = {"recompute_blocks": True}
    if training.split_weights is None:
        choices["--split-weights 16"] = {"split_weights": 16}
    if not training.step_in_backward and tokens == training.batch_size:
        choices["--step-in-backward --clip 0"] = {"step_in_backward": True, "clip": 0}
    if not training.step_in_backward and tokens % (2 * options.model.context) == 0:
        choices[f"--micro-batch-size {half}"] = {"micro_batch_size": half}
    peaks = {}
    for words, choice in choices.items():
        recipe = recipe_of(options.model, replace(training, **choice), options.precision, options.vocabulary)
        peaks[words] = plan(recipe, options.device).total
    lowest_first = sorted(peaks.items(), key=lambda pair: pair[1])
    lines = [f"  {words:<28} {size_text(peak):>10}  {100 * (peak / total - 1):+4.0f} %" for words, peak in lowest_first]
    return ["With one more option:", *lines] if lines else []


# --- samples -----------------------------------------------------------------------------------------------------------


class Sampler:
    """A probe that prints what the model writes, before the first step and every 15 seconds."""

    every = 1

    def __init__(self) -> None:
        self.last = -math.inf

    def before(self, run: Run) -> None:
        if time.monotonic() - self.last >= SECONDS_BETWEEN_SAMPLES:
            text = sample_of_run(run, 140)[0]
            tqdm.write(f"\n--- step {run.step} " + "-" * 60 + f"\n{printable(text)}\n")
            self.last = time.monotonic()

    def after(self, run: Run) -> None:
        pass


def sample_of_run(run: Run, max_new_tokens: int, rows: int = 1) -> list[str]:
    """What a run's model writes at present; in float32, since casting the weights costs more than a single row gains."""
    with evaluation_model(run) as model:
        return sample_text(model, PROMPT, max_new_tokens, rows=rows)


def count_accepted_lines(run: Run) -> str:
    """A sentence: how many lines that the model wrote Python itself accepts, beside the same count for real code."""
    written = "\n".join(text[: text.rfind("\n")] for text in sample_of_run(run, 250, rows=8))
    blocks = run.data.validation_tokens[: 8 * 250].reshape(8, 250)  # ty: ignore[missing-attribute]
    real = "\n".join(text[: text.rfind("\n")] for text in map(decode, blocks))
    shares = []
    for text in (written, real):
        lines = [line.strip() for line in text.splitlines() if line.strip() and not line.strip().startswith("#")]
        shares.append((sum(map(python_accepts, lines)), len(lines)))
    (good, lines), (real_good, real_lines) = shares
    return (
        f"Of {lines} lines it wrote, Python accepts {good} on their own ({100 * good / max(lines, 1):.0f} %); "
        f"of lines cut from real code the same way, {100 * real_good / max(real_lines, 1):.0f} %."
    )


def run_sample(options: Sample) -> None:
    """`minitrain sample`: prints what the model of a run's newest checkpoint writes."""
    if options.tokens < 1:
        raise ValueError(f"tokens must be at least 1, not {options.tokens}")
    stored = read_options(options.folder)
    if isinstance(stored, TrainImages):
        raise ValueError(f"{options.folder} is a run on images, whose model writes no text; give the folder of another")
    saved = load_checkpoint(options.folder)
    model = recipe_of(stored.model, stored.training, "fp32").build_model().eval()
    load_model(model, saved)
    text = sample_text(model, options.prompt, options.tokens, options.temperature, options.top_k, seed=options.seed)[0]
    print(printable(text))


# --- the expected band -------------------------------------------------------------------------------------------------


def expected_band(version: str) -> tuple[float, float, str]:
    """Lowest and highest bits per byte that 99 of 100 runs end between, and which Python's source that was measured on."""
    results: dict[str, Any] = json.loads(files("minitrain").joinpath("demo.json").read_text())["bf16"]
    measured = version if version in results else max(results, key=lambda v: tuple(map(int, v.split("."))))
    return *prediction_interval(results[measured], level=0.99), measured


def judge(value: float, band: tuple[float, float, str]) -> str:
    """A sentence: inside or outside the band, and what to do if outside."""
    low, high, version = band
    where = f"the band {low:.3f} to {high:.3f} that 99 of 100 runs on Python {version}'s source end in"
    if low <= value <= high:
        return f"{value:.3f} is inside {where}."
    return (
        f"{value:.3f} is outside {where}. Another Python's source, another seed of bad luck (1 run in 100) or another "
        "kind of hardware may be why; run it again with --seed 1, and if that is outside too, with --precision fp32."
    )
