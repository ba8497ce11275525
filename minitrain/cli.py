"""The `minitrain` command: options with plain values in, a `Recipe` out. torch is imported only once there is work."""

import contextlib
import dataclasses
import io
import itertools
import json
import os
import re
import sys
import warnings
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

if TYPE_CHECKING:
    from minitrain.recipe import Recipe


@dataclass(frozen=True)
class Model:
    """The model."""

    depth: int | None = None
    """Number of blocks, the one dial: width and heads follow from it (4 where neither depth nor width is given)."""
    width: int | None = None
    """Channels; 32 per block unless given."""
    heads: int | None = None
    """Attention heads; 32 channels each unless given."""
    context: int = 64
    """Tokens the model sees at once."""
    norm: Literal["rms", "layer"] = "rms"
    """RMSNorm or LayerNorm before each half of a block."""
    mlp: Literal["relu-squared", "gelu", "swiglu"] = "relu-squared"
    """What the second half of a block computes."""
    attention: Literal["fastest", "textbook", "sdpa"] = "fastest"
    """Which code computes attention; all compute the same."""
    qk_norm: bool = True
    """Normalize queries and keys."""
    positions: Literal["rotary", "learned"] = "rotary"
    """Rotary turns, or a learned table."""
    tied: bool = False
    """Use the embedding as the head."""


@dataclass(frozen=True)
class ImageModel:
    """The model."""

    depth: int = 20
    """Layers with weights, 6n + 2; 18 is ResNet-18 with its four stages."""
    width: int | None = None
    """Channels of the first stage (16; of ResNet-18, 64)."""
    norm: Literal["batch", "layer", "online"] = "batch"
    """Batch norm; layer norm, over all of an image; or online normalization."""
    ghost_noise: int | None = None
    """Add the noise of a ghost batch of this size behind each batch or layer norm."""
    weight_standardization: bool = False
    """Standardize the weights of the convolutions inside blocks."""


@dataclass(frozen=True)
class Training:
    """The training."""

    steps: int = 1200
    """How many steps."""
    batch_size: int = 1024
    """Tokens (or images) per step."""
    micro_batch_size: int | None = None
    """Tokens (or images) that go through the model at once; the gradient is accumulated over the batch."""
    optimizer: Literal["adamw", "adam", "lion", "sgd"] = "adamw"
    """adam takes its decay as L2; sgd has Nesterov momentum 0.9 and L2."""
    lr: float | None = None
    """Peak learning rate; without it, what suits the optimizer and the small model."""
    weight_decay: float | None = None
    """Decay of the matrices inside blocks; without it, what suits the optimizer."""
    betas: tuple[float, float] | None = None
    """The two averages of adamw, adam and lion."""
    schedule: Literal["constant", "wsd", "cosine", "linear", "exponential", "inverse-sqrt", "one-cycle"] = "wsd"
    """How the learning rate moves."""
    warmup: float = 0.05
    """Share of the steps in which the learning rate rises (not for one-cycle)."""
    cooldown: float | None = None
    """Share of the steps in which it falls at the end (wsd and exponential; half unless given)."""
    shape: Literal["linear", "one-minus-sqrt", "lowered-linear", "cosine", "mirror-cosine", "square"] | None = None
    """The shape of the fall (wsd; linear unless given)."""
    clip: float = 1.0
    """Largest joint norm of the gradients; 0 does not clip."""
    recompute_blocks: bool = False
    """Keep only the input of each block, and compute the rest again in the backward pass."""
    split_weights: int | None = None
    """Keep weights in 16 bits, and so many more of each (0 to 16) in the optimizer; without it, in 32."""
    step_in_backward: bool = False
    """Step each weight inside the backward pass and drop its gradient at once; needs clip 0 and no micro batches."""
    seed: int = 0
    """Sets the initial weights and the order of the data."""


@dataclass(frozen=True)
class TextTraining(Training):
    """The training."""

    data: Path | None = None
    """A text file, or a folder of them. Without it: the source of Python's standard library."""
    loss_chunk: int | None = None
    """Tokens whose logits exist at once; without it, those of all that go through the model at once."""


