"""Is it real? Write the paired interval and the verdict, then judge three tables. 40 minutes, difficulty 2 of 3.

Grade your file with `minitrain check is_it_real`.
"""

from collections.abc import Sequence

# student_t(0.95, 4): with 4 degrees of freedom, |T| is below it in 95 of 100 cases
from minitrain.lab.intervals import student_t  # for you


def paired_interval(a: Sequence[float], b: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Lowest and highest value of the mean of `b - a`, with confidence `level`.

    `a[i]` and `b[i]` are results of two methods under one seed, in the same order. Student's t, for the spread is not
    known but estimated from these few values. Raises `ValueError` for unequal numbers of results, and for fewer than two.
    """
    raise NotImplementedError


def verdict(low: float, high: float, threshold: float) -> str:
    """What an interval says of the claim "the mean lies above `threshold`".

    "holds" where all of the interval lies above, "does not hold" where all of it lies below, else "not distinguishable".
    """
    raise NotImplementedError


# Three tables, each with the sentence printed under it. All numbers are validation losses in bits per byte: lower is better.
# Methods and numbers are invented. Results in one column have the same seed: the same initial weights, the same batches.

# Table 1: five seeds; each method at the best of seven learning rates, for both the fourth.
# "B needs fewer bits than A."
TABLE_1 = {
    "A": [3.186, 3.169, 3.200, 3.225, 3.249],
    "B": [3.175, 3.155, 3.188, 3.215, 3.233],
}

# Table 2: eight seeds; each method at the best of seven learning rates, for both the third.
# "D, which is twice as fast, costs nothing: it stays within 0.01 bits of A."
TABLE_2 = {
    "A": [2.894, 2.940, 2.914, 2.918, 2.927, 2.918, 2.953, 2.933],
    "D": [2.897, 2.938, 2.910, 2.920, 2.926, 2.918, 2.948, 2.939],
}

# Table 3: six seeds; all the learning rates that were tried.
# "Each at its best learning rate, C needs fewer bits than A, by at least 0.03."
TABLE_3 = {
    ("A", 0.001): [3.478, 3.524, 3.502, 3.459, 3.504, 3.484],
    ("A", 0.002): [3.341, 3.398, 3.378, 3.325, 3.370, 3.334],
    ("A", 0.004): [3.226, 3.272, 3.266, 3.211, 3.250, 3.233],
    ("C", 0.001): [3.251, 3.308, 3.288, 3.238, 3.280, 3.267],
    ("C", 0.002): [3.167, 3.222, 3.202, 3.151, 3.195, 3.172],
    ("C", 0.004): [3.190, 3.236, 3.227, 3.186, 3.223, 3.192],
}

CANNOT_SUPPORT = ...  # 1, 2 or 3: the table that does not support its sentence
WHY = ...  # the letter of the reason:
# "a"  the seeds of one method overlap with those of the other
# "b"  the interval of the difference reaches zero
# "c"  a method's best learning rate stands at the edge of those tried
# "d"  there are fewer than ten seeds
