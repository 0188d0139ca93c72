"""Verdicts from hand-made cells: who is chosen, what is measured, and what it says."""

import math

import numpy as np
import pandas as pd
import pytest

from assets.report.verdict import families, recommended, verdict_frame, verdict_of_tasks
from assets.state.store import Store
from tests.assets.axes import CELL
from tests.assets.cells import errors, finish, user_errors
from tests.assets.report.sources import PAPER, PROFILES, TUNED, source_of

OURS = TUNED.title_of("star_diffusion")
COUNT = [2, 3, 1, 4, 2, 3, 2, 1]


def cell(store, model, validation, absolute, key="tiny|b20-s0", **more):
    """A cell with validation (MAE, RMSE), and a test error of `absolute` a rating."""
    noise = np.random.default_rng(len(model)).uniform(0.9, 1.1, len(COUNT))
    sums = [absolute * n * x for n, x in zip(COUNT, noise, strict=True)]
    mae, rmse = validation
    validated = pd.DataFrame({"mae": [mae], "rmse": [rmse]})
    files = {"validation.parquet": validated, "user_errors.parquet": user_errors(sums, COUNT)}
    finish(store, model, key, errors(absolute, absolute, "validation"), profile="tuned", files=files, **more)


@pytest.fixture
def store(tmp_path):
    store = Store(home=str(tmp_path))
    cell(store, "item_mean", (0.8, 1.0), 0.8)
    cell(store, "global_mean", (0.9, 1.1), 0.7)  # better on the test users, which nobody may know
    cell(store, "ridge_source", (0.7, 0.9), 0.69)
    cell(store, "cmf", (0.75, 0.89), 0.72)
    cell(store, "star_diffusion", (0.6, 0.88), 0.5)
    cell(store, "permuted_source", (0.1, 0.1), 0.1)
    return store


def test_the_best_by_validation_is_compared_on_the_test_users(store):
    frame = verdict_frame(source_of(TUNED, store)).set_index(["metric", "question"])
    transfer = frame.loc[("mae", "transfer")]
    assert (transfer["model"], transfer["against"]) == ("star_diffusion", "item_mean")
    assert transfer["value"] == pytest.approx(0.5, rel=0.1)
    assert transfer["difference"] == pytest.approx(transfer["value"] - transfer["value_against"])
    assert transfer["low"] < transfer["difference"] < transfer["high"] < 0
    assert transfer["answer"] == "yes"
    assert frame.loc[("rmse", "learning")][["model", "against"]].tolist() == [
        "star_diffusion",
        "ridge_source",
    ]
    assert frame.loc[("rmse", "baselines")][["model", "against"]].tolist() == ["star_diffusion", "cmf"]


def test_rmse_is_the_root_of_the_pooled_squares(store):
    row = verdict_frame(source_of(TUNED, store)).set_index(["metric", "question"]).loc[("rmse", "transfer")]
    sums = store.model("tuned", "star_diffusion", CELL).table("user_errors.parquet")
    assert row["value"] == pytest.approx((sums["squared"].sum() / sum(COUNT)) ** 0.5)


def test_distributions_are_compared_by_crps_with_distributions_alone(store):
    for model, crps in (("star_diffusion", 0.4), ("star_logit", 0.45), ("star_diffusion_gaussian", 0.41)):
        cell(store, model, (0.6, 0.88), 0.5)
        entry = store.model("tuned", model, CELL)
        files = {name: entry.table(name) for name in ("validation.parquet", "user_errors.parquet")}
        files["validation.parquet"]["crps"] = crps
        files["user_errors.parquet"]["crps"] = crps * files["user_errors.parquet"]["count"]
        finish(store, model, CELL.key, errors(0.5, 0.5, "validation"), profile="tuned", files=files)
    frame = verdict_frame(source_of(TUNED, store))
    frame = frame[frame["metric"] == "crps"].set_index("question")
    assert frame["against"].to_dict() == {
        "gain": "star_logit",
        "learning": "star_logit",
        "diffusion": "star_diffusion_gaussian",
    }
    assert frame.loc["learning", "difference"] == pytest.approx(-0.05)
    assert frame.loc["diffusion", "difference"] == pytest.approx(-0.01)


def test_the_ablations_without_diffusion_are_known():
    assert families(PROFILES["strict"])["diffusion"].theirs == ["diffcdr_at"]
    assert families(TUNED)["diffusion"].theirs == ["star_diffusion_gaussian", "star_diffusion_mean"]
    theirs = families(TUNED, "ranking")["diffusion"].theirs
    assert theirs == ["choice_diffusion_gaussian", "choice_diffusion_mean"]


def test_a_model_that_harms_is_said_to(tmp_path):
    store = Store(home=str(tmp_path))
    cell(store, "item_mean", (0.8, 1.0), 0.5)
    cell(store, "emcdr", (0.9, 1.1), 0.9)
    row = verdict_frame(source_of(TUNED, store)).set_index(["metric", "question"]).loc[("mae", "transfer")]
    assert (row["model"], row["answer"]) == ("emcdr", "no")
    assert set(recommended(source_of(TUNED, store))["model"]) == {"item_mean"}
    tables = verdict_of_tasks(source_of(TUNED, store), ["tiny"])
    text = " ".join(str(cell) for table in tables for cell in table.frame.to_numpy().ravel())
    assert "no, it harms" in text
    assert "Item mean" in text