@dataclass(frozen=True)
class ImageTraining(Training):
    """The training."""

    data: Literal["letters", "cifar10"] | Path = "letters"
    """Letters drawn from fonts; CIFAR-10, by download; or an .npz file of your own."""
    held_out: Literal["validation", "test"] = "validation"
    """What accuracy is measured on, where data have test images: a tenth of the training images, or those."""
    steps: int = 1000
    """How many steps."""
    batch_size: int = 128
    """Images per step."""
    optimizer: Literal["adamw", "adam", "lion", "sgd"] = "sgd"
    """adam takes its decay as L2; sgd has Nesterov momentum 0.9 and L2."""
    schedule: Literal["constant", "wsd", "cosine", "linear", "exponential", "inverse-sqrt", "one-cycle"] = "cosine"
    """How the learning rate moves."""
    clip: float = 0.0
    """Largest joint norm of the gradients; 0 does not clip."""


@dataclass(frozen=True)
class Machine:
    """The machine."""

    device: str = "auto"
    """cpu, cuda, mps; auto takes the fastest there is."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """The precision of matrix products; auto takes bf16 where the hardware is fast at it."""
    threads: int | None = None
    """Threads on a CPU; at most 4 unless given."""
    compile: bool = False
    """Compile the model first: minutes on a CPU, worth it for long runs."""


@dataclass(frozen=True)
class Train:
    """Train a GPT on text."""

    model: Annotated[Model, tyro.conf.OmitArgPrefixes] = Model()
    training: Annotated[TextTraining, tyro.conf.OmitArgPrefixes] = TextTraining()
    machine: Annotated[Machine, tyro.conf.OmitArgPrefixes] = Machine()
    out: Path | None = None
    """The run's folder; without it, the next free one in runs/."""
    resume: Path | None = None
    """Go on with the run in this folder, with its own options."""


@dataclass(frozen=True)
class TrainImages:
    """Train a ResNet on images."""

    model: Annotated[ImageModel, tyro.conf.OmitArgPrefixes] = ImageModel()
    training: Annotated[ImageTraining, tyro.conf.OmitArgPrefixes] = ImageTraining()
    machine: Annotated[Machine, tyro.conf.OmitArgPrefixes] = Machine()
    out: Path | None = None
    """The run's folder; without it, the next free one in runs/."""
    resume: Path | None = None
    """Go on with the run in this folder, with its own options."""


@dataclass(frozen=True)
class Plan:
    """Say how much memory a training step will take, what fills it, and what would help, before anything is run."""

    model: Annotated[Model, tyro.conf.OmitArgPrefixes] = Model()
    training: Annotated[TextTraining, tyro.conf.OmitArgPrefixes] = TextTraining()
    device: Literal["cuda", "cpu"] = "cuda"
    """Where the step is to run; this machine need not have it."""
    precision: Literal["fp32", "bf16"] = "bf16"
    """The precision of matrix products."""
    vocabulary: int = 256
    """Size of the vocabulary: 256 for bytes, 50257 for GPT-2's tokens."""
    gb: float = 24
    """Memory of the device in GB (2^30 bytes)."""
    run: int = 0
    """Then take so many steps here, and measure."""


@dataclass(frozen=True)
class Demo:
    """Train a small GPT on Python's own source in a minute or so, and watch what the optimizer does."""

    seed: int = 0
    """Another seed gives another run."""
    machine: Annotated[Machine, tyro.conf.OmitArgPrefixes] = Machine()
    out: Path | None = None
    """The run's folder; without it, the next free one in runs/."""


@dataclass(frozen=True)
class Sample:
    """Let a trained model write."""

    folder: tyro.conf.Positional[Path]
    """The folder of a run."""
    prompt: str = "def "
    """What the text begins with."""
    tokens: int = 400
    """How many bytes to write."""
    temperature: float = 0.8
    """0 always takes the likeliest byte; 1 draws from the model's own probabilities."""
    top_k: int | None = None
    """Draw from the k likeliest bytes only."""
    seed: int = 0
    """Another seed draws another text."""


def shown_as(name: str) -> Any:
    """How help names a value that may be left out."""
    return tyro.conf.arg(metavar=name, help_behavior_hint="")


Slug = Annotated[str | None, shown_as("[SLUG]")]
Workers = Annotated[int | None, shown_as("N")]
OutFolder = Annotated[Path | None, shown_as("PATH")]


