"""Online norm, one sample at a time: forward by what was known before, backward with a controller.

30 minutes, difficulty 2 of 3. Write the two functions below, each four to six lines, with numpy. `minitrain check
online_normalization` tests every number that they return, and then sends a stream of 20,000 samples through both, whose
gradient must be that of batch norm with the whole stream as its batch.

A sample has a few channels and, in each, a few pixels: arrays `x`, `y` and `g` of shape (channels, pixels). What is kept
per channel has shape (channels,). `decay` is the share of an average that a sample leaves, 0.99 for example.
"""

import numpy as np


def forward(
    x: np.ndarray, m: np.ndarray, s: np.ndarray, decay: float, eps: float = 1e-5
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """`(y, r, m, s)`: the output, what it was divided by, and the mean and variance that the next sample will find.

    `y` is normalized with `r = sqrt(s + eps)` and the mean as they are handed in. Mean and variance are then those of all
    samples so far, a sample weighing `decay` times as much as the one after it: that of a stream of numbers whose mean
    moves has two parts, the variance inside the samples and that between their means.
    """
    raise NotImplementedError


def backward(
    g: np.ndarray, y: np.ndarray, r: np.ndarray, u: np.ndarray, v: np.ndarray, decay: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`(back, u, v)`: the gradient to hand back where the output's is `g`, and the controllers for the next sample.

    First `(1 - decay) v` times the output is taken off `g`, which leaves `h`; what `h` still has along the output, as a mean
    over the pixels, is added to `v`. Then `h` is divided by `r`, `(1 - decay) u` is taken off, and the mean of what is
    handed back is added to `u`. With `decay = 1` there is no control.
    """
    raise NotImplementedError
