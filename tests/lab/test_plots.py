"""What is drawn is what was measured, the same bytes every time, with letters that a phone shows and colours told apart."""

import colorsys
import itertools
import math
import re
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pytest
from matplotlib.figure import Figure

from minitrain.lab.compare import Result, Runs, final
from minitrain.lab.plots import (
    DARK,
    LIGHT,
    THEMES,
    WIDTH,
    Theme,
    band,
    hollow,
    label,
    save_figure,
    save_pair,
    steady,
    u_curve,
)

COLORS = ("blue", "orange", "green", "pink", "red")
PAGE = {"light": "#ffffff", "dark": "#1e2129"}


def axes() -> Any:
    return Figure().subplots()


def sweep() -> Runs:
    """A U-curve with a known band; the largest rate diverges under one seed."""
    heights = {1e-3: (3.0, 5.0), 1e-2: (1.0, 2.0), 1e-1: (4.0, 4.0), 1.0: (1.0, None)}
    results = {
        ("A", lr, seed): Result("A", lr, seed, [{"step": 1, "x": x}], diverged=None if x else "nan")
        for lr, of_seed in heights.items()
        for seed, x in enumerate(of_seed)
    }
    return Runs({"A": {}}, {}, [0, 1], list(heights), results, {})


def test_a_sweep_is_drawn_as_its_mean_and_band_and_its_best_is_marked():
    ax = axes()
    u_curve(ax, sweep(), "A", final("x"), "#000000", scale=10)
    line, best = ax.lines
    assert ax.get_xscale() == "log"
    assert list(zip(*line.get_data(), strict=True)) == [(1e-3, 40.0), (1e-2, 15.0), (1e-1, 40.0)]  # 1.0 diverged
    assert [float(x) for x in (*best.get_xdata(), *best.get_ydata())] == [1e-2, 15.0]
    (area,) = ax.collections
    (path,) = area.get_paths()
    assert {(1e-3, 30.0), (1e-3, 50.0), (1e-2, 10.0), (1e-2, 20.0)} <= {(x, y) for x, y in path.vertices}


def test_a_band_reaches_from_the_smallest_to_the_largest_seed():
    ax = axes()
    band(ax, [0, 1], [[1.0, 2.0], [3.0, 6.0]], "#000000")
    assert list(ax.lines[0].get_ydata()) == [2.0, 4.0]
    assert {(0.0, 1.0), (0.0, 3.0), (1.0, 2.0), (1.0, 6.0)} <= {
        (x, y) for x, y in ax.collections[0].get_paths()[0].vertices
    }


def test_a_prediction_is_hollow_and_named():
    ax = axes()
    hollow(ax, 1.0, 2.0, LIGHT)
    assert ax.lines[0].get_fillstyle() == "none"
    assert ax.texts[0].get_text() == "your prediction"


def test_words_stand_at_the_point_they_name_in_its_colour():
    ax = axes()
    label(ax, 1.0, 2.0, "this one", LIGHT.blue)
    assert (ax.texts[0].xy, ax.texts[0].get_color()) == ((1.0, 2.0), LIGHT.blue)


def test_a_last_bit_of_the_layout_changes_no_byte(tmp_path: Path):
    def draw(left: float, figure: Any, theme: Theme) -> None:
        figure.set_layout_engine("none")
        figure.add_axes((left, 0.1, 0.8, 0.8)).plot([0, 1], color=theme.blue)

    for name, left in (("a", 0.1), ("b", math.nextafter(0.1, 1.0)), ("c", 0.11)):
        save_figure(tmp_path / f"{name}.svg", partial(draw, left))
    a, b, c = ((tmp_path / f"{name}.svg").read_bytes() for name in "abc")
    assert a == b != c
    assert (
        steady("translate(11.358521 126.367937)")
        == steady("translate(11.358520 126.367938)")
        == "translate(11.359 126.368)"
    )
    assert steady('id="p0123456789" url(#p0123456789) "#0072b2" -0.00000 7.5') == 'id="i0" url(#i0) "#0072b2" 0.0 7.5'


def test_a_pair_is_light_and_dark_and_its_bytes_are_steady(tmp_path: Path):
    def draw(figure: Any, theme: Theme) -> None:
        figure.subplots().plot([0, 1], color=theme.blue)

    for folder in ("a", "b"):
        paths = save_pair(tmp_path / folder, "picture", draw)
        assert [path.name for path in paths] == ["picture-light.svg", "picture-dark.svg"]
    for name in ("picture-light.svg", "picture-dark.svg"):
        first, second = ((tmp_path / folder / name).read_bytes() for folder in ("a", "b"))
        assert first == second
    light, dark = (path.read_text() for path in paths)
    assert LIGHT.ink in light
    assert DARK.ink in dark
    assert LIGHT.ink not in dark
    assert "<dc:date>" not in light
    width = re.search(r'width="([\d.]+)pt"', light)
    assert width
    assert float(width[1]) == pytest.approx(72 * WIDTH)


def test_letters_are_large_enough_for_a_phone(tmp_path: Path):
    sizes = []
    save_figure(tmp_path / "x.png", lambda figure, theme: sizes.append(mpl.rcParams["font.size"]))
    phone = 328  # pixels that a page leaves a picture on a phone of 360
    assert sizes[0] / (72 * WIDTH) * phone >= 10


def luminance(color: str) -> float:
    """Relative luminance as WCAG 2 defines it."""
    channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


@pytest.mark.parametrize("theme", THEMES, ids=lambda theme: theme.name)
@pytest.mark.parametrize("name", ["ink", "grey", *COLORS])
def test_every_colour_can_be_read_on_its_page(theme: Theme, name: str):
    high, low = sorted((luminance(getattr(theme, name)), luminance(PAGE[theme.name])), reverse=True)
    assert (high + 0.05) / (low + 0.05) >= (3.7 if name != "ink" else 10)  # WCAG asks for 3 of graphics and large text


def seen_without_red_or_green(color: str) -> tuple[float, float]:
    """What is left of a colour to eyes that cannot tell red from green: lightness, and how blue or yellow it is."""
    r, g, b = (int(color[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return (0.3 * r + 0.6 * g + 0.1 * b, b - (r + g) / 2)


@pytest.mark.parametrize("theme", THEMES, ids=lambda theme: theme.name)
def test_colours_differ_without_red_and_green_or_in_hue(theme: Theme):
    for first, second in itertools.combinations(COLORS, 2):
        a, b = (seen_without_red_or_green(getattr(theme, name)) for name in (first, second))
        hues = [
            colorsys.rgb_to_hsv(*(int(getattr(theme, n)[i : i + 2], 16) / 255 for i in (1, 3, 5)))[0]
            for n in (first, second)
        ]
        assert max(abs(a[0] - b[0]), abs(a[1] - b[1])) > 0.05, (first, second)
        assert abs(hues[0] - hues[1]) > 0.02, (first, second)