@dataclass(frozen=True)
class Lesson:
    """Run a lesson: its question, its runs, its claims and its picture."""

    slug: tyro.conf.Positional[Slug] = None
    """A lesson's short name, such as one_neuron; without it, all are listed."""
    preset: Annotated[str, shown_as("{quick,cpu,record,gpu}")] = "quick"
    """quick (the default): at most a minute. cpu: at most ten. record: what the documentation shows. gpu: a real size."""
    workers: Workers = None
    """Processes of one thread each; without it, one per core up to 2."""
    out: OutFolder = None
    """Where record and picture go; without it, runs/lessons/SLUG."""


@dataclass(frozen=True)
class Exercise:
    """Write a lesson's exercise into this folder, for you to complete."""

    slug: tyro.conf.Positional[Slug] = None
    """The lesson's short name, such as one_neuron; without it, all are listed."""


@dataclass(frozen=True)
class Check:
    """Grade your file of an exercise."""

    slug: tyro.conf.Positional[Annotated[str, shown_as("SLUG")]]
    """The lesson's short name, such as one_neuron."""
    file: tyro.conf.Positional[Annotated[Path | None, shown_as("[FILE]")]] = None
    """Your file; without it, SLUG.py in this folder."""


@dataclass(frozen=True)
class Reproduce:
    """Run again what one claim needs, and say whether this machine agrees with the record."""

    claim: tyro.conf.Positional[Annotated[str, shown_as("SLUG/CLAIM")]]
    """As `minitrain ledger` lists them, such as one_neuron/adamw-rotation."""
    workers: Workers = None
    """Processes of one thread each; without it, one per core up to 2."""


@dataclass(frozen=True)
class Ledger:
    """List every claim of the course with its verdict."""


COMMANDS = Demo | Train | TrainImages | Plan | Sample | Lesson | Exercise | Check | Reproduce | Ledger

# Peak learning rate and decay that suit a GPT of about 1 M parameters and 1200 steps of 1024 tokens.
DEFAULTS: dict[str, dict[str, Any]] = {
    "adamw": {"lr": 6e-3, "weight_decay": 0.5, "betas": (0.9, 0.95)},
    "adam": {"lr": 6e-3, "weight_decay": 1e-4, "betas": (0.9, 0.95)},
    "lion": {"lr": 1e-3, "weight_decay": 3.0, "betas": (0.9, 0.95)},
    "sgd": {"lr": 0.5, "weight_decay": 1e-4, "momentum": 0.9, "nesterov": True},
}
# The same for a ResNet-20 and 1000 steps of 128 images.
IMAGE_DEFAULTS: dict[str, dict[str, Any]] = {
    "adamw": {"lr": 3e-3, "weight_decay": 0.1, "betas": (0.9, 0.95)},
    "adam": {"lr": 3e-3, "weight_decay": 1e-4, "betas": (0.9, 0.95)},
    "lion": {"lr": 5e-4, "weight_decay": 1.0, "betas": (0.9, 0.95)},
    "sgd": {"lr": 0.1, "weight_decay": 5e-4, "momentum": 0.9, "nesterov": True},
}


def recipe_of(
    model: Model, training: TextTraining, precision: Literal["fp32", "bf16"], vocabulary: int = 256
) -> "Recipe":
    """The recipe that the options name. Raises `ValueError` with one sentence where they do not fit together."""
    import torch.nn.functional as F
    from torch import nn

    from minitrain import gpt
    from minitrain.data.text import own_text, standard_library
    from minitrain.recipe import Recipe, cross_entropy
    from minitrain.runtime.attention import causal_attention
    from minitrain.runtime.chunked_loss import chunked_cross_entropy

    build_model = partial(
        gpt.GPT,
        depth=model.depth,
        width=model.width,
        heads=model.heads,
        context=model.context,
        norm={"rms": nn.RMSNorm, "layer": gpt.LayerNorm}[model.norm],
        mlp={"relu-squared": gpt.MLP, "gelu": partial(gpt.MLP, activation=F.gelu), "swiglu": gpt.SwiGLU}[model.mlp],
        attend={
            "fastest": causal_attention,
            "textbook": gpt.textbook_attention,
            "sdpa": partial(F.scaled_dot_product_attention, is_causal=True),
        }[model.attention],
        qk_norm=gpt.RMSNormWithoutGain if model.qk_norm else nn.Identity,
        learned_positions=model.positions == "learned",
        tied=model.tied,
    )
    text = partial(own_text, path=str(training.data)) if training.data else standard_library
    # What is off leaves no trace in the recipe, so that runs from before an option was there can still be resumed.
    if vocabulary != 256:
        build_model = partial(build_model, vocab_size=vocabulary)
    loss = cross_entropy if training.loss_chunk is None else partial(chunked_cross_entropy, chunk=training.loss_chunk)
    if training.loss_chunk is not None and training.loss_chunk < 1:
        raise ValueError(f"loss_chunk must be at least 1 token, not {training.loss_chunk}; leave it out for one chunk")
    recipe = Recipe(build_model, partial(text, context=model.context), training.steps, training.batch_size, loss=loss)
    return trained_as(recipe, training, DEFAULTS, precision)


def image_recipe_of(model: ImageModel, training: ImageTraining, precision: Literal["fp32", "bf16"]) -> "Recipe":
    """The recipe that the options name. Raises `ValueError` with one sentence where they do not fit together."""
    from torch import nn

    from minitrain.data.download import cifar10
    from minitrain.data.images import letters, own_images
    from minitrain.recipe import Recipe
    from minitrain.resnet import cifar_resnet, layer_norm, resnet18
    from minitrain.techniques.ghost_noise import ghost_noised
    from minitrain.techniques.online_norm import OnlineNorm2d
    from minitrain.techniques.weight_standardization import weight_standardized

    if training.split_weights is not None and model.norm == "batch":
        raise ValueError("batch norm keeps its statistics in 32 bits and takes no gains in 16; choose another norm")
    if training.recompute_blocks and model.norm == "online":
        raise ValueError(
            "online norm moves its statistics as it computes, so blocks cannot be recomputed; leave one out"
        )
    if training.data == "letters":
        if training.held_out == "test":
            raise ValueError("letters have no test images beside the validation ones; leave --held-out out")
        data = letters
    elif training.data == "cifar10":
        data = partial(cifar10, held_out=training.held_out)
    else:
        data = partial(own_images, path=str(training.data), held_out=training.held_out)
    shown = data()
    norm = {"batch": nn.BatchNorm2d, "layer": layer_norm, "online": OnlineNorm2d}[model.norm]
    sizes: dict[str, Any] = {"classes": shown.classes, "channels": shown.channels, "norm": norm}
    if model.width is not None:
        sizes["width"] = model.width
    build_model = partial(resnet18, **sizes) if model.depth == 18 else partial(cifar_resnet, depth=model.depth, **sizes)
    if model.weight_standardization:
        build_model = partial(weight_standardized, build_model)
    if model.ghost_noise is not None:
        build_model = partial(ghost_noised, build_model, ghost_batch_size=model.ghost_noise)
    recipe = Recipe(build_model, data, training.steps, training.batch_size)
    return trained_as(recipe, training, IMAGE_DEFAULTS, precision)


def trained_as(
    recipe: "Recipe", training: Training, defaults: dict[str, dict[str, Any]], precision: Literal["fp32", "bf16"]
) -> "Recipe":
    """The recipe with all that the options say of the training, whatever is trained on whatever."""
    from minitrain import optim, schedules
    from minitrain.runtime.recompute import recompute_blocks

    hyper = dict(defaults[training.optimizer])
    for name in ("lr", "weight_decay", "betas"):
        if (value := getattr(training, name)) is not None:
            if name not in hyper:
                raise ValueError(f"{training.optimizer} has no {name}; leave it out or choose another optimizer")
            hyper[name] = value
    if not 0 <= training.clip < float("inf"):
        raise ValueError(f"clip must be a number above 0, or 0 to not clip, not {training.clip}")
    build_model = recipe.build_model
    return dataclasses.replace(
        recipe,
        build_model=partial(recompute_blocks, build_model) if training.recompute_blocks else build_model,
        micro_batch_size=training.micro_batch_size,
        make_optimizer=optimizer_of(training, hyper),
        schedules={("*", "lr"): schedule_of(training, schedules)},
        before_step=(partial(optim.ClipGradNorm, max_norm=training.clip),) if training.clip else (),
        precision=precision,
        seed=training.seed,
    )


