"""Rejected by check_adam_l2.

AdamW's twin: the same directions, but the decay joins a gradient here.
"""

from solution import adamw_twin, lion_twin, sgd_twin  # noqa: F401

adam_l2_twin = adamw_twin
