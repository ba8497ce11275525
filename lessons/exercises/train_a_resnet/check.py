"""Checks of the exercise `train_a_resnet`, in the order in which they build on one another."""

from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minitrain.lab.exercises import require

EPS = 0.01  # so large that where it stands can be seen


def noise(seed: int, *shape: int) -> Tensor:
    """Random numbers in float64."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- norms ------------------------------------------------------------------------------------------------------------


def moments(x: Tensor, over: tuple[int, ...], correction: int = 0, outside: bool = False) -> Tensor:
    """`x` normalized; `outside`: with eps added to the root."""
    mean = x.mean(over, keepdim=True)
    variance = x.var(over, correction=correction, keepdim=True)
    return (x - mean) / (variance.sqrt() + EPS if outside else (variance + EPS).sqrt())


def hold_norm(function: Any, over: tuple[int, ...], what: str) -> None:
    """Holds a norm against the formula on images, channels and pixels of different sizes, and names a known mistake."""
    x = noise(0, 4, 3, 5, 6) * (1 + noise(1, 1, 3, 1, 1).abs()) * (1 + noise(2, 4, 1, 1, 1).abs()) + noise(
        3, 4, 3, 1, 1
    )
    x = x * (1 + noise(4, 1, 1, 5, 6).abs())
    before, gain, bias = x.clone(), 1 + noise(5, 3).abs(), noise(6, 3)
    y = tensor_of(function(x, gain.clone(), bias.clone(), EPS), x.shape)
    require(torch.equal(x, before), "x changed in place", "a new tensor; x as it was")
    required = moments(x, over)
    found = (y - bias.view(-1, 1, 1)) / gain.view(-1, 1, 1)
    wrong = {
        "that averages over the batch only, pixel by pixel": moments(x, (0,)),
        "that averages over the pixels only: each image and channel by itself, which is instance norm": moments(
            x, (2, 3)
        ),
        "that averages over the channels only, pixel by pixel, as a transformer does with its tokens": moments(x, (1,)),
        "that is layer norm: one mean for each image": moments(x, (1, 2, 3)),
        "that is batch norm: one mean for each channel": moments(x, (0, 2, 3)),
        "one mean for everything? a batch has several": moments(x, (0, 1, 2, 3)),
        "the variance is divided by n - 1: give var a correction of 0": moments(x, over, correction=1),
        "eps belongs under the root, to the variance": moments(x, over, outside=True),
    }
    hint = next((words for words, z in wrong.items() if close(found, z)), "")
    if close(y, required):
        hint = "times gain, plus bias: each channel has its own"
    off = float((found - required).abs().max())
    require(off < 1e-6, f"up to {off:.3g} away from {what}", "the formula, to rounding", hint)


def check_batch_norm(answer: ModuleType) -> None:
    """batch_norm gives each channel one mean and one variance over the whole batch."""
    hold_norm(answer.batch_norm, (0, 2, 3), "a mean of 0 and a variance of 1 in each channel")


def check_layer_norm(answer: ModuleType) -> None:
    """layer_norm gives each image one mean and one variance over all its channels and pixels."""
    hold_norm(answer.layer_norm, (1, 2, 3), "a mean of 0 and a variance of 1 in each image")


# --- the block --------------------------------------------------------------------------------------------------------

SHAPES = {  # inputs, outputs, stride
    "the same width, stride 1": (4, 4, 1),
    "twice the width, stride 2": (4, 8, 2),
    "twice the width, stride 1": (4, 8, 1),
    "the same width, stride 2": (4, 4, 2),
}


def norm(channels: int) -> nn.Module:
    """A norm that keeps nothing as it is, with random gains and biases."""
    made = nn.GroupNorm(2, channels).double()
    with torch.no_grad():
        made.weight.copy_(1 + 0.3 * noise(channels, channels))
        made.bias.copy_(0.5 * noise(channels + 1, channels))
    return made


def block_of(answer: ModuleType, what: str) -> Any:
    """The learner's block, in float64, with norms of ours."""
    torch.manual_seed(0)
    block = answer.Block(*SHAPES[what], norm)
    require(isinstance(block, nn.Module), block, "an nn.Module")
    return block.double()


