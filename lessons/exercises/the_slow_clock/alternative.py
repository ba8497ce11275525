"""Another right one: weights by experiment, with an update of 1 in one step at a time, and the rest from them."""

import numpy as np


def average(lrs, weight_decay):
    """Walks once per step, all at once: one coordinate for each step and one for the start."""
    lrs = np.asarray(lrs, dtype=float)
    steps = len(lrs)
    w = np.zeros(steps + 1)
    w[steps] = 1.0
    for i, lr in enumerate(lrs):
        u = np.zeros(steps + 1)
        u[i] = -weight_decay  # so that q is 1
        w = (1 - lr * weight_decay) * w - lr * u
    return w[:steps], w[steps]


def share_of_last(lrs, weight_decay, last):
    """Over the sum of all of them."""
    c, _ = average(lrs, weight_decay)
    return np.sum(c[len(c) - last :]) / np.sum(c)


def tau_in_epochs(lr, weight_decay, rows, row_size, batch_size):
    """Tokens in the average over tokens in the data."""
    return batch_size / (lr * weight_decay) / (rows * row_size)


def decay_for(tau_epochs, lr, rows, row_size, batch_size):
    """The average is the longer, the smaller the decay."""
    return tau_in_epochs(lr, 1.0, rows, row_size, batch_size) / tau_epochs


def decay_after(weight_decay, data, batch):
    """For a run of which only the ratios matter."""
    tau = tau_in_epochs(1e-3, weight_decay, 1000, 1, 10)
    return decay_for(tau, 1e-3, 1000 * data, 1, 10 * batch)
