"""Another right one: all four from two powers of `c`, that of the update and that of what the decay is added to."""

from fractions import Fraction


def powers(update, added_to):
    """A step must grow as `c`, and the decay as what it is added to; `w` itself grows as `c`."""
    return 1 - update, added_to - 1


def sgd_twin(c, lr, weight_decay):
    """Update and gradient both go as 1/c."""
    of_lr, of_decay = powers(update=-1, added_to=-1)
    return lr * c**of_lr, weight_decay * c**of_decay, c


def adamw_twin(c, lr, weight_decay, eps):
    """The decay, times the learning rate, is added to `w`: in one step both go as `c`."""
    of_lr, _ = powers(update=0, added_to=-1)
    twice = Fraction(lr) * Fraction(c) ** of_lr
    return float(twice), float(Fraction(lr) * Fraction(weight_decay) / twice), c, eps * c**-1


def lion_twin(c, lr, weight_decay):
    """As AdamW without an `eps`."""
    return adamw_twin(c, lr, weight_decay, 0.0)[:3]


def adam_l2_twin(c, lr, weight_decay, eps):
    """The update has no scale, the gradient has."""
    of_lr, of_decay = powers(update=0, added_to=-1)
    return [lr * c**of_lr, weight_decay * c**of_decay, c, eps * c**-1]