def check_parts(answer: ModuleType) -> None:
    """Block has norms of its own, and convolutions without bias, of the right sizes and strides."""
    for what, (inputs, outputs, stride) in SHAPES.items():
        asked: list[int] = []

        def counting(channels: int, asked: list[int] = asked) -> nn.Module:
            asked.append(channels)
            return norm(channels)

        block = answer.Block(inputs, outputs, stride, counting)
        names = ["norm1", "conv1", "norm2", "conv2", *(["shortcut"] if (inputs, stride) != (outputs, 1) else [])]
        missing = [name for name in names if not isinstance(getattr(block, name, None), nn.Module)]
        require(not missing, f"no {', '.join(missing)}", f"{', '.join(names)}, with {what}")
        hint = "norm1 reads the inputs of the block, norm2 the outputs of conv1"
        if block.norm1 is block.norm2 or len(asked) == 1:
            hint = "the two norms see different things and learn different gains: make two"
        require(sorted(asked) == sorted([inputs, outputs]), f"norms of {asked} channels", [inputs, outputs], hint)
        require(block.norm1 is not block.norm2, "one norm in two places", "two norms", hint)
        for name, sizes in {
            "conv1": (inputs, outputs, 3, stride),
            "conv2": (outputs, outputs, 3, 1),
            "shortcut": (inputs, outputs, 1, stride),
        }.items():
            if name in names:
                hold_conv(getattr(block, name), name, sizes, what)


def hold_conv(conv: Any, name: str, sizes: tuple[int, int, int, int], what: str) -> None:
    """Holds a convolution against its contract."""
    require(isinstance(conv, nn.Conv2d), f"{name} is a {type(conv).__name__}", "an nn.Conv2d")
    found = (conv.in_channels, conv.out_channels, conv.kernel_size[0], conv.stride[0])
    order = "inputs, outputs, window, stride"
    hint = "the stride is that of conv1 and of the shortcut" if found[:3] == sizes[:3] else ""
    require(found == sizes, f"{name} with ({order}) = {found}", f"{sizes}, with {what}", hint)
    hint = "a norm follows, or an addition, and either has what a bias could do"
    require(conv.bias is None, f"{name} has a bias", "none", hint)


