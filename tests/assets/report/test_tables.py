"""Tables from hand-made results: means, spreads, tests, the paper's values, and what is missing."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from assets.report import coverage, figure3, figure4, ranking, summaries, table2, table3, table4
from assets.report import significance as tests
from assets.report.metrics import BY_NAME, OF_THE_PAPER, of_table2
from assets.report.names import Names
from assets.report.results import COLUMNS
from assets.report.summary import summary_frame, summary_part
from assets.report.table import Number
from assets.state.store import Store, parquet
from tests.assets.axes import AXES, CATALOG
from tests.assets.cells import errors, finish, support, user_errors
from tests.assets.report.sources import NAMES, PAPER, TUNED, source_of

MODELS = PAPER.models
CONTROLS = ("item_mean", "ridge_source")
WITH_CONTROLS = Names(CATALOG, replace(PAPER, controls=CONTROLS))
WITHOUT = Names(CATALOG, replace(PAPER, controls=()))


def results(*rows, objective="rating", stage="cold"):
    """Rows (task, beta, seed, model, selection, metric, value) as the results contract has them."""
    full = [("paper", t, b, s, m, stage, objective, sel, metric, v) for t, b, s, m, sel, metric, v in rows]
    return pd.DataFrame(full, columns=COLUMNS)


def seeds(model, values, metric="mae", task="video_music", beta=0.2):
    return [(task, beta, seed, model, "last", metric, value) for seed, value in enumerate(values)]


def shown(cell):
    """A cell as Markdown has it."""
    if not isinstance(cell, Number):
        return str(cell)
    text = f"**{cell}**" if cell.best else str(cell)
    return text + ("∗" if cell.star else "") + (f" ± {cell.spread_text}" if cell.spread_text else "")


def records(table):
    """Rows of a table by column name, repeats filled."""
    return [
        {name: shown(cell) for name, cell in zip(table.frame.columns, row, strict=True)}
        for row in table.frame.itertuples(index=False, name=None)
    ]


def published(name):
    return pd.read_csv(summaries.PUBLISHED / f"{name}.csv")


def test_table2_by_hand():
    rows = [*seeds("emcdr", [1.0, 2.0]), *seeds("diffcdr", [1.2]), *seeds("diffcdr", [0.9], task="tiny")]
    frame = table2.table2_frame(results(*rows), NAMES).set_index(["task", "model"])
    emcdr, diffcdr = frame.loc[("video_music", "emcdr")], frame.loc[("video_music", "diffcdr")]
    assert (emcdr["mean"], emcdr["seeds"], emcdr["paper"]) == (1.5, 2, 1.3596)
    assert emcdr["std"] == pytest.approx(0.5**0.5)
    assert (diffcdr["paper"], diffcdr["paper_improve"], diffcdr["baseline"]) == (1.0435, 0.06, "emcdr")
    assert diffcdr["improvement"] == pytest.approx(-0.2)  # of seed 0, which both have
    assert pd.isna(diffcdr["std"])
    assert pd.isna(diffcdr["p_value"])
    assert diffcdr["undefined"] == "needs at least two pairs, got 1"
    assert pd.isna(frame.loc[("tiny", "diffcdr"), "paper"])


def test_models_of_different_seeds_are_compared_over_those_both_have():
    # By their means over all seeds DiffCDR would win; over the seed that both have it loses.
    frame = table2.table2_frame(results(*seeds("emcdr", [1.0, 2.0]), *seeds("diffcdr", [1.2])), NAMES)
    table = table2.table2_tables(frame, NAMES)[0]
    assert (records(table)[0]["Improve"], records(table)[0]["Seeds"]) == ("−20.0%", "1–2")
    assert table2.UNEQUAL_NOTE in table.notes


def test_models_without_a_seed_in_common_are_not_compared():
    later = [(*row[:2], 7, *row[3:]) for row in seeds("diffcdr", [1.2])]
    frame = table2.table2_frame(results(*seeds("emcdr", [1.0]), *later), NAMES)
    cell = records(table2.table2_tables(frame, NAMES)[0])[0]
    assert (cell["Improve"], cell["p"]) == ("", "")


def test_equal_seeds_need_no_note():
    frame = table2.table2_frame(results(*seeds("emcdr", [1.0, 2.0]), *seeds("diffcdr", [1.2, 1.1])), NAMES)
    assert table2.UNEQUAL_NOTE not in table2.table2_tables(frame, NAMES)[0].notes


def test_the_star_is_the_paired_t_test_against_the_best_by_mean():
    ours, best, other = [1.0, 1.1, 0.9, 1.05], [1.1, 1.21, 1.02, 1.13], [0.8, 1.5, 1.4, 1.3]
    rows = [*seeds("diffcdr", ours), *seeds("lacdr", best), *seeds("emcdr", other)]
    frame = table2.table2_frame(results(*rows), NAMES)
    row = frame.set_index("model").loc["diffcdr"]
    expected = stats.ttest_rel(ours, best).pvalue
    assert row["baseline"] == "lacdr"
    assert row["p_value"] == pytest.approx(expected)
    assert expected < 0.05
    cell = records(table2.table2_tables(frame, NAMES)[0])[0]
    assert cell["DiffCDR"].startswith("**1.0125**∗ ± ")
    assert cell["EMCDR"] == "1.2500 ± 0.3109"
    assert (cell["Improve"], cell["Seeds"]) == ("9.2%", "4")


def test_no_star_where_diffcdr_is_significantly_worse():
    rows = [*seeds("diffcdr", [1.1, 1.21, 1.02, 1.13]), *seeds("lacdr", [1.0, 1.1, 0.9, 1.05])]
    frame = table2.table2_frame(results(*rows), NAMES)
    assert frame.set_index("model").loc["diffcdr", "p_value"] < 0.05
    cell = records(table2.table2_tables(frame, NAMES)[0])[0]
    assert "∗" not in "".join(cell.values())
    assert cell["Improve"].startswith("−")


def test_table2_layout_puts_the_paper_and_the_difference_below():
    rows = [*seeds("emcdr", [1.0]), *seeds("diffcdr", [1.2])]
    table = table2.table2_tables(table2.table2_frame(results(*rows), NAMES), NAMES)[0]
    ours, paper, difference = records(table)
    assert (ours["EMCDR"], ours["DiffCDR"], ours["Improve"]) == ("**1.0000**", "1.2000", "−20.0%")
    assert (ours["p"], paper["p"]) == ("n/a", "")
    assert (paper["EMCDR"], paper["DiffCDR"], paper["Improve"]) == ("1.3596", "**1.0435**∗", "6.0%")
    assert (difference["EMCDR"], difference["DiffCDR"]) == ("−0.3596", "+0.1565")
    assert [row[""] for row in (ours, paper, difference)] == ["ours", "paper", "difference"]
    assert any("needs at least two pairs" in note for note in table.notes)


def test_ranking_metrics_take_the_papers_names_and_the_higher_is_better():
    rows = [*seeds("emcdr", [0.010], "dcg@20"), *seeds("diffcdr", [0.011], "dcg@20")]
    elsewhere = results(*seeds("emcdr", [0.5], "dcg@20"), objective="rating")
    frame = table2.table2_frame(pd.concat([results(*rows, objective="ranking"), elsewhere]), NAMES)
    row = frame.set_index("model").loc["diffcdr"]
    assert (row["paper"], row["baseline"]) == (0.01026, "emcdr")
    assert row["improvement"] == pytest.approx(0.1)
    table = table2.table2_tables(frame, NAMES)[0]
    ours = records(table)[0]
    assert (ours["Metric"], ours["DiffCDR"], ours["EMCDR"]) == ("N@20†", "**0.01100**", "0.01000")
    assert any("Inferred" in note for note in table.notes)


def test_a_diverged_seed_is_not_averaged_away():
    frame = table2.table2_frame(results(*seeds("emcdr", [1.0, math.nan])), NAMES)
    assert pd.isna(frame["mean"].item())
    assert frame["seeds"].item() == 2
    assert records(table2.table2_tables(frame, NAMES)[0])[0]["EMCDR"] == "n/a"


def test_the_published_improvements_follow_from_the_published_values_up_to_rounding():
    whole = published("table2")
    assert len(whole) == 3 * 3 * 4 * 7
    for (_, _, metric), part in whole.groupby(["task", "beta", "metric"]):
        ours = BY_NAME[OF_THE_PAPER[metric]]
        values = part.set_index("model")["value"]
        best = summaries.best_other(values, "diffcdr", ours)
        gain = 100 * table2.improvement(values["diffcdr"], values[best], ours)
        unit = 1e-5 if ours.higher_is_better else 1e-4
        rounding = 100 * unit / values[best] + 0.05
        assert abs(gain - part["improve_percent"].dropna().item()) <= rounding


def test_the_published_ablation_agrees_with_the_published_table2():
    cold, ablation = published("table2"), published("table3")
    assert len(ablation) == 5 * 2 * 3 * 3
    values = cold.pivot(index=["task", "beta", "metric"], columns="model", values="value")
    rows = ablation.pivot(index=["task", "beta", "metric"], columns="row", values="value")
    values = values.loc[rows.index]
    np.testing.assert_array_equal(
        rows["best_cdr_m"], values[table3.models_of(PAPER)["best_cdr_m"]].min(axis=1)
    )
    np.testing.assert_array_equal(rows["ptupcdr"], values["ptupcdr"])
    np.testing.assert_array_equal(rows["diffcdr"], values["diffcdr"])


def test_best_mapping_model_is_formed_for_each_metric_apart():
    rows = [
        *seeds("cmf", [1.0, 1.2]),
        *seeds("lacdr", [1.05, 1.1]),
        *seeds("cmf", [1.3, 1.3], "rmse"),
        *seeds("lacdr", [1.4, 1.4], "rmse"),
        *seeds("ptupcdr", [0.5, 0.5]),
        *seeds("diffcdr_da", [1.2, 1.0]),
    ]
    frame = table3.table3_frame(results(*rows), CATALOG, PAPER).set_index(["metric", "row"])
    assert frame.loc[("mae", "best_cdr_m"), "model"] == "lacdr"
    assert frame.loc[("mae", "best_cdr_m"), "mean"] == pytest.approx(1.075)
    assert frame.loc[("rmse", "best_cdr_m"), "model"] == "cmf"
    assert frame.loc[("mae", "best_cdr_m"), "paper"] == 1.1295
    assert frame.loc[("mae", "diffcdr_da"), "paper"] == 1.0843
    mae = table3.table3_tables(frame.reset_index(), NAMES)[0]
    by_row = {(row["", "Method"], row["", ""]): row["β = 20%", "Task 1"] for row in records(mae)}
    assert by_row["PTUPCDR", "ours"] == "**0.5000**"
    assert by_row["Best CDR M†", "difference"] == "−0.0545"
    assert by_row["DiffCDR DA", "ours"] == "1.1000"


def test_significance_pools_users_over_the_seeds_and_corrects_over_the_baselines():
    store, rng = Store(), np.random.default_rng(0)
    count = [1, 2, 3, 4]
    ours = [0.5, 1.0, 2.0, 2.5]
    others = {"emcdr": [0.9, 1.5, 2.2, 3.5], "lacdr": [0.4, 1.3, 2.6, 2.4]}
    maes = {"diffcdr": rng.normal(1, 0.1, 2), "emcdr": rng.normal(2, 0.1, 2), "lacdr": rng.normal(3, 0.1, 2)}
    for seed in (0, 1):
        for model, absolute in {"diffcdr": ours, **others}.items():
            files = {"user_errors.parquet": user_errors(absolute, count)}
            finish(store, model, f"tiny|b20-s{seed}", errors(maes[model][seed], 1), files=files)
    frame = tests.significance_frame(source_of()).set_index(["metric", "baseline"])
    row = frame.loc[("mae", "emcdr")]
    assert row["difference"] == pytest.approx((maes["diffcdr"] - maes["emcdr"]).mean())
    assert row["t_p"] == pytest.approx(stats.ttest_rel(maes["diffcdr"], maes["emcdr"]).pvalue)
    assert (row["users"], row["seeds"]) == (4, 2)
    assert row["user_difference"] == pytest.approx((sum(ours) - sum(others["emcdr"])) / sum(count))
    assert row["low"] <= row["user_difference"] <= row["high"] < 0
    own = np.divide(ours, count)
    p = {m: stats.wilcoxon(own - np.divide(other, count)).pvalue for m, other in others.items()}
    assert row["wilcoxon_users_p"] == pytest.approx(p["emcdr"])
    assert row["wilcoxon_users_holm"] == pytest.approx(min(1, 2 * p["emcdr"]))
    # Equal errors within a user: the root of the mean square is the mean error.
    assert frame.loc[("rmse", "emcdr"), "wilcoxon_users_p"] == pytest.approx(p["emcdr"])
    assert "over seeds: all 2 differences are equal" in frame.loc[("rmse", "emcdr"), "undefined"]


def test_significance_says_why_a_test_is_undefined():
    store = Store()
    for model in ("diffcdr", "emcdr"):
        finish(store, model, "tiny|b20-s0", errors(1.0, 1.2))
    row = tests.significance_frame(source_of()).iloc[0]
    assert pd.isna(row["t_p"])
    assert row["undefined"] == "over seeds: needs at least two pairs, got 1; over users: no errors by user"
    (table,) = tests.significance_tables(tests.significance_frame(source_of()), NAMES)
    shown = records(table)[0]
    assert shown["Over seeds", "t-test p"] == "n/a"
    assert shown["", "DiffCDR against"] == "EMCDR"


NO_GROUPS = ranking.groups_frame(
    pd.DataFrame(columns=[*ranking.GROUPS, "recall", "listed"]).assign(
        **dict.fromkeys([*ranking.BEYOND, *ranking.OF_HISTORY], 0.0)
    )
)


def test_random_has_one_row_for_every_selection_rule():
    metric = "ndcg@20"
    rows = [
        ("tiny", 0.2, 0, m, s, metric, v)
        for m, s, v in [("emcdr", "validation", 0.2), ("emcdr", "last", 0.1), ("random", "last", 0.01)]
    ]
    frame = ranking.ranking_frame(results(*rows, objective="ranking"), ["emcdr", "random"])
    (table,) = ranking.ranking_tables(frame, NO_GROUPS, Names(CATALOG, replace(PAPER, validation=True)))
    assert [(row["Model"], row["nDCG@20"]) for row in records(table)] == [
        ("EMCDR", "**0.2000**"),
        ("Random", "0.0100"),
    ]


def of_lists(values, task="tiny", metric="ndcg@20"):
    """Lists of tuned under the validation rule, by model."""
    rows = [(task, 0.2, 0, model, "validation", metric, value) for model, value in values.items()]
    return results(*rows, objective="ranking")


LISTS = {"choice_diffusion": 0.26, "autoencoder": 0.24, "item_regression": 0.25, "popularity": 0.2}
OF_TUNED = Names(CATALOG, TUNED)


def test_lists_have_one_row_a_model_the_best_first():
    groups = pd.DataFrame(
        [
            ("tiny", 0.2, 0, "choice_diffusion", "all", "all", 0.5, 0.25, 3.0, None, None, None, None),
            (
                "tiny",
                0.2,
                0,
                "choice_diffusion",
                "popularity",
                "tail",
                None,
                None,
                None,
                0.1,
                0.3,
                None,
                None,
            ),
            ("tiny", 0.2, 0, "choice_diffusion", "history", "10–19", None, None, None, None, None, 0.4, 1),
            ("tiny", 0.2, 0, "choice_diffusion", "history", "5–9", None, None, None, None, None, 0.2, 0),
        ],
        columns=[*ranking.GROUPS, *ranking.BEYOND, *ranking.OF_THIRDS, *ranking.OF_HISTORY],
    )
    frame = ranking.ranking_frame(of_lists(LISTS), list(LISTS))
    whole, thirds, lengths = ranking.ranking_tables(frame, ranking.groups_frame(groups), OF_TUNED)
    rows = records(whole)
    assert [(row["Model"], row["nDCG@20"], row["Kind"]) for row in rows] == [
        ("DiffCDR for choices", "**0.2600**", "trained"),
        ("Item regression", "0.2500", "simple"),
        ("Auto-encoder", "0.2400‡", "trained"),
        ("Popularity", "0.2000", "knows no user"),
    ]
    beyond = [rows[0][name] for name in ("Coverage", "Overlap of lists", "Self-information")]
    assert beyond == ["50.0%", "25.0%", "3.00"]
    (row,) = records(thirds)
    assert (row["Recall@20", "Tail"], row["Share of places", "Tail"]) == ("0.1000", "30.0%")
    (row,) = records(lengths)
    # By length, not by letter.
    assert [(name[1], row[name]) for name in row if name[0] == "nDCG@20"] == [
        ("5–9", "0.2000"),
        ("10–19", "0.4000"),
    ]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"cmf": 0.01, "emcdr": 0.02}, "Every model of the profile (CMF, EMCDR) has a lower nDCG@20 than"),
        ({"cmf": 0.4, "emcdr": 0.02}, "that were run: EMCDR (in 1 of 1)."),
        ({"cmf": 0.4, "emcdr": 0.5}, "Every model of the profile has a higher nDCG@20 than popularity"),
        ({}, ""),
    ],
)
def test_who_loses_to_popularity_is_said_from_the_numbers(values, said):
    frame = ranking.ranking_frame(of_lists({**values, "popularity": 0.1}), [*values, "popularity"])
    sentence = ranking.against_popularity(frame, NAMES)
    assert said in sentence
    assert bool(sentence) == bool(values)


def test_the_papers_names_are_those_of_its_protocol_alone():
    titles = {p.name: [m.title for m in of_table2(p)] for p in (PAPER, TUNED)}
    assert titles["paper"] == ["MAE", "RMSE", "N@20†", "H@20†"]
    assert titles["tuned"] == ["MAE", "RMSE", "nDCG@20", "Hit rate@20"]
    stars = results(("tiny", 0.2, 0, "star_diffusion", "validation", "mae", 1.0))
    frame = table2.table2_frame(
        pd.concat([stars, of_lists(LISTS), of_lists(LISTS, metric="dcg@20")]), OF_TUNED
    )
    first, lists, *_ = table2.table2_tables(frame, OF_TUNED)
    assert lists.caption == "Lists. Selected on validation users"
    assert [row["Metric"] for row in records(first)] == ["MAE"]
    (row,) = records(lists)
    assert (row["Metric"], row["Auto-encoder"], row["Best control"]) == (
        "nDCG@20",
        "0.24000‡",
        "0.25000 Item regression",
    )
    assert "DiffCDR for stars" not in row


def test_lists_are_tested_over_users_by_their_own_model():
    store, users = Store(), range(6)
    own = {
        "choice_diffusion": [0.5, 0.6, 0.7, 0.4, 0.9, 0.8],
        "popularity": [0.1, 0.2, 0.2, 0.1, 0.7, 0.3],
        "autoencoder": [0.5, 0.5, 0.8, 0.4, 0.8, 0.9],
    }
    for model, values in own.items():
        scores = pd.DataFrame({"user": users, "ndcg@20": values, "hr@20": 1.0})
        cold = {("cold", "validation", name): scores[name].mean() for name in ("ndcg@20", "hr@20")}
        files = {"list_scores.parquet": scores}
        finish(store, model, "tiny|b20-s0", cold, "tuned", "ranking", files)
    frame = tests.significance_frame(source_of(TUNED, store)).set_index(["metric", "baseline"])
    row = frame.loc[("ndcg@20", "popularity")]
    differences = np.subtract(own["choice_diffusion"], own["popularity"])
    assert row["user_difference"] == pytest.approx(differences.mean())
    assert row["wilcoxon_users_p"] == pytest.approx(stats.wilcoxon(differences).pvalue)
    assert row["wilcoxon_users_holm"] == pytest.approx(2 * row["wilcoxon_users_p"])
    assert 0 < row["low"] < row["user_difference"] < row["high"]
    assert frame.loc[("hr@20", "popularity"), "user_difference"] == 0


def test_ranking_sets_warm_beside_cold_on_the_later_half():
    cold = results(("tiny", 0.2, 0, "emcdr", "last", "hr@20_later", 0.1), objective="ranking")
    warm = results(("tiny", 0.2, 0, "emcdr", "last", "hr@20", 0.2), objective="ranking", stage="warm")
    frame = ranking.ranking_frame(pd.concat([cold, warm]), ["emcdr"])
    assert set(frame["half"]) == {"later"}
    (table,) = ranking.ranking_tables(frame, NO_GROUPS, NAMES)
    assert [(row[""], row["EMCDR"]) for row in records(table)] == [
        ("cold", "**0.10000**"),
        ("warm", "**0.20000**"),
    ]


def test_throughput_is_samples_of_all_replicas_by_seconds():
    row = {"task": "tiny", "beta": 0.2, "model": "emcdr", "device": "cpu", "replicas": 2}
    row |= {"train_samples": 30_000, "train_seconds": 2.0, "test_samples": 8_000, "test_users": 500}
    frame = table4.table4_frame(
        pd.DataFrame([{**row, "seed": 0, "test_seconds": 0.5}, {**row, "seed": 1, "test_seconds": 1.0}])
    ).set_index("phase")
    assert frame.loc["train", ["mean", "cells", "paper"]].tolist() == [15.0, 2, 39.2]
    assert frame.loc["test", ["mean", "paper"]].tolist() == [12.0, 125.1]
    assert frame.loc["test_users", "mean"] == pytest.approx(0.75)
    assert pd.isna(frame.loc["test_users", "paper"])
    (table,) = table4.table4_tables(frame.reset_index(), NAMES)
    assert records(table)[0]["Device"] == "cpu, 2 replicas at once"


def test_an_untrained_model_has_no_training_throughput():
    row = {"task": "tiny", "model": "tgt", "device": "cpu", "replicas": 1, "test_samples": 10}
    row |= {"train_samples": 0, "train_seconds": 0.0, "test_users": 5, "test_seconds": 1.0}
    assert set(table4.table4_frame(pd.DataFrame([row]))["phase"]) == {"test", "test_users"}


def test_figure3_compares_both_stages_on_the_later_half():
    store = Store()
    metrics = errors(1.0, 1.2) | {("cold", "last", "mae"): 7.0}
    finish(store, "emcdr", "tiny|b20-s0", metrics)
    frame = figure3.figure3_frame(source_of().results, PAPER).set_index(["metric", "stage"])
    assert frame.loc[("mae", "cold"), "mean"] == 1.0
    assert frame.loc[("mae", "warm"), "mean"] == pytest.approx(0.9)
    (table,) = figure3.figure3_tables(frame.reset_index(), NAMES, {("tiny", 0.2): "3–4"})
    cold, warm, difference = records(table)[:3]
    assert (cold["EMCDR"], warm["EMCDR"], difference["EMCDR"]) == ("**1.0000**", "**0.9000**", "−10.0%")
    assert cold["Left out"] == "3–4"


def test_the_summary_counts_what_the_profile_trains_by_state():
    metric = ("cold", "last", "mae")
    finish(Store(), "emcdr", "tiny|b20-s0", {metric: 1.0})
    finish(Store(), "emcdr", "tiny|b50-s0", {metric: 1.0}, fingerprint="of yesterday")
    frame = summary_frame(source_of().states).set_index(["objective", "model"])
    assert set(frame["task"]) == {"tiny"}
    row = frame.loc[("rating", "emcdr")]
    assert row[["finished", "stale", "missing", "diverged", "expected"]].tolist() == [1, 1, 2, 0, 4]
    assert row["trials"] == "b20-s1 b50-s0 b50-s1"
    assert frame.loc[("ranking", "emcdr"), "finished"] == 0
    assert ("rating", "random") not in frame.index
    (table,) = summary_part(CATALOG, {"paper": source_of()}).tables
    assert records(table)[0]["EMCDR"] == "1 of 4, 1 stale"


def test_distances_are_averaged_over_seeds_and_keep_their_reasons():
    store = Store()
    for seed, frechet in ((0, 1.0), (1, 3.0)):
        rows = [
            ("emcdr", "test", None, frechet, 0.5, 1.0, 0.9, None),
            ("lacdr", "test", None, None, None, None, None, "diverged"),
            ("source", "test", None, 0.5, 0.1, 0.1, 0.1, None),
            ("diffcdr_dim", "test", 5.0, 9.0, 9.0, 9.0, 0.0, None),
        ]
        columns = ["model", "side", "nfe", "frechet", "mmd", "euclidean", "cosine", "undefined"]
        frame = pd.DataFrame(rows, columns=columns)
        entry = store.embeddings("paper", AXES.parse(f"tiny|b20-s{seed}"))
        entry.write({"distances.parquet": parquet(frame)}, "made by hand")
    means = figure4.figure4_frame(source_of().analysis("embeddings", "distances.parquet", figure4.COLUMNS))
    emcdr = means.set_index("model").loc["emcdr"]
    assert (emcdr["frechet"], emcdr["cells"]) == (2.0, 2)
    (table,) = figure4.figure4_tables(means, NAMES)
    cells = {row["", "Vectors"]: row["Test users", "Fréchet²"] for row in records(table)}
    assert cells == {
        "Source vectors": "0.500",
        "EMCDR": "**2.000**",
        "LACDR": "n/a",
        "DiffCDR before alignment, NFE 5": "9.000",
    }
    assert table.notes == ("n/a: diverged.",)


CONTROLS = ["item_mean", "ridge_source"]


def with_controls(metric="mae", objective="rating", values=(1.0, 1.2, 1.1, 1.3)):
    """DiffCDR, EMCDR, item mean and ridge with these values."""
    names = ("diffcdr", "emcdr", *CONTROLS)
    rows = [row for name, value in zip(names, values, strict=True) for row in seeds(name, [value], metric)]
    return results(*rows, objective=objective)


def test_table2_names_the_best_control_and_marks_what_does_not_beat_it():
    frame = table2.table2_frame(with_controls(), WITH_CONTROLS)
    assert set(frame["control"]) == {"item_mean"}
    assert set(frame["control_mean"]) == {1.1}
    # DiffCDR is compared with models, not with controls.
    assert frame.set_index("model").loc["diffcdr", "baseline"] == "emcdr"
    main, controls = table2.table2_tables(frame, WITH_CONTROLS)
    row = records(main)[0]
    assert (row["DiffCDR"], row["EMCDR"]) == ("**1.0000**", "1.2000‡")
    assert row["Best control"] == "1.1000 Item mean"
    assert "Item mean" not in main.frame
    assert summaries.BEATEN_NOTE in main.notes
    assert records(controls)[0]["Item mean"] == "**1.1000**"


def test_controls_alone_are_a_table_too():
    (table,) = table2.table2_tables(
        table2.table2_frame(results(*seeds("item_mean", [1.1])), WITH_CONTROLS), WITH_CONTROLS
    )
    assert table.caption.startswith("Controls")
    assert [row["Item mean"] for row in records(table)] == ["**1.1000**"]


def test_a_model_that_ties_with_a_control_does_not_beat_it():
    frame = table2.table2_frame(with_controls(values=(1.1, 1.2, 1.1, 1.3)), WITH_CONTROLS)
    assert records(table2.table2_tables(frame, WITH_CONTROLS)[0])[0]["DiffCDR"] == "**1.1000‡**"


def test_the_best_control_of_a_ranking_is_the_highest():
    ranked = with_controls("dcg@20", "ranking", (0.03, 0.01, 0.02, 0.015))
    frame = table2.table2_frame(ranked, WITH_CONTROLS)
    assert set(frame["control_mean"]) == {0.02}
    row = records(table2.table2_tables(frame, WITH_CONTROLS)[0])[0]
    assert (row["DiffCDR"], row["EMCDR"]) == ("**0.03000**", "0.01000‡")
    whole = ranking.ranking_frame(ranked, [*MODELS, *CONTROLS])
    row = records(ranking.ranking_tables(whole, NO_GROUPS, WITH_CONTROLS)[0])[0]
    assert (row["EMCDR"], row["Item mean"]) == ("0.01000‡", "0.02000")


def test_without_controls_nothing_is_marked():
    frame = table2.table2_frame(with_controls(), WITHOUT)
    (table,) = table2.table2_tables(frame, WITHOUT)
    assert "‡" not in "".join(records(table)[0].values())
    assert "Best control" not in table.frame
    assert summaries.BEATEN_NOTE not in table.notes


def test_optimism_is_best_on_test_minus_validation():
    rows = [
        ("tiny", 0.2, seed, "diffcdr", rule, "mae", value)
        for seed, pair in enumerate([(1.0, 0.9), (1.2, 1.0)])
        for rule, value in zip(("validation", "best_on_test"), pair, strict=True)
    ]
    frame = table2.table2_frame(results(*rows), NAMES)
    assert frame["optimism"].tolist() == pytest.approx([-0.15, -0.15])
    table = table2.table2_tables(frame, NAMES)[-1]
    assert table.caption.startswith("Optimism")
    assert records(table)[0]["DiffCDR"] == "−0.1500"
    (picture,) = table2.optimism_pictures(frame, NAMES)
    assert picture.formats["png"].startswith(b"\x89PNG")


def test_a_profile_without_validation_has_no_optimism():
    frame = table2.table2_frame(with_controls(), NAMES)
    assert frame["optimism"].isna().all()
    assert table2.optimism_pictures(frame, NAMES) == []


def test_the_ablation_has_the_best_control_beside_it():
    frame = table3.table3_frame(with_controls(), CATALOG, WITH_CONTROLS.profile).set_index("row")
    assert frame.loc["best_control", ["model", "mean"]].tolist() == ["item_mean", 1.1]
    assert frame.loc["diffcdr", "mean"] == 1.0


def test_support_pools_the_seeds_and_keeps_what_diverged():
    store = Store()
    for seed, absolute in ((0, [2.0, 9.0]), (1, [4.0, math.nan])):
        files = {"coverage.parquet": support(absolute, [4, 9])}
        finish(store, "emcdr", f"tiny|b20-s{seed}", errors(1, 1), files=files)
        files = {"coverage.parquet": support([3.6, 4.5], [4, 9])}
        finish(store, "item_mean", f"tiny|b20-s{seed}", errors(1, 1), files=files)
    frame = coverage.coverage_frame(source_of().table("coverage.parquet", coverage.COLUMNS))
    emcdr = frame[frame["model"] == "emcdr"].set_index(["by", "bucket"])
    seen = emcdr.loc[("item", "0")]
    assert (seen["count"], seen["mae"], seen["predicted"], seen["outside"]) == (8, 0.75, 4.0, 0.25)
    # Squares of equal errors: 4·0.5² and 4·1².
    assert seen["rmse"] == pytest.approx((5 / 8) ** 0.5)
    assert pd.isna(emcdr.loc[("item", "1–4"), "mae"])
    mae, rmse, outside = coverage.coverage_tables(frame, WITH_CONTROLS)
    rows = {(row["By"], row[""]): row for row in records(mae)}
    row = rows["Training ratings of the item", "0"]
    assert (row["EMCDR"], row["Best control"], row["Ratings"]) == ("**0.7500**", "0.9000 Item mean", "8")
    assert rows["Training ratings of the item", "1–4"]["EMCDR"] == "n/a"
    assert rmse.caption == "RMSE by support"
    assert records(outside)[0]["EMCDR"] == f"{2 / 13:.1%}"
    (picture,) = coverage.calibration_pictures(frame, NAMES)
    assert picture.formats["png"].startswith(b"\x89PNG")


def test_the_papers_values_stand_beside_the_papers_model_alone():
    """In `tuned` our model is another one than the paper's DiffCDR."""
    rows = [*seeds("diffcdr", [1.2]), *seeds("star_diffusion", [0.9])]
    frame = table2.table2_frame(results(*rows), Names(CATALOG, TUNED)).set_index("model")
    assert frame.loc["diffcdr", "paper"] == 1.0435
    assert pd.isna(frame.loc["star_diffusion", "paper"])
    assert frame.loc["star_diffusion", "baseline"] == "diffcdr"
    assert pd.isna(frame.loc["diffcdr", "baseline"])


def test_table4_has_models_of_one_device_in_one_row():
    row = {"task": "tiny", "beta": 0.2, "seed": 0, "device": "CPU, 1 thread", "replicas": 1}
    row |= {
        "train_samples": 1000,
        "train_seconds": 1.0,
        "test_samples": 10,
        "test_users": 5,
        "test_seconds": 1.0,
    }
    frame = pd.DataFrame([{**row, "model": model} for model in ("emcdr", "star_diffusion")])
    (table,) = table4.table4_tables(table4.table4_frame(frame), Names(CATALOG, TUNED))
    first = records(table)[0]
    assert first["EMCDR"] == first[TUNED.title_of("star_diffusion")] == "1.0"
