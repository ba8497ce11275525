"""Rejected by check_lion.

The powers of SGD: a sign has no length that would shrink with the gradient.
"""

from solution import adam_l2_twin, adamw_twin, sgd_twin  # noqa: F401

lion_twin = sgd_twin
