"""Profiles: the paper's numbers, overrides by task, inheritance; errors name the file and the key."""

import json
import subprocess
import sys

import pytest

from assets.settings.profile import BIASED, SPARK, SPARK_IMPLICIT, ProfileError, load_profiles
from assets.settings.space import Range, Space


def own(tmp_path, text, name="mine", **options):
    (tmp_path / f"{name}.yaml").write_text(text)
    return load_profiles(str(tmp_path), **options)[name]


def test_the_papers_batches_by_task():
    paper = load_profiles()["paper"]
    assert paper.factors("video_music")["batch"] == 256
    assert paper.factors("book_video")["batch"] == 512
    batches = {t: paper.model("diffcdr", t)["batch"] for t in ("video_music", "book_video", "book_music")}
    assert batches == {"video_music": 128, "book_video": 512, "book_music": 128}
    assert paper.model("lacdr", "book_music") == {"batch": 128, "lr": 0.001, "epochs": 10}
    assert paper.models == ("tgt", "cmf", "emcdr", "sscdr", "lacdr", "ptupcdr", "diffcdr")


def test_the_papers_cmf_has_the_settings_of_its_factors():
    paper = load_profiles()["paper"]
    for task in ("video_music", "book_video"):
        assert paper.model("cmf", task) == paper.factors(task)


def test_strict_is_the_paper_with_validation_users():
    profiles = load_profiles()
    assert not profiles["paper"].validation
    assert profiles["strict"].validation
    assert profiles["strict"].model("diffcdr", "book_video") == profiles["paper"].model(
        "diffcdr", "book_video"
    )


def test_in_tuned_the_papers_diffcdr_keeps_its_name():
    profiles = load_profiles()
    tuned = profiles["tuned"]
    assert {name: p.ours for name, p in profiles.items()} == {
        "paper": ("diffcdr",),
        "strict": ("diffcdr",),
        "tuned": ("star_diffusion", "choice_diffusion"),
    }
    assert tuned.kind("diffcdr") == "diffcdr"
    assert tuned.kind("cmf") == "cmf_biased"
    assert {tuned.kind(name) for name in tuned.ablations} == {"star_diffusion", "choice_diffusion"}
    assert tuned.of("permuted_source") == "star_diffusion"
    assert profiles["paper"].of("permuted_source") == "diffcdr"


def test_every_baseline_of_tuned_is_tried_with_several_settings():
    tuned = load_profiles()["tuned"]
    baselines = ("cmf", "emcdr", "sscdr", "lacdr", "ptupcdr", "diffcdr", "collective_als", "autoencoder")
    assert all(len(tuned.trials(name, "video_music")) >= 2 for name in baselines)
    assert all(len(tuned.trials(name, "video_music")) == 1 for name in tuned.ours)