def test_equal_errors_leave_it_open(tmp_path):
    store = Store(home=str(tmp_path))
    for model, validation in (("item_mean", (0.8, 1.0)), ("emcdr", (0.7, 0.9))):
        cell(store, model, validation, 0.5)
    sums = store.model("tuned", "emcdr", CELL).table("user_errors.parquet")
    files = {
        "user_errors.parquet": sums,
        "validation.parquet": pd.DataFrame({"mae": [0.8], "rmse": [1.0]}),
    }
    finish(store, "item_mean", "tiny|b20-s0", errors(0.5, 0.5, "validation"), profile="tuned", files=files)
    row = verdict_frame(source_of(TUNED, store)).set_index(["metric", "question"]).loc[("mae", "transfer")]
    assert (row["difference"], row["answer"]) == (0.0, "open")


def test_who_has_more_seeds_is_not_beaten_by_who_lacks_one(store):
    cell(store, "cmf", (0.1, 0.1), 0.72, key="tiny|b20-s1")
    row = verdict_frame(source_of(TUNED, store)).set_index(["metric", "question"]).loc[("rmse", "transfer")]
    assert row["model"] == "cmf"


def test_a_model_that_diverged_on_one_of_two_seeds_is_not_recommended(tmp_path):
    store = Store(home=str(tmp_path))
    for seed, unstable in ((0, 0.1), (1, math.nan)):
        key = f"tiny|b20-s{seed}"
        cell(store, "ptupcdr", (unstable, unstable), 0.4, key=key)
        cell(store, "emcdr", (0.7, 0.7), 0.5, key=key)
        # Worse than EMCDR over both seeds, and better over the one in which nothing diverged.
        cell(store, "cmf", ((0.6, 0.6) if seed == 0 else (0.9, 0.9)), 0.6, key=key)
        cell(store, "item_mean", (1.0, 1.0), 0.9, key=key)
    source = source_of(TUNED, store)
    assert set(recommended(source)["model"]) == {"emcdr"}
    row = verdict_frame(source).set_index(["metric", "question"]).loc[("mae", "transfer")]
    assert (row["model"], row["seeds"]) == ("emcdr", 2)


def lists(store, model, validation, ndcg, hits, key="tiny|b20-s0"):
    """A cell of lists with a validation nDCG@20, and test users' nDCG@20 and hits."""
    validated = pd.DataFrame({"ndcg@20": [validation]})
    scores = pd.DataFrame({"user": range(len(ndcg)), "ndcg@20": ndcg, "hr@20": hits})
    files = {"validation.parquet": validated, "list_scores.parquet": scores}
    cold = {("cold", "validation", "ndcg@20"): float(np.mean(ndcg))}
    finish(store, model, key, cold, "tuned", "ranking", files)


@pytest.fixture
def listed(tmp_path):
    store = Store(home=str(tmp_path))
    lists(store, "popularity", 0.1, [0.1, 0.1, 0.2, 0.2], [0, 1, 1, 0])
    lists(store, "item_regression", 0.2, [0.2, 0.1, 0.3, 0.2], [1, 1, 1, 0])
    lists(store, "graph_filter", 0.15, [0.9, 0.9, 0.9, 0.9], [1, 1, 1, 1])  # what nobody may know
    lists(store, "autoencoder", 0.25, [0.3, 0.2, 0.3, 0.3], [1, 1, 1, 0])
    lists(store, "choice_diffusion", 0.3, [0.4, 0.3, 0.5, 0.4], [1, 1, 1, 1])
    lists(store, "choice_diffusion_mean", 0.28, [0.4, 0.3, 0.5, 0.4], [1, 1, 1, 1])
    lists(store, "choice_diffusion_popular", 0.9, [0.4, 0.3, 0.5, 0.4], [1, 1, 1, 1])
    return store


def test_lists_are_chosen_by_validation_and_judged_by_ndcg_and_hit_rate(listed):
    frame = verdict_frame(source_of(TUNED, listed)).set_index(["metric", "question"])
    against = {
        "gain": "item_regression",
        "transfer": "popularity",
        "learning": "item_regression",
        "baselines": "autoencoder",
        "diffusion": "choice_diffusion_mean",
    }
    for metric in ("ndcg@20", "hr@20"):
        assert frame.loc[metric]["against"].to_dict() == against
        assert set(frame.loc[metric]["model"]) == {"choice_diffusion"}
    row = frame.loc[("ndcg@20", "gain")]
    assert row["difference"] == pytest.approx(0.2)
    assert 0 < row["low"] <= row["difference"] <= row["high"]
    assert (row["answer"], row["users"]) == ("yes", 4)
    assert frame.loc[("ndcg@20", "diffusion"), "answer"] == "open"
    assert frame.loc[("hr@20", "gain"), "difference"] == pytest.approx(0.25)


