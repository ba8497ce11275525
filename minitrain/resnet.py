"""A residual network for small images, written to be read: 3x3 convolutions, no biases, no flags inside the blocks.

The pre-activation form (He et al., 2016, arXiv 1603.05027): what runs past a block is left alone, and a block's branch
reads a normalized copy of it. `norm` is any `(channels) -> Module`. Shape letters: B batch, C channels, H and W height
and width, K classes.

Images and weights lie channels-last in memory (all channels of a pixel side by side), as fast convolutions want them.
Shapes read the same in either layout.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

NormFactory = Callable[[int], nn.Module]
conv3x3 = partial(nn.Conv2d, kernel_size=3, padding=1, bias=False)


def layer_norm(channels: int) -> nn.Module:
    """Layer norm for images: one mean and one spread per image, over all channels and pixels; gain and bias per channel.

    `GroupNorm` with a single group (Wu & He, 2018, arXiv 1803.08494).
    """
    return nn.GroupNorm(1, channels)


# --8<-- [start:block]
class Block(nn.Module):
    """Two convolutions, each behind a norm and a ReLU, and a shortcut around both.

    Where the shape changes, the shortcut is a 1x1 convolution that reads what the branch reads: a `stride` of 2 keeps every
    second row and column on both ways.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, norm: NormFactory):
        super().__init__()
        self.norm1, self.conv1 = norm(inputs), conv3x3(inputs, outputs, stride=stride)
        self.norm2, self.conv2 = norm(outputs), conv3x3(outputs, outputs)
        changes = inputs != outputs or stride != 1
        self.shortcut = nn.Conv2d(inputs, outputs, kernel_size=1, stride=stride, bias=False) if changes else None

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C2 H2 W2"]:
        read = F.relu(self.norm1(x))
        branch = self.conv2(F.relu(self.norm2(self.conv1(read))))
        return branch + (x if self.shortcut is None else self.shortcut(read))


# --8<-- [end:block]
# --8<-- [start:resnet]
class ResNet(nn.Module):
    """Images to the logits of their classes.

    `stages` lists `(width, blocks)`; each stage but the first halves height and width. The stem has stride 1, as fits
    images of about 32x32. Raises `ValueError` for sizes that cannot be built.
    """

    def __init__(
        self,
        stages: Sequence[tuple[int, int]],
        classes: int = 10,
        channels: int = 3,
        norm: NormFactory = nn.BatchNorm2d,
    ):
        super().__init__()
        if not stages:
            raise ValueError("a ResNet needs at least one stage; give stages as (width, blocks), such as [(16, 3)]")
        check_sizes(classes=classes, channels=channels)
        for width, blocks in stages:
            check_sizes(width=width, blocks=blocks)
        width = stages[0][0]
        self.stem = conv3x3(channels, width)
        self.blocks = nn.ModuleList()
        for i, (outputs, blocks) in enumerate(stages):
            for j in range(blocks):
                self.blocks.append(Block(width, outputs, stride=2 if i > 0 and j == 0 else 1, norm=norm))
                width = outputs
        self.norm = norm(width)
        self.head = nn.Linear(width, classes)
        self.reset_parameters()
        nn.utils.convert_conv2d_weight_memory_format(self, torch.channels_last)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Convolutions are normal with variance 2 / fan-in, which keeps sizes through a ReLU (He et al., 2015, arXiv
        1502.01852, equation 10). The head starts at zero, as `GPT`'s: a uniform guess. Norms start as their class has it.
        """
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        return self.head(self.features(images))

    def features(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C2"]:
        """What the head reads: the mean over all pixels."""
        x = self.stem(images.to(self.head.weight.dtype, memory_format=torch.channels_last))
        for block in self.blocks:
            x = block(x)
        return F.relu(self.norm(x)).mean((2, 3))


# --8<-- [end:resnet]
def check_sizes(**sizes: int) -> None:
    """Raises `ValueError` with one sentence for a size below 1."""
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1, not {size}")


def cifar_resnet(
    depth: int = 20, width: int = 16, classes: int = 10, channels: int = 3, norm: NormFactory = nn.BatchNorm2d
) -> ResNet:
    """The ResNet of the CIFAR experiments (He et al., 2015, arXiv 1512.03385, section 4.2): three stages of n blocks each.

    `depth` counts layers with weights, 6n + 2: 8, 14, 20, ... Raises `ValueError` for another one.
    """
    if depth < 8 or depth % 6 != 2:
        raise ValueError(f"depth must be 6n + 2 with n of at least 1, so 8, 14, 20 and so on, not {depth}")
    blocks = depth // 6
    return ResNet([(width, blocks), (2 * width, blocks), (4 * width, blocks)], classes, channels, norm)


def resnet18(width: int = 64, classes: int = 10, channels: int = 3, norm: NormFactory = nn.BatchNorm2d) -> ResNet:
    """ResNet-18's four stages of two blocks (arXiv 1512.03385, table 1), with a stem for small images."""
    return ResNet([(width, 2), (2 * width, 2), (4 * width, 2), (8 * width, 2)], classes, channels, norm)
