"""Rejected by check_first_abnormal.

For each loop it names a number that is plainly abnormal, far below the first one.
"""

from solution import loop_1, loop_2, loop_3, loop_4, loop_5  # noqa: F401

FIRST_ABNORMAL = {
    "loop_1": ("grad_norm", 15),
    "loop_2": ("val_loss", 15),
    "loop_3": ("loss", 15),
    "loop_4": ("val_loss", 15),
    "loop_5": ("lr", 10),
}
