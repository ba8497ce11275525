"""Another right one: arrays, a norm that gives the rotation, and sums read off a long impulse response."""

import numpy as np


def impulse_response(direction, length):
    """Two impulses in two coordinates at once; they answer alike."""
    state, gradients = {}, np.zeros((length, 2))
    gradients[0] = 1.0
    return np.array([direction(g, state) for g in gradients])[:, 1]


def sums(c):
    """As products of vectors."""
    c = np.asarray(c, dtype=float)
    return np.ones_like(c) @ c, c @ c


def equilibrium_norm(S, E2, lr, weight_decay, fan_in):
    """From the squared norm."""
    return (0.5 * S**2 * lr / weight_decay * fan_in) ** 0.5


def equilibrium_rotation(S, E2, lr, weight_decay):
    """The length of a step over the norm, for a neuron of 100 weights."""
    return lr * (100 * E2) ** 0.5 / equilibrium_norm(S, E2, lr, weight_decay, 100)


def nesterov_sums(beta):
    """Twenty thousand ages are enough for any beta that is asked for."""

    def direction(g, state):
        state["m"] = beta * state.get("m", 0.0) + (1 - beta) * g
        return beta * state["m"] + (1 - beta) * g

    return sums(impulse_response(direction, 20_000))