def test_profiles_are_loaded_without_torch():
    code = (
        "import sys; from assets.settings.profile import load_profiles; load_profiles(); "
        "print(sorted({'torch', 'mlflow', 'dagster'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_a_profile_of_ones_own_is_a_file(tmp_path):
    mine = own(
        tmp_path, "extends: paper\nmodels: {diffcdr: {nfe: 15}, wide: {model: diffcdr, hidden: 256}}\n"
    )
    assert mine.model("diffcdr", "video_music")["nfe"] == 15
    assert mine.model("diffcdr", "video_music")["lr"] == 0.001
    assert mine.kind("wide") == "diffcdr"
    assert mine.model("wide", "video_music") == {**mine.model("diffcdr", "video_music"), "hidden": 256}


def test_an_override_of_a_task_keeps_the_others_of_its_parent(tmp_path):
    mine = own(
        tmp_path,
        "extends: paper\ntasks: {book_video: {models: {emcdr: {lr: 0.5}}}, mine: {factors: {k: 4}}}\n",
    )
    assert mine.model("emcdr", "book_video") == {"batch": 128, "lr": 0.5, "epochs": 10}
    assert mine.model("diffcdr", "book_video")["batch"] == 512
    assert mine.factors("book_video")["batch"] == 512
    assert mine.factors("book_music")["batch"] == 512
    assert mine.factors("mine")["k"] == 4


def test_clipping_predictions_and_gradients_are_two_settings(tmp_path):
    mine = own(
        tmp_path,
        "extends: strict\n"
        "models:\n"
        "  diffcdr: {clip: 5.0, clip_predictions: true}\n"
        "  wide: {model: diffcdr}\n"
        "  raw: {model: diffcdr, clip_predictions: false, trials: [{clip: 2.0}, {clip: 3.0}]}\n"
        "controls: {permuted_source: {of: wide}}\n",
    )
    names = ("diffcdr", "wide", "raw", "lacdr", "item_mean", "permuted_source")
    assert {name: mine.clips(name) for name in names} == {
        "diffcdr": True,
        "wide": True,
        "raw": False,
        "lacdr": False,
        "item_mean": True,
        "permuted_source": True,
    }
    assert mine.model("wide", "video_music")["clip"] == 5.0
    assert [trial["clip"] for trial in mine.trials("raw", "video_music")] == [2.0, 3.0]
    assert "clip_predictions" not in mine.model("diffcdr", "video_music")


def test_a_model_made_another_kind_starts_afresh(tmp_path):
    mine = own(tmp_path, "extends: paper\nmodels: {diffcdr: {model: star_diffusion, samples: 8}}\n")
    assert mine.model("diffcdr", "book_video") == {"samples": 8}
    assert mine.model("diffcdr_da", "book_video") == {"parts": "da"}
    assert mine.objectives_of("diffcdr") == ("rating",)


def test_settings_of_a_nested_dataclass_are_laid_over_each_other(tmp_path):
    (tmp_path / "base.yaml").write_text(
        "models: {star_diffusion: {diffusion: {hidden: 16, nfe: 6}}}\nobjectives: [rating]\n"
    )
    mine = own(tmp_path, "extends: base\nmodels: {star_diffusion: {diffusion: {nfe: 3}}}\n")
    assert mine.model("star_diffusion", "x") == {"diffusion.hidden": 16, "diffusion.nfe": 3}


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


def test_trials_may_be_a_space(tmp_path):
    mine = own(
        tmp_path,
        "extends: strict\n"
        "models:\n"
        "  lacdr: {trials: {count: 20, space: {lr: {low: 1.0e-4, high: 0.01, log: true}, latent: [4, 8]}}}\n"
        "  emcdr: {trials: {space: {model: [emcdr, emcdr_mlp], lr: [0.1, 0.2]}}}\n",
    )
    space = mine.trials("lacdr", "book_video")
    assert space == Space({"lr": Range(low=1e-4, high=0.01, log=True), "latent": (4, 8)}, 20)
    assert json.loads(json.dumps(mine.tried("lacdr", "book_video"))) == {
        "given": {"model": "lacdr", "batch": 128, "lr": 0.001, "epochs": 10},
        "count": 20,
        "space": {"lr": {"low": 1e-4, "high": 0.01, "log": True}, "latent": [4, 8]},
    }
    assert mine.kinds("emcdr") == ("emcdr", "emcdr_mlp")
    assert mine.trials("emcdr", "x").grid == [
        {"model": kind, "lr": lr} for kind in ("emcdr", "emcdr_mlp") for lr in (0.1, 0.2)
    ]


def test_biased_factors_do_not_inherit_the_settings_of_plain_ones(tmp_path):
    mine = own(tmp_path, "extends: strict\nfactors: {k: 4, trials: [{penalty: 1.0, bias_penalty: 1.0}]}\n")
    assert mine.factorization() == BIASED
    for task in ("video_music", "book_video"):
        assert mine.factors(task) == {"k": 4, "trials": [{"penalty": 1.0, "bias_penalty": 1.0}]}


def test_a_profile_may_have_spark_factorize(tmp_path):
    text = (
        "extends: %s\n"
        "factors: {model: spark_als, k: 6}\n"
        "list_factors: {model: spark_als, confidence: 3.0}\n"
        "models: {emcdr: {}, tgt: {}}\n"
    )
    for parent in ("strict", "tuned"):
        mine = own(tmp_path, text % parent)
        assert not mine.plain
        assert [mine.factorization(o) for o in ("rating", "ranking")] == [SPARK, SPARK_IMPLICIT]
        # Nothing of the parent's own kind, for no task.
        for task in ("video_music", "book_video"):
            assert mine.factors(task) == {"model": "spark_als", "k": 6}
        assert mine.factors("video_music", "ranking") == {"model": "spark_als", "confidence": 3.0}
    child = own(tmp_path, "extends: mine\nfactors: {blocks: 4}\n", name="child")
    assert child.factors("video_music") == {"model": "spark_als", "k": 6, "blocks": 4}
    back = own(tmp_path, "extends: mine\nfactors: {trials: [{penalty: 1.0}]}\n", name="back")
    assert back.factorization() == BIASED


def test_spark_may_factorize_choices_alone(tmp_path):
    mine = own(tmp_path, "extends: tuned\nlist_factors: {model: spark_als, k: 8}\n")
    assert [mine.by_spark(o) for o in ("rating", "ranking")] == [False, True]
    assert mine.factorization() == BIASED
    assert not load_profiles()["tuned"].by_spark("ranking")


def test_a_model_is_trained_for_what_it_can_be(tmp_path):
    mine = own(
        tmp_path,
        "models: {star_diffusion: {}, emcdr: {}}\n"
        "controls: {random: {}, permuted_source: {of: star_diffusion}}\n",
    )
    assert {name: mine.objectives_of(name) for name in mine.trained} == {
        "star_diffusion": ("rating",),
        "emcdr": ("rating", "ranking"),
        "random": ("ranking",),
        "permuted_source": ("rating",),
    }
    assert mine.ours == ()


PLAIN = "extends: paper\n"
TRIALS = "extends: strict\nmodels: {emcdr: {trials: %s}}\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("models: [", "mine.yaml, line 1: expected"),
        ("- a", "the file: must hold keys and values"),
        ("modles: {}", "modles: unknown key; known are title, extends, .*, tasks"),
        ("title: a\ntitle: b", "line 2: the key 'title' stands twice"),
        ("models:\n  emcdr: {lr: 1.0, lr: 2.0}", "line 2: the key 'lr' stands twice"),
        ("extends: nobody", "extends: 'nobody' is not one of .* paper, strict, tuned"),
        ("extends: mine", "extends: 'mine' is not one"),
        ("objectives: rating", r"objectives: .* got 'rating'; write a list, like \[a, b\]"),
        ("objectives: [rating, rank]", "objectives.1: .*'rating' or 'ranking', got 'rank'"),
        ("objectives: []", "objectives"),
        ('validation: "no"', "validation: .*boolean, got 'no'; write true or false, without quotes"),
        ("models: [emcdr]", r"models: .* got \['emcdr'\]; write a mapping, like"),
        ("models: {emcdr: [lr]}", r"models.emcdr: .*; write a mapping, like"),
        ("models: {a b: {model: emcdr}}", "models.a b"),
        ("models: {emcrd: {}}", "models.emcrd.model: unknown model 'emcrd'; known models: tgt, cmf"),
        ("models: {x: {model: 'no_such:X'}}", "models.x.model: .* cannot be imported"),
        ("models: {emcdr: {rl: 0.1}}", "models.emcdr.rl: emcdr: unknown hyper-parameter 'rl'; known: epochs"),
        ("models: {emcdr: {lr: -0.1}}", "models.emcdr.lr: emcdr: lr must not be negative, got -0.1"),
        ("models: {emcdr: {lr: 1e-3}}", r"models.emcdr.lr: .*in YAML write 1.0e-3"),
        ("models: {emcdr: {epochs: 0}}", "models.emcdr.epochs: emcdr: epochs must be at least 1"),
        ("models: {diffcdr: {clip: true}}", "models.diffcdr.clip: .* write `clip_predictions: true`"),
        ("models: {emcdr: {clip: true}}", "models.emcdr.clip: .* write `clip_predictions: true`"),
        ("models: {emcdr: {clip_predictions: 5.0}}", "models.emcdr.clip_predictions: .*boolean"),
        (
            "controls: {random: {objectives: [rating]}}",
            "controls.random.objectives: random is not for rating",
        ),
        (
            "models: {emcdr: {}}\ncontrols: {permuted_source: {}}",
            "controls.permuted_source.of: .* has no 'diffcdr'; write `of:` and one of emcdr",
        ),
        (PLAIN + "controls: {permuted_source: {of: emcrd}}", "permuted_source.of: .* has no 'emcrd'"),
        (PLAIN + "controls: {permuted_source: {of: item_mean}}", "permuted_source.of: .* has no 'item_mean'"),
        (PLAIN + "controls: {emcdr: {}}", "controls.emcdr: models has a model of that name"),
        (PLAIN + "ours: star_diffusion", "ours: 'star_diffusion' is not one of the profile's models: tgt"),
        ("factors: {dim: 8}", "factors.dim: factors: unknown hyper-parameter 'dim'; known: k, epochs"),
        ("factors: {k: 8, trials: []}", "factors.trials: write a list"),
        ("factors: {lr: 0.1, trials: [{penalty: 1.0}]}", "factors.lr: .*known: k, penalty"),
        ("factors: {trials: [{penalty: no}]}", "factors.trials.0.penalty: .*of type float"),
        ("factors: {model: sparkals}", "factors.model: 'sparkals' is no factorization; write spark_als"),
        ("objectives: [rating]\nfactors: {model: spark_als, lr: 0.1}", "factors.lr: .*known: k, penalty"),
        ("objectives: [rating]\nfactors: {model: spark_als, blocks: 0}", "factors.blocks: .*at least 1"),
        ("objectives: [rating]\nfactors: {model: spark_als, trials: [{k: 2}]}", "factors.trials: .*has none"),
        (
            "models: {emcdr: {}}\nfactors: {model: spark_als}",
            "factors.model: .* no negatives, .*`list_factors",
        ),
        ("list_factors: {model: spark_als, lr: 0.1}", "list_factors.lr: .*known: k, penalty"),
        (PLAIN + "tasks: {x: {models: {emcrd: {}}}}", "tasks.x.models.emcrd: the profile has no such model"),
        (PLAIN + "tasks: {x: {models: {emcdr: {rl: 1}}}}", "tasks.x.models.emcdr.rl: .*unknown hyper"),
        (PLAIN + "tasks: {x: {models: {emcdr: {trials: []}}}}", "only hyper-parameters may vary by task"),
        (PLAIN + "tasks: {x: {factors: {batch: 0}}}", "tasks.x.factors.batch: .*at least 1"),
        (PLAIN + "tasks: {x: {emcdr: {}}}", "tasks.x.emcdr: unknown key; known are factors, models"),
        (PLAIN + "models: {emcdr: {trials: [{}, {lr: 1.0}]}}", "emcdr.trials: they need validation users"),
        ("extends: strict\nvalidation: false", "they need validation users to choose on"),
        (
            "extends: paper\nsearch: {guidance: [1], task_weight: [1]}",
            "search: it needs validation users",
        ),
        ("extends: strict\nsearch: {guidance: [1]}", "search.task_weight: this key is required"),
        ("extends: strict\nsearch: {guidance: [], task_weight: [1]}", "search.guidance: "),
        ("extends: strict\nsearch: {guidance: 1, task_weight: [1]}", "search.guidance: .*write a list"),
        ("extends: strict\nsearch: {guidance: [.nan], task_weight: [1]}", "search.guidance.0: "),
        ("validation: true\nsearch: {guidance: [1], task_weight: [1]}", "search: it looks for .* of diffcdr"),
        (TRIALS % "[]", "models.emcdr.trials: it is an empty list; leave it out"),
        (TRIALS % "3", "models.emcdr.trials: write a list of settings"),
        (TRIALS % "[{lr: 0.1}, {lr: 0.1}]", "models.emcdr.trials.1: the same settings are tried before"),
        (TRIALS % "[lr]", "models.emcdr.trials.0: must hold keys and values"),
        (TRIALS % "[{lr: 0.1}, {rl: 0.1}]", "models.emcdr.trials.1.rl: emcdr: unknown hyper-parameter"),
        (TRIALS % "[{model: emcdr_mlp, penalty: 1.0}]", "trials.0.penalty: emcdr_mlp: unknown hyper-param"),
        (TRIALS % "{space: {lr: {low: 0.1, high: 0.2}}}", "trials.count: this key is required"),
        (TRIALS % "{count: 0, space: {lr: [0.1]}}", "models.emcdr.trials.count: "),
        (TRIALS % "{count: 2, space: {}}", "models.emcdr.trials.space: "),
        (TRIALS % "{count: 2, space: {lr: {low: 2, high: 1}}}", "trials.space.lr: low must be below high"),
        (TRIALS % "{count: 2, space: {lr: {low: 0, high: 1, log: true}}}", "space.lr: with log, low must"),
        (TRIALS % "{count: 2, space: {lr: {low: -1, high: 1}}}", "space.lr: emcdr: lr must not be negative"),
        (TRIALS % "{count: 2, space: {epochs: {low: 1, high: 2.5}}}", "space.epochs: .*of type int"),
        (TRIALS % "{count: 2, space: {lr: [0.1, 0.1]}}", "space.lr: list different values"),
        (
            TRIALS % "{count: 2, space: {model: [emcdr, emcrd], lr: [1.0]}}",
            "space.model: unknown model 'emcrd'",
        ),
        ("extends: strict\ncontrols: {item_mean: {trials: [{}]}}", "item_mean has no settings to try"),
    ],
)
def test_what_cannot_be_used_names_the_file_and_the_key(tmp_path, text, message):
    with pytest.raises(ProfileError, match=message) as error:
        own(tmp_path, text)
    assert "mine.yaml" in str(error.value)


def test_an_unknown_task_is_refused_where_the_catalogue_is_known(tmp_path):
    text = "extends: paper\ntasks: {book_vido: {factors: {k: 4}}}"
    with pytest.raises(ProfileError, match=r"tasks.book_vido: there is no such task; known are book_video"):
        own(tmp_path, text, tasks=["book_video", "book_music"])


def test_a_missing_folder_is_named():
    with pytest.raises(ProfileError, match="no/such/folder"):
        load_profiles("no/such/folder")