def run(block: Any, x: Tensor, what: str) -> Tensor:
    """What the block makes of an image; a disagreement of the shapes on its two ways is named as that."""
    try:
        y = block(x)
    except RuntimeError as error:
        hint = "do both ways have the stride and the width? conv1 needs padding=1, the shortcut none"
        require(False, f"with {what}: {error}", "a branch and a shortcut of the same shape", hint)
        raise
    shape = (len(x), block.conv2.out_channels, *(-(-side // block.conv1.stride[0]) for side in x.shape[2:]))
    return tensor_of(y, shape)


@torch.no_grad()
def check_identity(answer: ModuleType) -> None:
    """Block leaves `x` alone where its last convolution is zero and the shape stays."""
    block = block_of(answer, "the same width, stride 1")
    nn.init.zeros_(block.conv2.weight)
    x = noise(7, 2, 4, 6, 6)
    y = run(block, x, "the same width, stride 1")
    read = block.norm1(x)
    wrong = {
        "a ReLU after the addition: what runs past the block then loses all that is negative": F.relu(x),
        "the shortcut carries x as it was before norm1 and ReLU": F.relu(read),
        "the shortcut carries x as it was before norm1": read,
        "x is not added at all": torch.zeros_like(x),
        "a norm after the addition: nothing comes after it": block.norm2(x),
        "a norm and a ReLU after the addition: nothing comes after it": F.relu(block.norm2(x)),
    }
    hint = next((words for words, z in wrong.items() if close(y, z)), "")
    off = float((y - x).abs().max())
    require(off == 0, f"up to {off:.3g} away from x", "x itself, bit for bit", hint)


@torch.no_grad()
def check_branch(answer: ModuleType) -> None:
    """Block adds norm, ReLU, convolution, norm, ReLU, convolution to `x`."""
    block = block_of(answer, "the same width, stride 1")
    x = noise(8, 2, 4, 6, 6)
    n1, c1, n2, c2 = block.norm1, block.conv1, block.norm2, block.conv2
    found = run(block, x, "the same width, stride 1") - x
    required = c2(F.relu(n2(c1(F.relu(n1(x))))))
    wrong = {
        "a ReLU is missing between norm1 and conv1": c2(F.relu(n2(c1(n1(x))))),
        "a ReLU is missing between norm2 and conv2": c2(n2(c1(F.relu(n1(x))))),
        "both ReLUs are missing": c2(n2(c1(n1(x)))),
        "norm first, then ReLU: yours are the other way round": c2(n2(F.relu(c1(n1(F.relu(x)))))),
        "norm and ReLU come before each convolution, not after it": F.relu(n2(c2(F.relu(n1(c1(x)))))),
        "norm and ReLU come before each convolution, also in front of the first": n2(c2(F.relu(n1(c1(x))))),
        "norm2 is missing": c2(F.relu(c1(F.relu(n1(x))))),
        "norm1 is missing": c2(F.relu(n2(c1(F.relu(x))))),
    }
    hint = next((words for words, z in wrong.items() if close(found, z)), "")
    off = float((found - required).abs().max())
    require(off < 1e-9, f"up to {off:.3g} away from the branch", "conv2(relu(norm2(conv1(relu(norm1(x))))))", hint)


@torch.no_grad()
def check_sides(answer: ModuleType) -> None:
    """Block changes width and sides on both of its ways, also of images with odd sides."""
    for what, (inputs, *_) in SHAPES.items():
        for sides in ((6, 6), (7, 5)):
            run(block_of(answer, what), noise(9, 2, inputs, *sides), what)


@torch.no_grad()
def check_shortcut(answer: ModuleType) -> None:
    """Block's shortcut, where the shape changes, reads what the first convolution reads."""
    for what, (inputs, *_) in SHAPES.items():
        block = block_of(answer, what)
        if what == "the same width, stride 1":
            continue
        x = noise(10, 2, inputs, 6, 6)
        read = F.relu(block.norm1(x))
        branch = block.conv2(F.relu(block.norm2(block.conv1(read))))
        y = run(block, x, what)
        wrong = {
            "the shortcut reads x; norm1 and ReLU come before both ways here": branch + block.shortcut(x),
            "the shortcut reads norm1(x), without the ReLU": branch + block.shortcut(block.norm1(x)),
            "a ReLU after the addition": F.relu(branch + block.shortcut(read)),
        }
        hint = next((words for words, z in wrong.items() if close(y, z)), "")
        off = float((y - branch - block.shortcut(read)).abs().max())
        require(off < 1e-9, f"with {what}, up to {off:.3g} away", "branch + shortcut(relu(norm1(x)))", hint)


# --- helpers ----------------------------------------------------------------------------------------------------------


def tensor_of(found: Any, shape: tuple[int, ...]) -> Tensor:
    """What the learner returned, if it is a tensor of the shape."""
    ok = isinstance(found, Tensor) and tuple(found.shape) == tuple(shape)
    require(ok, found, f"a tensor of shape {tuple(shape)}")
    return found.detach().double()


def close(found: Tensor, value: Tensor) -> bool:
    """Whether a learner's numbers are these, which is the mark of a mistake."""
    return found.shape == value.shape and bool((found - value).abs().max() < 1e-6)
