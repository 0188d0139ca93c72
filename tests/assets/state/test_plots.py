"""Small lines: what is in them, and that a page of Dagster shows them at once."""

import base64
import math
import re
from xml.etree import ElementTree

import pytest

from assets.state.plots import sparkline

SVG = "{http://www.w3.org/2000/svg}"


def drawn(markdown: str) -> tuple[list[tuple[float, float]], tuple[float, float]]:
    """Points of the line, and the place of the dot."""
    encoded = re.fullmatch(r"!\[title\]\(data:image/svg\+xml;base64,(.*)\)", markdown)[1]
    image = ElementTree.fromstring(base64.b64decode(encoded))
    points = [
        tuple(map(float, pair.split(","))) for pair in image.find(f"{SVG}polyline").get("points").split()
    ]
    dot = image.find(f"{SVG}circle")
    return points, (float(dot.get("cx")), float(dot.get("cy")))


def test_higher_values_are_higher_and_the_dot_is_on_the_best():
    points, dot = drawn(sparkline([0.1, 0.3, 0.2], 1, "title"))
    assert points == [(8, 46), (148, 6), (288, 26)]
    assert dot == (148, 6)


def test_what_is_not_finite_is_left_out():
    points, dot = drawn(sparkline([math.inf, 2.0, math.nan, 1.0], 3, "title"))
    assert [x for x, _ in points] == [101, 288]
    assert dot == (288, 46)


@pytest.mark.parametrize("count", [2, 41, 1000])
def test_a_long_curve_keeps_its_best_point_and_is_short_enough_to_be_shown_without_a_click(count):
    values = [math.sin(i / 7) for i in range(count)]
    best = max(range(count), key=values.__getitem__)
    shown = sparkline(values, best, "title")
    assert len(shown) < 900
    points, dot = drawn(shown)
    assert dot in points


def test_a_flat_curve_is_a_line():
    points, _ = drawn(sparkline([1.0, 1.0], 0, "title"))
    assert points == [(8, 46), (288, 46)]
