"""Trials: lists, grids and sampled spaces of settings, and the best of them."""

import dataclasses
import json
import math

import pandas as pd
import pytest

from assets.settings.profile import load_profiles
from assets.settings.space import Range, Space
from assets.training.trials import Sampled, Trial, Trials, of_space, plan, together

TUNED = load_profiles()["tuned"]
SPACE = Space({"lr": Range(low=1e-4, high=1.0, log=True), "latent": (4, 8), "nfe": Range(low=1, high=9)}, 40)


def score(settings) -> float:
    """Lowest at lr = 0.01, latent = 8, nfe = 3."""
    return abs(math.log10(settings["lr"]) + 2) + (settings["latent"] == 4) + abs(settings["nfe"] - 3) / 4


def run(trials: Trials, score=score) -> Trials:
    for number in range(len(trials)):
        settings = trials.ask()
        trials.tell(number, score(settings), {"epoch": 1})
    return trials


def with_trials(name, tried):
    entry = dataclasses.replace(TUNED.entries[name], trials=tried)
    return dataclasses.replace(TUNED, entries={**TUNED.entries, name: entry})


def test_a_list_is_tried_in_its_order_by_every_cell():
    trials = plan(TUNED, "lacdr", "video_music", seed=3)
    asked = [trials.ask() for _ in range(len(trials))]
    assert asked == TUNED.trials("lacdr", "video_music")
    assert trials.label(asked[4]) == "lr0.001-latent8"
    assert len(plan(TUNED, "tgt", "video_music", seed=3)) == 1
    with pytest.raises(IndexError, match="all 8 trials were asked for"):
        trials.ask()


def test_the_first_of_the_lowest_is_best_and_nan_is_last():
    trials = Trials([{"lr": lr} for lr in (1, 2, 3, 4, 5)])
    for number, value in enumerate((math.nan, 0.5, -math.inf, 0.25, 0.25)):
        trials.ask()
        trials.tell(number, value, {"epoch": 7, "validation_rmse": value})
    assert trials.best == 3
    assert list(trials.results["chosen"]) == [False, False, False, True, False]
    assert list(trials.results.columns) == ["lr", "epoch", "validation_rmse", "chosen"]
    assert trials.study == {"sampler": "list", "trials": 5}


def test_higher_may_be_better():
    trials = Trials([{"lr": 1}, {"lr": 2}, {"lr": 3}], higher_is_better=True)
    for number, value in enumerate((0.1, 0.3, math.nan)):
        trials.ask()
        trials.tell(number, value)
    assert trials.best == 1


def test_where_all_diverged_the_first_is_best():
    trials = run(Trials([{"lr": 1}, {"lr": 2}]), lambda _: math.nan)
    assert trials.best == 0


def test_answers_name_their_trial():
    trials = Trials([{"lr": 1}, {"lr": 2}])
    with pytest.raises(IndexError, match="ask before you tell"):
        trials.tell(0, 1.0)
    assert [trials.ask(), trials.ask()] == [{"lr": 1}, {"lr": 2}]
    trials.tell(1, 0.1)
    trials.tell(0, 0.2)
    with pytest.raises(IndexError, match="trial 0 is not open"):
        trials.tell(0, 0.2)
    assert trials.results.to_dict("records") == [{"lr": 1, "chosen": False}, {"lr": 2, "chosen": True}]
    with pytest.raises(IndexError, match="no trial was told"):
        _ = Trials([{}]).best


def epochs_run(trials: Trials, curves) -> list[int]:
    """How many epochs of each trial's scores are run before it is given up."""
    run = []
    for number, curve in enumerate(curves):
        trials.ask()
        for epoch, value in enumerate(curve, 1):
            if not trials.goes_on(number, epoch, value):
                break
        trials.tell(number, max(curve[:epoch]))
        run.append(epoch)
    return run


def epochs_run_together(trials: Trials, curves) -> list[int]:
    """The same of trials that are all asked for at first and reported epoch by epoch."""
    left = [number for number, _ in enumerate(curves) if trials.ask()]
    run = dict.fromkeys(left, 0)
    for epoch, values in enumerate(zip(*curves, strict=True), 1):
        run |= dict.fromkeys(left, epoch)
        left = [number for number in left if trials.goes_on(number, epoch, values[number])]
    for number, curve in enumerate(curves):
        trials.tell(number, max(curve[: run[number]]))
    return list(run.values())


def test_the_better_half_goes_on_beyond_a_rung():
    curves = [[level + epoch / 100 for epoch in range(20)] for level in (0.5, 0.1, 0.3, 0.6, 0.2, math.nan)]
    # The first is alone at the rungs of 3, 6 and 12 epochs; of the others only the better half goes on.
    for run in (epochs_run, epochs_run_together):
        trials = Trials([{"lr": lr} for lr in range(6)], higher_is_better=True)
        assert run(trials, curves) == [20, 3, 3, 20, 3, 3]
        assert trials.best == 3


