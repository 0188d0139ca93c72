"""Profiles: the paper's numbers, overrides by task, inheritance, and errors that name the file."""

import pytest

from assets.settings.profile import ProfileError, load_profiles
from assets.training.models import model_asset


def test_the_papers_batches_by_task():
    paper = load_profiles()["paper"]
    assert paper.factors("video_music")["batch"] == 256
    assert paper.factors("book_video")["batch"] == 512
    batches = {t: paper.model("diffcdr", t)["batch"] for t in ("video_music", "book_video", "book_music")}
    assert batches == {"video_music": 128, "book_video": 512, "book_music": 128}
    assert paper.model("lacdr", "book_music") == {"batch": 128, "lr": 0.001, "epochs": 10}
    assert paper.models == ("tgt", "cmf", "emcdr", "sscdr", "lacdr", "ptupcdr", "diffcdr")


def test_strict_is_the_paper_with_validation_users():
    profiles = load_profiles()
    assert not profiles["paper"].validation
    assert profiles["strict"].validation
    assert profiles["strict"].model("diffcdr", "book_video") == profiles["paper"].model(
        "diffcdr", "book_video"
    )


def test_a_profile_of_ones_own_is_a_file(tmp_path):
    (tmp_path / "mine.yaml").write_text(
        "extends: paper\nmodels: {diffcdr: {nfe: 15}, wide: {model: diffcdr, hidden: 256}}\n"
    )
    mine = load_profiles(str(tmp_path))["mine"]
    assert mine.model("diffcdr", "video_music")["nfe"] == 15
    assert mine.model("diffcdr", "video_music")["lr"] == 0.001
    assert mine.registered("wide") == "diffcdr"
    assert mine.model("wide", "video_music") == {**mine.model("diffcdr", "video_music"), "hidden": 256}


def test_clipping_is_a_setting_of_evaluation_that_variants_take_over(tmp_path):
    (tmp_path / "mine.yaml").write_text(
        "extends: paper\n"
        "models: {diffcdr: {clip: true}, wide: {model: diffcdr}, raw: {model: diffcdr, clip: false}}\n"
    )
    mine = load_profiles(str(tmp_path))["mine"]
    assert {name: mine.clips(name) for name in ("diffcdr", "wide", "raw", "lacdr", "item_mean")} == {
        "diffcdr": True,
        "wide": True,
        "raw": False,
        "lacdr": False,
        "item_mean": True,
    }
    assert "clip" not in mine.model("diffcdr", "video_music")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("models: [", "not valid YAML"),
        ("- a", "must be a mapping"),
        ("modles: {}", r"unknown keys \['modles'\]"),
        ("extends: nobody", "extends 'nobody'"),
        ("extends: mine", "extends 'mine'"),
    ],
)
def test_what_cannot_be_used_names_the_file(tmp_path, text, message):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(ProfileError, match=message) as error:
        load_profiles(str(tmp_path))
    assert "mine.yaml" in str(error.value)


def own(tmp_path, text):
    (tmp_path / "mine.yaml").write_text(text)
    return load_profiles(str(tmp_path))["mine"]


def test_trials_are_the_models_settings_with_their_own_on_top(tmp_path):
    mine = own(
        tmp_path,
        "extends: strict\nmodels: {emcdr: {trials: [{lr: 0.1}, {model: emcdr_ridge, penalty: 2.0}]}}\n",
    )
    base = {"batch": 64, "lr": 0.01, "epochs": 10}
    assert mine.trials("emcdr", "video_music") == [
        {"model": "emcdr", **base, "lr": 0.1},
        {"model": "emcdr_ridge", **base, "penalty": 2.0},
    ]
    assert mine.kinds("emcdr") == ("emcdr", "emcdr_ridge")
    assert mine.trials("lacdr", "video_music") == [{"model": "lacdr", **mine.model("lacdr", "video_music")}]


def test_every_baseline_of_tuned_has_the_same_number_of_trials():
    tuned = load_profiles()["tuned"]
    counts = {name: len(tuned.trials(name, "video_music")) for name in tuned.models}
    assert counts.pop("tgt") == counts.pop("diffcdr") == 1
    assert set(counts.values()) == {8}


def test_a_variant_does_not_take_over_the_settings_of_a_namesake(tmp_path):
    mine = own(tmp_path, "extends: tuned\nmodels: {diffcdr: {samples: 128}}\n")
    assert mine.model("diffcdr", "video_music") == {"samples": 128}
    assert "samples" not in mine.model("diffcdr_vector", "video_music")


def test_biased_factors_do_not_inherit_the_settings_of_plain_ones(tmp_path):
    mine = own(tmp_path, "extends: strict\nfactors: {k: 4, trials: [{penalty: 1.0, bias_penalty: 1.0}]}\n")
    assert mine.biased
    assert mine.factors("video_music") == {"k": 4, "trials": [{"penalty": 1.0, "bias_penalty": 1.0}]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("extends: paper\nmodels: {emcdr: {trials: [{}, {}]}}", "need validation users"),
        ("extends: strict\nmodels: {emcdr: {trials: []}}", "empty list"),
    ],
)
def test_trials_that_cannot_be_chosen_are_refused(tmp_path, text, message):
    with pytest.raises(ProfileError, match=message):
        own(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        ("extends: paper\nmodels: {star: {model: star_diffusion}}", "star", r"objectives: \[rating\]"),
        ("extends: strict\ncontrols: {item_mean: {trials: [{}, {}]}}", "item_mean", "no settings to try"),
    ],
)
def test_settings_a_model_cannot_have_are_refused(tmp_path, text, name, message):
    with pytest.raises(ProfileError, match=message):
        model_asset(own(tmp_path, text), name)


def test_a_missing_folder_is_named():
    with pytest.raises(ProfileError, match="no/such/folder"):
        load_profiles("no/such/folder")
