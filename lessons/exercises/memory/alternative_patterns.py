"""Another right one: numpy's patterns, the even neighbour above where there is one; targets and loss are counted too."""

import numpy as np


def twins(near):
    """Half a step below and above an even bfloat16 number."""
    high = int(np.float32(near).view(np.uint32)) >> 16
    if high % 2:
        high += 1 if high & 0x7FFF != 0x7F7F else -1  # above the largest finite number is no other
    patterns = [(high << 16) - 0x8000, (high << 16) + 0x8000]
    return tuple(float(x) for x in np.array(patterns, dtype=np.uint32).view(np.float32))


def standing(inputs, hidden, classes, size):
    """Per input and output of the hidden layer."""
    return 3 * size * hidden * (inputs + classes)


def moment(rows, inputs, hidden, classes, size, *, activations, logits, gradients):
    """What all three have in common: `standing`, the targets in eight bytes each, and the loss."""
    return (
        standing(inputs, hidden, classes, size)
        + rows * (size * (inputs + activations * hidden) + logits * classes + 8)
        + size * gradients
        + 4
    )


def at_the_loss(rows, inputs, hidden, classes, size):
    """Twelve bytes a logit."""
    return moment(rows, inputs, hidden, classes, size, activations=2, logits=12, gradients=0)


def in_the_middle(rows, inputs, hidden, classes, size):
    """The gradient of the hidden layer comes on top of both its tensors."""
    return moment(rows, inputs, hidden, classes, size, activations=3, logits=size, gradients=hidden * classes)


def at_the_end(rows, inputs, hidden, classes, size):
    """All gradients."""
    return moment(rows, inputs, hidden, classes, size, activations=1, logits=0, gradients=hidden * (inputs + classes))


def peak(*sizes):
    """Any of the three."""
    return max(at_the_loss(*sizes), max(in_the_middle(*sizes), at_the_end(*sizes)))