def test_what_is_sampled_is_given_up_too_and_the_seed_gives_it():
    def run() -> tuple[list, Trials]:
        trials, epochs = of_space(SPACE, {}, 0), []
        for number in range(len(trials)):
            settings = trials.ask()
            for epoch in range(1, 11):
                value = score(settings) + 1 / epoch
                if not trials.goes_on(number, epoch, value):
                    break
            trials.tell(number, value)
            epochs.append(epoch)
        return epochs, trials

    (epochs, trials), (again, _) = run(), run()
    assert epochs == again
    assert sum(epochs) < 0.8 * 10 * len(trials)
    assert epochs[trials.best] == 10


def test_choices_without_a_count_are_a_grid():
    space = Space({"a": (1, 2), "b": ("x", "y")})
    trials = of_space(space, {"model": "emcdr"}, seed=0)
    asked = [trials.ask() for _ in range(len(trials))]
    assert asked == [{"model": "emcdr", "a": a, "b": b} for a in (1, 2) for b in ("x", "y")]
    assert trials.study["sampler"] == "grid"
    assert len(of_space(dataclasses.replace(space, count=9), {}, seed=0)) == 4


def test_a_space_is_searched_within_its_ends_and_better_than_at_random():
    found = [run(of_space(SPACE, {"model": "lacdr"}, seed)).results for seed in range(5)]
    for results in found:
        assert len(results) == 40
        assert results["lr"].between(1e-4, 1.0).all()
        assert set(results["nfe"]) <= set(range(1, 10))
        assert set(results["latent"]) == {4, 8}
        assert not results.duplicated(["lr", "latent", "nfe"]).any()
        scores = results.apply(score, axis=1)
        assert scores[results["chosen"]].iloc[0] == scores.min()
        # The first ten are drawn at random.
        assert scores[20:].mean() < scores[:10].mean()


def test_the_seed_gives_the_search():
    one, same, other = (run(of_space(SPACE, {}, seed)).results for seed in (0, 0, 1))
    pd.testing.assert_frame_equal(one, same)
    assert not one["lr"].equals(other["lr"])


def test_a_trial_that_diverged_is_no_lesson_and_not_best():
    trials = run(of_space(SPACE, {}, 0), lambda s: math.nan if s["latent"] == 4 else score(s))
    assert trials.results.loc[trials.best, "latent"] == 8


def test_what_was_tried_is_not_tried_again():
    choices = Space({"a": tuple(range(6))}, 5)
    trials = run(of_space(choices, {}, 0), lambda settings: settings["a"])
    assert isinstance(trials, Sampled)
    assert trials.results["a"].is_unique


def test_a_study_is_plain_json():
    trials = run(of_space(SPACE, {}, 2))
    study = json.loads(json.dumps(trials.study))
    assert (study["sampler"], study["seed"], study["count"]) == ("TPESampler", 2, 40)
    assert study["space"]["lr"] == {"low": 1e-4, "high": 1.0, "log": True}


def test_a_profiles_space_lies_over_what_its_trials_have_in_common():
    space = Space({"margin": Range(low=0, high=2), "batch": Range(low=16, high=64)}, 3)
    trials = plan(with_trials("sscdr", space), "sscdr", "video_music", seed=0)
    settings = trials.ask()
    assert settings["model"] == "sscdr_rejecting"
    # A float's range has floats between whole ends too.
    assert isinstance(settings["margin"], float)
    assert isinstance(settings["batch"], int)
    assert trials.label({**settings, "margin": 0.5, "batch": 16}) == "margin0.5-batch16"


def test_cells_that_ask_for_the_same_are_trained_together():
    lists = [plan(TUNED, "lacdr", "video_music", seed) for seed in range(3)]
    asked = [Trial(cell, 0, trials.ask()) for cell, trials in enumerate(lists)]
    assert together(asked) == [asked]
    assert asked[0].settings == TUNED.trials("lacdr", "video_music")[0]
    asked = [Trial(cell, 0, of_space(SPACE, {}, seed).ask()) for cell, seed in enumerate((0, 1, 0))]
    assert together(asked) == [[asked[0], asked[2]], [asked[1]]]


def test_trials_that_differ_in_what_replicas_may_are_trained_together():
    lists = [plan(TUNED, "lacdr", "video_music", seed) for seed in range(2)]
    asked = [Trial(cell, n, trials.ask()) for cell, trials in enumerate(lists) for n in range(trials.ahead)]
    programs = together(asked, lambda model: ("lr",))
    expected = [[(n, cell) for n in numbers for cell in (0, 1)] for numbers in (range(4), range(4, 8))]
    assert [[(trial.number, trial.cell) for trial in program] for program in programs] == expected
    assert len(together(asked)) == 8


def test_a_space_is_asked_for_one_at_a_time_and_a_list_at_once():
    sampled, listed = of_space(SPACE, {}, 0), Trials([{"lr": 1}, {"lr": 2}])
    assert (sampled.ahead, listed.ahead) == (1, 2)
    for trials in (sampled, listed):
        for number in range(len(trials)):
            trials.ask()
            trials.tell(number, 0.0)
        assert (trials.ahead, trials.asked) == (0, len(trials))
