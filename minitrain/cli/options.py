"""What can be said on the command line, with defaults and a line of help each. Nothing here needs torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro


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
    """Run again what one claim needs, or a lesson's first seed, and say whether this machine agrees with the record."""

    claim: tyro.conf.Positional[Annotated[str, shown_as("SLUG[/CLAIM]")]]
    """As `minitrain ledger` lists them, such as one_neuron/adamw-rotation; or a lesson: the first seed of its arms."""
    workers: Workers = None
    """Processes of one thread each; without it, one per core up to 2."""


@dataclass(frozen=True)
class Ledger:
    """List every claim of the course with its verdict."""


COMMANDS = Demo | Train | TrainImages | Plan | Sample | Lesson | Exercise | Check | Reproduce | Ledger