def optimizer_of(training: Training, hyper: dict[str, Any]) -> partial:
    """The maker of the optimizer, with what is put around it."""
    from minitrain.optim import SGD, Adam, AdamW, Lion, wrapped
    from minitrain.techniques.split_weights import SplitWeights
    from minitrain.techniques.step_in_backward import StepInBackward

    make = {"adamw": AdamW, "adam": Adam, "lion": Lion, "sgd": SGD}[training.optimizer]
    by: tuple = () if training.split_weights is None else (partial(SplitWeights, bits=training.split_weights),)
    if training.step_in_backward:
        if training.clip:
            raise ValueError("step_in_backward has no gradients left to clip by their joint norm; add --clip 0")
        if training.micro_batch_size not in (None, training.batch_size):
            raise ValueError("step_in_backward cannot accumulate a gradient; leave micro_batch_size out")
        by = (*by, StepInBackward)
    return partial(wrapped, make=make, by=by, **hyper) if by else partial(make, **hyper)


def schedule_of(training: Training, schedules: Any) -> partial:
    """The learning rate's multiplier as a function of the step. Raises `ValueError` for options that it would ignore."""
    for name, value in (("warmup", training.warmup), ("cooldown", training.cooldown)):
        if value is not None and not 0 <= value <= 1:
            raise ValueError(f"{name} is a share of the steps, from 0 to 1, not {value}")
    for name, of in (("cooldown", ("wsd", "exponential")), ("shape", ("wsd",))):
        if getattr(training, name) is not None and training.schedule not in of:
            raise ValueError(f"{training.schedule} takes no {name}; leave it out or choose {' or '.join(of)}")
    steps, warmup = training.steps, round(training.warmup * training.steps)
    share = 0.5 if training.cooldown is None else training.cooldown
    cooldown = round(share * steps)
    if training.warmup + share <= 1:
        cooldown = min(cooldown, steps - warmup)  # both may have been rounded up
    shapes = {
        "linear": schedules.linear,
        "one-minus-sqrt": schedules.one_minus_sqrt,
        "lowered-linear": schedules.lowered_linear,
        "cosine": schedules.cosine_shape,
        "mirror-cosine": schedules.mirror_cosine,
        "square": schedules.square,
    }
    schedule = {
        "constant": partial(schedules.constant, warmup=warmup),
        "wsd": partial(
            schedules.warmup_stable_decay,
            steps=steps,
            warmup=warmup,
            cooldown=cooldown,
            shape=shapes[training.shape or "linear"],
        ),
        "cosine": partial(schedules.cosine, steps=steps, warmup=warmup),
        "linear": partial(schedules.linear_to_floor, steps=steps, warmup=warmup),
        "exponential": partial(schedules.exponential_decay, steps=steps, warmup=warmup, cooldown=cooldown),
        "inverse-sqrt": partial(schedules.inverse_sqrt, warmup=max(warmup, 1)),
        "one-cycle": partial(schedules.one_cycle, steps=steps),
    }[training.schedule]
    schedule(0)  # raises where the parts do not fit
    return schedule


def next_free_folder(name: str) -> Path:
    """`runs/NAME`, `runs/NAME-2`, and so on."""
    candidates = (Path("runs") / (name if i == 1 else f"{name}-{i}") for i in range(1, 10_000))
    return next(path for path in candidates if not path.exists())


def write_options(folder: Path, options: Train | TrainImages) -> None:
    """Stores the options as a command line, for `--resume` and `minitrain sample`."""
    from minitrain.runtime.files import write_text

    write_text(folder / "options.json", json.dumps(arguments_of(options), indent=1) + "\n")


def arguments_of(options: Train | TrainImages) -> list[str]:
    """The command line that says all options in full; of `minitrain train` without the command's name."""
    arguments: list[str] = ["train-images"] if isinstance(options, TrainImages) else []
    for part in (options.model, options.training, options.machine):
        for name, value in dataclasses.asdict(part).items():
            flag = name.replace("_", "-")
            if isinstance(value, bool):
                arguments.append(f"--{flag}" if value else f"--no-{flag}")
            elif value is not None:
                values = value if isinstance(value, tuple) else (value.resolve() if isinstance(value, Path) else value,)
                arguments += [f"--{flag}", *map(str, values)]
    return arguments


