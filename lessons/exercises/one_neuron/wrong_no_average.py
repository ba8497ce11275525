"""Rejected by check_nesterov_sums.

The heavy ball with Nesterov, without the factor `1-b` of an average.
"""

from solution import equilibrium_norm, equilibrium_rotation, impulse_response, sums  # noqa: F401


def nesterov_sums(beta: float) -> tuple[float, float]:
    """`c_0 = 1+b`, `c_k = b^(k+1)`."""
    return 1 / (1 - beta), (1 + beta) ** 2 + beta**4 / (1 - beta**2)
