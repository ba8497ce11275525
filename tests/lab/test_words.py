import pytest

from minitrain.lab.words import plus_minus, with_interval


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ([1.0, 3.0], "2.0 ± 1.0"),
        ([2.1, 2.101, 2.099], "2.10000 ± 0.00058"),
        ([1000.0, 3000.0], "2000 ± 1000"),
        ([2.0], "2"),
        ([2.0, 2.0], "2"),
        ([0.0, 0.0], "0"),
        ([1e-6, 3e-6], "2e-06 ± 1e-06"),
        ([1.0, None], "diverged in 1 of 2"),
        ([1.0, float("inf"), None], "diverged in 2 of 3"),
    ],
)
def test_mean_and_standard_error_with_two_digits_of_the_error(values: list[float | None], text: str):
    assert plus_minus(values) == text


def test_an_interval_has_the_digits_of_its_width():
    assert with_interval(2.10523, 2.08371, 2.12675, " nats") == "2.105 nats (2.084 to 2.127)"
    assert with_interval(1.0, 0.99998, 1.00002) == "1.000000 (0.999980 to 1.000020)"
    assert with_interval(0.5, 0.5, 0.5) == "0.5"
    assert with_interval(-3.0, -9.0, 3.0) == "-3.0 (-9.0 to 3.0)"
