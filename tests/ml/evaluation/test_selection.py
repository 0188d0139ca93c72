import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ml.evaluation.selection import RANKING, Selected, chosen_epoch, select


def curve(test, validation=None):
    def errors(pair):
        return None if pair is None else {"mae": pair[0], "rmse": pair[1]}

    return {"test": errors(test), "validation": errors(validation)}


CURVES = [
    curve((0.9, 1.2), (0.80, 1.10)),
    curve((0.7, 1.1), (0.75, 1.00)),
    curve((0.8, 1.0), (0.70, 1.00)),  # the RMSE of epoch 2 again, with a better MAE
    curve((0.9, 1.3), (0.60, 1.05)),
]


def test_selection_rules():
    assert select(CURVES) == [
        Selected("validation", "mae", 0.7, 2),
        Selected("validation", "rmse", 1.1, 2),
        Selected("last", "mae", 0.9, 4),
        Selected("last", "rmse", 1.3, 4),
        Selected("best_on_test", "mae", 0.7, 2),
        Selected("best_on_test", "rmse", 1.0, 3),
    ]
    assert chosen_epoch(CURVES) == 2


def test_without_validation_the_last_epoch_is_chosen():
    curves = [curve((0.7, 1.0)), curve((0.7, 1.1))]
    assert select(curves) == [
        Selected("last", "mae", 0.7, 2),
        Selected("last", "rmse", 1.1, 2),
        Selected("best_on_test", "mae", 0.7, 1),
        Selected("best_on_test", "rmse", 1.0, 1),
    ]
    assert chosen_epoch(curves) == 2


def test_a_diverged_epoch_is_never_preferred():
    curves = [curve((math.nan, math.nan), (math.nan, math.nan)), curve((1.0, 2.0), (1.0, 2.0))]
    assert chosen_epoch(curves) == 2
    assert {row.epoch for row in select(curves)} == {2}


def test_selection_refuses_no_epochs_and_gaps():
    with pytest.raises(ValueError, match="at least one"):
        select([])
    with pytest.raises(ValueError, match="at least one"):
        chosen_epoch([])
    with pytest.raises(ValueError, match=r"epochs \[2\]"):
        select([CURVES[0], curve((1.0, 1.0)), CURVES[2]])


@given(st.lists(st.tuples(st.floats(0, 4), st.floats(0, 4)), min_size=1, max_size=8))
def test_best_on_test_is_never_worse_than_the_other_rules(pairs):
    rows = select([curve(pair, pair[::-1]) for pair in pairs])
    value = {(row.selection, row.metric): row.value for row in rows}
    for metric in ("mae", "rmse"):
        assert value["best_on_test", metric] <= value["validation", metric]
        assert value["best_on_test", metric] <= value["last", metric]


def test_ranking_prefers_the_higher_value():
    curves = [
        {"test": {"ndcg@20": value}, "validation": {"ndcg@20": validation}}
        for value, validation in [(0.3, 0.1), (0.1, 0.4), (0.2, 0.4), (math.nan, math.nan)]
    ]
    assert chosen_epoch(curves, RANKING) == 2
    assert select(curves, RANKING)[0] == Selected("validation", "ndcg@20", 0.1, 2)
    assert select(curves, RANKING)[-1] == Selected("best_on_test", "ndcg@20", 0.3, 1)