def test_the_two_questions_of_a_shop_are_answered_in_words(listed):
    cell(listed, "item_mean", (0.8, 1.0), 0.8)
    cell(listed, "star_diffusion", (0.6, 0.88), 0.5)
    answers, _ = verdict_of_tasks(source_of(TUNED, listed), ["tiny"])
    stars, shown = answers.frame.to_dict("records")
    assert (stars["Use"], shown["Use"]) == (OURS, TUNED.title_of("choice_diffusion"))
    assert shown["Question"] == "What should we show them?"
    assert shown["Answer"].startswith(
        "Show lists by DiffCDR for choices: nDCG@20 0.4000 against 0.2000 of Item regression, +0.2000 (+0."
    )
    assert "Does knowing the user help? nDCG@20: yes, +0.2500 (+166.7%)" in shown["Answer"]


def test_a_simple_list_that_alone_has_every_seed_is_not_said_to_be_the_best(listed):
    for key in ("tiny|b20-s0", "tiny|b20-s1"):
        lists(listed, "item_regression", 0.1, [0.1, 0.1, 0.1, 0.1], [1, 1, 1, 1], key)
    (row,) = verdict_of_tasks(source_of(TUNED, listed), ["tiny"])[0].frame.to_dict("records")
    assert "nothing is better" not in row["Answer"]
    assert "Show lists by Item regression: not because it is better, but others lack a seed" in row["Answer"]


def test_a_simple_list_that_is_the_best_is_used_and_said_to_be(listed):
    lists(listed, "item_regression", 0.7, [0.5, 0.6, 0.7, 0.6], [1, 1, 1, 1])
    source = source_of(TUNED, listed)
    assert set(recommended(source)["model"]) == {"item_regression"}
    frame = verdict_frame(source)
    assert "gain" not in set(frame["question"])
    (row,) = verdict_of_tasks(source, ["tiny"])[0].frame.to_dict("records")
    assert "Show lists by Item regression: a simple row, and nothing is better" in row["Answer"]
    assert "the best is DiffCDR for choices: nDCG@20 0.4000 against 0.6000" in row["Answer"]
    assert "which is worse" in row["Answer"]


def test_stale_cells_choose_nothing(store):
    cell(store, "cmf", (0.1, 0.1), 0.1, fingerprint="of yesterday")
    assert set(recommended(source_of(TUNED, store))["model"]) == {"star_diffusion"}


def test_the_tables_say_which_model_to_use(store):
    sentences, numbers = verdict_of_tasks(source_of(TUNED, store), ["tiny"])
    (row,) = sentences.frame.to_dict("records")
    assert row["Use"] == OURS
    assert row["Question"] == "Which stars would this user give?"
    assert row["Answer"].startswith(f"Predict stars by {OURS}: MAE 0.")
    assert "Does knowing the user help? MAE: yes, −" in row["Answer"]
    assert len(numbers.frame) == 8
    assert verdict_of_tasks(source_of(TUNED, store), ["video_music"]) == []


def test_two_models_are_named_where_the_metrics_disagree(store):
    cell(store, "ptupcdr", (0.75, 0.5), 0.72)
    (row,) = verdict_of_tasks(source_of(TUNED, store), ["tiny"])[0].frame.to_dict("records")
    assert row["Use"] == f"{OURS} (MAE), PTUPCDR (RMSE)"


def test_without_validation_users_there_is_no_verdict(tmp_path):
    store = Store(home=str(tmp_path))
    finish(store, "emcdr", "tiny|b20-s0", errors(1, 1))
    assert source_of(PAPER, store).validated().empty
    assert verdict_frame(source_of(PAPER, store)).empty


@pytest.mark.parametrize("objective", ["rating", "ranking"])
def test_every_model_of_a_profile_is_on_one_side_of_transfer(objective):
    for profile in PROFILES.values():
        transfer = families(profile, objective)["transfer"]
        named = {*transfer.ours, *transfer.theirs}
        assert not set(transfer.ours) & set(transfer.theirs)
        rated = {n for n in (*profile.models, *profile.controls) if objective in profile.objectives_of(n)}
        assert rated - named <= {"permuted_source"}


def test_the_answer_to_an_undefined_interval_is_open(tmp_path):
    store = Store(home=str(tmp_path))
    for model, value in (("item_mean", 0.8), ("emcdr", 0.7)):
        validated = pd.DataFrame({"mae": [value], "rmse": [value]})
        files = {"validation.parquet": validated, "user_errors.parquet": user_errors([value], [1])}
        finish(store, model, "tiny|b20-s0", errors(0.5, 0.5, "validation"), profile="tuned", files=files)
    frame = verdict_frame(source_of(TUNED, store))
    assert set(frame["answer"]) == {"open"}
    _, numbers = verdict_of_tasks(source_of(TUNED, store), ["tiny"])
    assert {str(cell) for cell in numbers.frame["95 % interval"]} == {"n/a"}
