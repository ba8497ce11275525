"""Rejected by check_nesterov_sums.

The energy of the plain average: Nesterov's update is larger, so that 14 % of its rotation are missing.
"""

from solution import equilibrium_norm, equilibrium_rotation, impulse_response, sums  # noqa: F401


def nesterov_sums(beta: float) -> tuple[float, float]:
    """The sums of the average."""
    return 1.0, (1 - beta) / (1 + beta)
