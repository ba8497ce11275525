"""Train a ResNet: two norms, and the block that everything else is made of.

30 to 45 minutes, difficulty 2 of 3. Write the two functions and the class below; `minitrain check train_a_resnet` holds them
against what each of them promises. A norm is two or three lines, the block about ten. Do not call torch's own norms: what
they average over is the point.

Shape letters: B batch, C channels, H and W height and width. All tensors are torch's.
"""

from collections.abc import Callable

from torch import Tensor, nn


def batch_norm(x: Tensor, gain: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Batch norm in training: `(x - mean) / sqrt(variance + eps) * gain + bias`.

    `x` is (B, C, H, W), `gain` and `bias` are (C,). Each channel has one mean and one variance, which are the same for the
    whole batch; the variance is the plain mean of the squared distances, not torch's default with `n - 1`.
    """
    raise NotImplementedError


def layer_norm(x: Tensor, gain: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Layer norm of images: the same formula, but each image has one mean and one variance, over all it consists of."""
    raise NotImplementedError


class Block(nn.Module):
    """A pre-activation block: what runs past it is left alone, and its branch reads a normalized copy.

    The branch is norm, ReLU, 3x3 convolution, and once more norm, ReLU, 3x3 convolution; its result is added to `x`, and
    nothing comes after the addition. Where the shape changes, in width or by a stride, `x` cannot be added as it is: there a
    1x1 convolution takes its place, which reads what the first convolution reads.

    Parts by name: `norm1`, `conv1`, `norm2`, `conv2`, and `shortcut` where the shape changes. `norm(channels)` makes a norm;
    convolutions have no bias and keep height and width, but for the stride, which is that of `conv1`.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, norm: Callable[[int], nn.Module]):
        super().__init__()
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError
