"""Rejected by check_peak.

The moments are added up, where the largest counts.
"""

from solution import at_the_end, at_the_loss, in_the_middle, standing, twins  # noqa: F401


def peak(*sizes: int) -> int:
    """All of the step."""
    return at_the_loss(*sizes) + in_the_middle(*sizes) + at_the_end(*sizes)
