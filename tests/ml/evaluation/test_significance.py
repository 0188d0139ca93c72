import math
import re
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from ml.evaluation import significance as module
from ml.evaluation.significance import holm, paired_bootstrap, paired_t_test, wilcoxon_signed_rank

PAIRED = [paired_t_test, wilcoxon_signed_rank]
p_values = st.dictionaries(st.text(max_size=3), st.floats(0, 1), min_size=1, max_size=8)


def runs(n, seed=0, shift=0.02):
    rng = np.random.default_rng(seed)
    other = rng.normal(1, 0.05, n)
    return other - shift + rng.normal(0, 0.03, n), other


def users(n=300, seed=0, shift=0.05):
    """Sums of errors of `n` users, whose own levels both models share, and their counts."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, 20, n)
    level = rng.gamma(4, 0.2, n)
    ours, other = (np.abs(level - d + rng.normal(0, 0.1, n)) * counts for d in (shift, 0))
    return ours, other, counts


@pytest.mark.parametrize("n", [2, 3, 5, 20])
def test_t_test_equals_scipy(n):
    ours, other = runs(n)
    expected = stats.ttest_rel(ours, other)
    test = paired_t_test(list(ours), list(other))
    assert (test.statistic, test.p_value) == pytest.approx((expected.statistic, expected.pvalue), rel=1e-9)
    assert (test.n, test.undefined) == (n, None)


def test_t_test_by_hand():
    test = paired_t_test([1, 2, 3], [0, 0, 0])
    t = 2 / (1 / math.sqrt(3))
    assert test.statistic == pytest.approx(t)
    assert test.p_value == pytest.approx(1 - t / math.sqrt(t**2 + 2))  # Student's t with two degrees


def test_the_sign_says_who_is_better():
    better, worse = runs(5, shift=0.2)
    forth, back = paired_t_test(better, worse), paired_t_test(worse, better)
    assert forth.statistic < 0
    assert (back.statistic, back.p_value) == pytest.approx((-forth.statistic, forth.p_value))


@pytest.mark.parametrize("n", [5, 12, 50, 400])
def test_wilcoxon_equals_scipy(n):
    ours, other = runs(n)
    expected = stats.wilcoxon(ours, other)
    test = wilcoxon_signed_rank(ours, other)
    assert (test.statistic, test.p_value) == pytest.approx((expected.statistic, expected.pvalue), rel=1e-9)
    assert (test.n, test.undefined) == (n, None)


@pytest.mark.parametrize(
    ("ours", "statistic", "p"), [([1, 2, 3, 4, 5], 0, 2 / 32), ([-1, 2, 3, 4, 5], 1, 4 / 32)]
)
def test_wilcoxon_by_hand(ours, statistic, p):
    test = wilcoxon_signed_rank(ours, [0] * 5)
    assert (test.statistic, test.p_value) == (statistic, pytest.approx(p))


def test_wilcoxon_drops_ties_even_where_rounding_hides_them():
    test = wilcoxon_signed_rank([1, 2, 3, 4, 5, 0.1 + 0.2, 7], [0, 0, 0, 0, 0, 0.3, 7])
    assert (test.n, test.p_value) == (5, pytest.approx(2 / 32))


@pytest.mark.parametrize("paired", PAIRED)
@pytest.mark.parametrize(
    ("ours", "other", "reason"),
    [
        ([], [], "at least two pairs, got 0"),
        ([1.0], [0.9], "at least two pairs, got 1"),
        ([1.0, math.nan, 1.1], [0.9, 0.8, 1.2], "pair 1 .* NaN"),
        ([1.0, 1.1], [0.9, math.inf], "pair 1 .* infinite"),
    ],
)
def test_what_no_test_can_decide_is_undefined(paired, ours, other, reason):
    test = paired(ours, other)
    assert (test.statistic, test.p_value, test.n) == (None, None, len(ours))
    assert re.search(reason, test.undefined)


def test_equal_differences_leave_the_t_test_undefined():
    seeds = np.array([0.7, 0.8, 0.9, 1.1])
    for other in (seeds, seeds + 0.1):  # 0.1 survives subtraction only up to rounding
        test = paired_t_test(seeds, other)
        assert test.p_value is None
        assert "no variance" in test.undefined


def test_ties_throughout_leave_wilcoxon_undefined():
    test = wilcoxon_signed_rank([0.1 + 0.2, 1, 2], [0.3, 1, 2])
    assert (test.statistic, test.p_value, test.n) == (None, None, 0)
    assert test.undefined == "all 3 pairs tie"


@pytest.mark.parametrize("paired", PAIRED)
def test_unpaired_values_are_refused(paired):
    with pytest.raises(ValueError, match=r"ours \(5,\) and other \(4,\)"):
        paired(np.zeros(5), np.zeros(4))


def test_holm_by_hand():
    adjusted = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005})
    assert list(adjusted) == list("abcd")
    assert adjusted == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02})


def test_holm_leaves_undefined_ones_out_of_the_count():
    assert holm({"a": 0.01, "b": None, "c": 0.03, "d": math.nan}) == {
        "a": pytest.approx(0.02),
        "b": None,
        "c": pytest.approx(0.03),
        "d": None,
    }
    assert holm({}) == {}


@settings(deadline=None)
@given(p_values, st.floats(0.001, 0.999))
def test_holm_rejects_what_the_step_down_procedure_rejects(p, alpha):
    remaining, rejected = sorted(p, key=p.get), set()
    while remaining and p[remaining[0]] * len(remaining) <= alpha:
        rejected.add(remaining.pop(0))
    assert {name for name, value in holm(p).items() if value <= alpha} == rejected


@settings(deadline=None)
@given(p_values)
def test_holm_keeps_the_order_and_lies_between_raw_and_bonferroni(p):
    adjusted = holm(p)
    for name, value in adjusted.items():
        assert p[name] <= value <= min(1, len(p) * p[name])
    ordered = [adjusted[name] for name in sorted(p, key=p.get)]
    assert ordered == sorted(ordered)


@settings(deadline=None)
@given(p_values, st.data())
def test_raising_one_p_value_never_lowers_an_adjusted_one(p, data):
    name = data.draw(st.sampled_from(sorted(p)))
    before, after = holm(p), holm(p | {name: data.draw(st.floats(p[name], 1))})
    assert all(after[key] >= before[key] for key in p)


@pytest.mark.parametrize("p", [-0.1, 1.5])
def test_holm_names_what_is_no_p_value(p):
    with pytest.raises(ValueError, match="emcdr has p-value"):
        holm({"tgt": 0.5, "emcdr": p})


def micro(sums, counts, root):
    error = sums.sum(-1) / counts.sum(-1)
    return np.sqrt(error) if root else error


@pytest.mark.parametrize("root", [False, True])
def test_bootstrap_agrees_with_scipy(root):
    ours, other, counts = users()

    def difference(a, b, n, axis):
        return micro(a, n, root) - micro(b, n, root)

    reference = stats.bootstrap(
        (ours, other, counts),
        difference,
        paired=True,
        method="percentile",
        n_resamples=10_000,
        rng=1,
        batch=500,
    ).confidence_interval
    interval = paired_bootstrap(ours, other, counts, root=root)
    width = reference.high - reference.low
    assert interval.difference == pytest.approx(micro(ours, counts, root) - micro(other, counts, root))
    assert interval.low == pytest.approx(reference.low, abs=0.05 * width)
    assert interval.high == pytest.approx(reference.high, abs=0.05 * width)
    assert (interval.n_users, interval.undefined) == (300, None)


def test_bootstrap_of_two_users_by_hand():
    # The draws are one user twice (1/4 each) or both: 1 or -0.5 alone, (2 - 2) / (2 + 4) together.
    interval = paired_bootstrap([4, 2], [2, 4], [2, 4], resamples=1000)
    assert (interval.difference, interval.low, interval.high) == pytest.approx((0, -0.5, 1))


def test_bootstrap_covers_the_true_difference_as_often_as_the_t_interval():
    rng = np.random.default_rng(0)
    trials, n = 1000, 100
    other = rng.normal(10, 1, (trials, n))
    ours = other + rng.normal(0.3, 1, (trials, n))
    intervals = [
        paired_bootstrap(ours[i], other[i], np.ones(n), resamples=400, seed=i, level=0.9)
        for i in range(trials)
    ]
    exact = stats.ttest_rel(ours, other, axis=1).confidence_interval(0.9)
    covered = np.mean([interval.low <= 0.3 <= interval.high for interval in intervals])
    assert 0.85 < covered < 0.94
    assert covered == pytest.approx(np.mean((exact.low <= 0.3) & (exact.high >= 0.3)), abs=0.02)


def test_bootstrap_sees_that_ratings_of_a_user_hang_together():
    ours, other, counts = users(100)
    rows = np.repeat(np.arange(100), counts)
    alone = paired_bootstrap((ours / counts)[rows], (other / counts)[rows], np.ones(len(rows)))
    clustered = paired_bootstrap(ours, other, counts)
    assert alone.difference == pytest.approx(clustered.difference)
    assert clustered.high - clustered.low > 2 * (alone.high - alone.low)


@pytest.mark.parametrize("root", [False, True])
def test_equal_models_differ_by_exactly_zero(root):
    ours, _, counts = users()
    interval = paired_bootstrap(ours, ours.copy(), counts, root=root, resamples=1000)
    assert (interval.difference, interval.low, interval.high) == (0, 0, 0)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2**32 - 1), st.booleans())
def test_swapping_the_models_mirrors_the_interval(seed, root):
    ours, other, counts = users(30)
    forth = paired_bootstrap(ours, other, counts, resamples=200, seed=seed, root=root)
    back = paired_bootstrap(other, ours, counts, resamples=200, seed=seed, root=root)
    assert (back.difference, back.low, back.high) == pytest.approx(
        (-forth.difference, -forth.high, -forth.low)
    )


def test_bootstrap_depends_on_the_seed_and_not_on_the_chunk(monkeypatch):
    data = users()
    whole = paired_bootstrap(*data, resamples=500)
    assert paired_bootstrap(*data, resamples=500, seed=1) != whole
    monkeypatch.setattr(module, "CHUNK", 7 * 300)
    parts = paired_bootstrap(*data, resamples=500)
    assert (parts.low, parts.high) == pytest.approx((whole.low, whole.high), rel=1e-12)


def test_bootstrap_of_many_users_needs_little_memory():
    data = users(14_000)
    tracemalloc.start()
    paired_bootstrap(*data, resamples=500)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100e6


@pytest.mark.parametrize(
    ("ours", "reason"),
    [([], "two users, got 0"), ([1.0], "two users, got 1"), ([1, math.nan, 2], "user 1 .*NaN")],
)
def test_bootstrap_without_a_sample_is_undefined(ours, reason):
    interval = paired_bootstrap(ours, np.ones(len(ours)), np.ones(len(ours)))
    assert (interval.difference, interval.low, interval.high, interval.n_users) == (
        None,
        None,
        None,
        len(ours),
    )
    assert re.search(reason, interval.undefined)


@pytest.mark.parametrize(
    ("ours", "other", "weights", "message"),
    [
        ([1, 2], [1, 2], [1], r"\(2,\), \(2,\), \(1,\)"),
        ([1, -2], [1, 2], [1, 1], r"ours\[1\] is -2.0"),
        ([1, 2], [-1, 2], [1, 1], r"other\[0\] is -1.0"),
        ([1, 2], [1, 2], [1, 0], r"weights\[1\] is 0.0.*without ratings"),
    ],
)
def test_bootstrap_names_the_bad_row(ours, other, weights, message):
    with pytest.raises(ValueError, match=message):
        paired_bootstrap(ours, other, weights)


def test_bootstrap_refuses_a_level_in_percent():
    with pytest.raises(ValueError, match=r"level is 95.*0\.95"):
        paired_bootstrap(*users(5), level=95)
