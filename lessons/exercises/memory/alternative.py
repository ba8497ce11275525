"""Another right one: torch finds the twins by trying, and the bytes are summed tensor by tensor."""

import itertools

import torch


def twins(near):
    """Every float32 number in reach whose lower half is a tie; the first two that round to the same bfloat16 one."""
    middle = torch.tensor(near).view(torch.int32)
    ties = (middle + (1 << 15) * torch.tensor([-3, -1, 1, 3], dtype=torch.int32)).view(torch.float32)
    for a, b in itertools.pairwise(ties):
        if a.bfloat16() == b.bfloat16() and b.isfinite():
            return b, a  # the order is free


def bytes_of(size, *shapes):
    """Of tensors of two dimensions each."""
    return sum(size * rows * columns for rows, columns in shapes)


def standing(inputs, hidden, classes, size):
    """Three of each."""
    return bytes_of(size, *3 * [(inputs, hidden), (hidden, classes)])


def at_the_loss(rows, inputs, hidden, classes, size):
    """Float32 from the logits on."""
    saved = bytes_of(size, (rows, inputs), (rows, hidden), (rows, hidden))
    return standing(inputs, hidden, classes, size) + saved + bytes_of(4, *3 * [(rows, classes)])


def in_the_middle(rows, inputs, hidden, classes, size):
    """Three tensors as wide as the hidden layer."""
    alive = [(rows, inputs), *3 * [(rows, hidden)], (rows, classes), (hidden, classes)]
    return standing(inputs, hidden, classes, size) + bytes_of(size, *alive)


def at_the_end(rows, inputs, hidden, classes, size):
    """Four of each weight."""
    gradients = standing(inputs, hidden, classes, size) // 3
    return standing(inputs, hidden, classes, size) + gradients + bytes_of(size, (rows, inputs), (rows, hidden))


def peak(*sizes):
    """By sorting."""
    return sorted([at_the_loss(*sizes), in_the_middle(*sizes), at_the_end(*sizes)])[-1]
