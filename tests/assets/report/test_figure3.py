"""Figure 3: what is drawn is what the table says."""

import io
import xml.etree.ElementTree as ET

import pandas as pd
import pytest
from matplotlib.image import imread

from assets.report import figure3
from assets.state import plots
from tests.assets.report.sources import NAMES

MODELS = ["tgt", "emcdr", "diffcdr"]


def frame(*rows):
    return pd.DataFrame(rows, columns=["task", "beta", "metric", "stage", "model", "mean", "std", "seeds"])


def drawn(part):
    axes = plots.new_figure(5, 3).subplots()
    figure3.panel(axes, part, NAMES, MODELS)
    return axes


def test_cold_is_a_lighter_bar_left_of_warm_and_the_line_is_the_spread():
    part = frame(
        ("tiny", 0.2, "mae", "cold", "emcdr", 1.2, 0.1, 2),
        ("tiny", 0.2, "mae", "warm", "emcdr", 1.0, 0.05, 2),
    )
    axes = drawn(part)
    cold, warm = axes.patches
    assert (cold.get_height(), warm.get_height()) == (1.2, 1.0)
    assert cold.get_x() < warm.get_x()
    assert sum(cold.get_facecolor()) > sum(warm.get_facecolor())
    ends = [line.get_segments()[0][:, 1] for line in axes.collections]
    assert ends[0] == pytest.approx([1.1, 1.3])
    assert ends[1] == pytest.approx([0.95, 1.05])


def test_a_bar_that_would_press_the_others_flat_is_cut_and_labelled():
    part = frame(
        ("tiny", 0.2, "mae", "cold", "tgt", 4.5, None, 1),
        ("tiny", 0.2, "mae", "cold", "emcdr", 1.2, None, 1),
        ("tiny", 0.2, "mae", "cold", "diffcdr", 1.0, None, 1),
    )
    axes = drawn(part)
    assert 1.2 < axes.get_ylim()[1] < 1.5
    assert [text.get_text() for text in axes.texts] == ["4.50"]
    assert not axes.collections


def test_a_diverged_model_has_no_bar():
    part = frame(
        ("tiny", 0.2, "mae", "cold", "emcdr", float("nan"), None, 1),
        ("tiny", 0.2, "mae", "cold", "diffcdr", 1.0, None, 1),
    )
    assert [bar.get_height() for bar in drawn(part).patches] == [1.0]


def test_one_picture_a_task_with_a_panel_for_each_metric_and_beta():
    rows = [
        ("tiny", beta, metric, stage, "emcdr", 1.0, 0.1, 2)
        for beta in (0.2, 0.5)
        for metric in ("mae", "rmse")
        for stage in ("cold", "warm")
    ]
    (picture,) = figure3.figure3_pictures(frame(*rows), NAMES)
    assert picture.name == "figure3-tiny"
    assert imread(io.BytesIO(picture.formats["png"])).shape[1] > 600
    svg = ET.fromstring(picture.formats["svg"])
    panels = [g for g in svg.iter("{http://www.w3.org/2000/svg}g") if g.get("id", "").startswith("axes_")]
    assert len(panels) == 4
    assert figure3.figure3_pictures(frame(*rows), NAMES)[0].formats["svg"] == picture.formats["svg"]