def read_options(folder: Path) -> Train | TrainImages:
    """What `write_options` stored. Raises `FileNotFoundError` or `ValueError` where that is not to be had."""
    path = folder / "options.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} is not the folder of a run (it has no options.json); give one that is")
    try:
        arguments = json.loads(path.read_text())
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, list) or not all(isinstance(argument, str) for argument in arguments):
        raise ValueError(f"{path} is damaged; start a new run in another folder")
    if arguments[:1] == ["train-images"]:
        return parse(TrainImages, arguments[1:], prog=str(path))
    return parse(Train, arguments, prog=str(path))


def main(argv: list[str] | None = None) -> None:
    """Runs the command. Bad input ends in one sentence and exit code 2, never in a traceback."""
    argv = sys.argv[1:] if argv is None else argv
    for stream in ("stdout", "stderr"):
        if getattr(sys, stream) is None:  # closed by the caller
            setattr(sys, stream, open(os.devnull, "w"))  # noqa: SIM115
        elif hasattr(getattr(sys, stream), "reconfigure"):
            getattr(sys, stream).reconfigure(errors="replace")  # a terminal that lacks a sign shows another
    warnings.showwarning = print_warning  # ty: ignore[invalid-assignment]
    options = parse(COMMANDS, argv, prog="minitrain", description="Learn what an optimizer's update really does.")
    try:
        if isinstance(options, Train | TrainImages) and options.resume:
            if options.out:
                raise ValueError("a resumed run stays in its folder; leave --out or --resume out")
            # The run's own options, with what the command line says on top: what differs will be refused by name.
            stored = dataclasses.replace(read_options(options.resume), resume=options.resume)
            if type(stored) is not type(options):
                other = "train-images" if isinstance(stored, TrainImages) else "train"
                raise ValueError(f"{options.resume} was written by minitrain {other}; resume it with that command")
            options = parse(type(options), argv[1:], prog=f"minitrain {argv[0]}", default=stored)
        from minitrain import commands

        commands.carry_out(options)
    except BrokenPipeError:  # whoever read our output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except (ValueError, TypeError, OSError, FloatingPointError) as error:
        sys.exit(complaint(str(error)))
    except KeyboardInterrupt:
        complaint("interrupted")
        sys.exit(130)
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise  # a defect, to be seen whole
        sys.exit(complaint("there is not enough memory for this; lower micro_batch_size, batch_size, depth or context"))


def lesson_main(file: str) -> None:
    """What a lesson's script does when it is started: the same as `minitrain lesson SLUG`."""
    main(["lesson", Path(file).stem.partition("_")[2], *sys.argv[1:]])


def parse(options: Any, argv: list[str], **how: Any) -> Any:
    """`tyro.cli`, with its boxed complaint said in one sentence."""
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            return tyro.cli(options, args=argv, **how)
    except SystemExit as stop:
        if not stop.code:
            raise
        sys.exit(complaint(f"{sentence_in(box.getvalue())}; minitrain --help lists what there is"))


def sentence_in(box: str) -> str:
    """The first paragraph of tyro's box, said plainly where it is about a value's type."""
    lines = [line.strip("│ ") for line in box.splitlines()[1:]]  # without the title
    lines = ["" if set(line) <= set("─-╰╯") else line for line in lines]  # a rule ends a paragraph
    paragraph = " ".join(itertools.takewhile(bool, itertools.dropwhile(lambda line: not line, lines))).rstrip(".")
    if found := re.match(r"Error parsing (--[\w-]+):.*?(?:from \[(.*)\]|: ('.*'))$", paragraph):
        option, given = found[1], found[2] or found[3]
        takes = re.search(rf"^{option}(?:, \S+)* (?:\{{None\}}\|)?(.*)$", "\n".join(lines), re.MULTILINE)
        words = {"INT": "a whole number", "N": "a whole number", "FLOAT": "a number", "{FLOAT FLOAT}": "two numbers"}
        return f"{option} takes {words.get(takes[1], takes[1]) if takes else 'another value'}, not {given}"
    return paragraph


def print_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    """A warning as one line, without the place in the source."""
    print(f"minitrain: {message}", file=sys.stderr)


def complaint(sentence: str) -> int:
    """Prints one sentence on one line; returns the exit code of bad input."""
    print(f"minitrain: {' '.join(sentence.split())}", file=sys.stderr)
    return 2
