"""The registry: which models are chosen, when they are refused, and what the registered version holds."""

import ast
import dataclasses
import importlib.metadata
import json
import sys

import pandas as pd
import pytest

from assets.serving import gate
from assets.serving.answering import answering
from assets.serving.choice import Choice, Chosen, choose, validated
from assets.serving.gate import Judged, NotPromoted, judge, refuse
from assets.serving.registry import REQUIREMENTS, champion, register
from assets.settings.profile import load_profiles
from assets.state.code import OURS
from assets.state.store import NotMaterialized, Store, parquet
from assets.state.tracking import MlflowTracking
from assets.training.choose import best, candidates, rivals
from assets.training.fingerprints import Fingerprints
from tests.assets.axes import AXES, CATALOG, CELL
from tests.assets.house import MODELS, STRICT
from tests.assets.house import house as trained_house

SIMPLE = ("global_mean", "item_mean", "item_source_bias")
# The two trained models, and simple rows that are written by hand.
PROFILE = dataclasses.replace(STRICT, controls=SIMPLE)
BEATEN = {"global_mean": 9.0, "item_mean": 8.0, "item_source_bias": 7.0}


@pytest.fixture(scope="module")
def house():
    return trained_house()


def judged(house, **rmse: float):
    """The simple rows' validation RMSE in the trained cell, by hand, current."""
    fingerprints = Fingerprints(house.store, CATALOG, PROFILE)
    for name, value in (BEATEN | rmse).items():
        validated = pd.DataFrame({"rmse": [value]})
        house.store.model("strict", name, CELL).write(
            {"validation.parquet": parquet(validated)}, fingerprints.model(name, CELL, "rating")
        )


# Who may be used, and who is best.


def test_models_and_controls_that_serve_anyone_may_be_used():
    tuned = load_profiles()["tuned"]
    names = candidates(tuned, "rating")
    assert {"emcdr", "star_diffusion", "diffcdr", "item_mean", "star_boosting", "shared_vector"} <= set(names)
    assert not {"tgt", "cmf", "permuted_source", *tuned.ablations} & set(names)
    ranking = candidates(load_profiles()["paper"], "ranking")
    assert "popularity" in ranking
    assert "random" not in ranking
    assert "item_mean" not in ranking


def test_what_failed_on_a_cell_is_not_better_than_what_did_not():
    rows = [("x", "a", 1.0), ("y", "a", float("nan")), ("x", "b", 3.0), ("y", "b", 3.0), ("x", "c", 2.0)]
    values = pd.DataFrame(rows, columns=["seed", "model", "rmse"])
    assert best(values, ["a", "b", "c"], "rmse") == "b"
    assert best(values, ["a", "c"], "rmse") == "a"
    assert best(values, ["a", "b"], "rmse", higher_is_better=True) == "b"
    assert best(values, ["d"], "rmse") is None


# The gate.


def of(best: str, simple: tuple[str, ...], objective: str = "rating", missing=(), **means: float) -> Judged:
    scores = pd.DataFrame({name: [value - 0.1, value + 0.1] for name, value in means.items()})
    return Judged(objective, best, simple, missing, scores)


EMCDR = Chosen(Choice("emcdr", "rating"), Choice("emcdr", "rating"))


def test_what_beats_every_simple_row_is_promoted():
    refuse([of("emcdr", SIMPLE, emcdr=1.0, **BEATEN)], PROFILE, "tiny", EMCDR)


def test_what_does_not_is_refused_with_numbers():
    equal = of("emcdr", SIMPLE, emcdr=1.1, **(BEATEN | {"item_mean": 1.1}))
    with pytest.raises(NotPromoted) as refused:
        refuse([equal], PROFILE, "tiny", EMCDR)
    assert str(refused.value) == (
        "emcdr of tiny is not promoted: for stars the validation RMSE of emcdr is 1.1000 (mean of 2 cells), "
        "but item_mean has 1.1000. Improve it, or register with --force"
    )


def test_lists_are_compared_where_higher_is_better():
    paper = load_profiles()["paper"]
    chosen = Chosen(Choice("emcdr", "ranking"), Choice("emcdr", "rating"))
    good = of("emcdr", ("popularity",), "ranking", emcdr=0.3, popularity=0.2)
    assert good.objections(paper) == []
    assert list(good.means.index) == ["emcdr", "popularity"]
    bad = of("emcdr", ("popularity",), "ranking", emcdr=0.1, popularity=0.2)
    with pytest.raises(
        NotPromoted, match=r"for lists the validation nDCG@20 of emcdr is 0\.1000 .* has 0\.2"
    ):
        refuse([bad, of("emcdr", (), emcdr=1.0)], paper, "tiny", chosen)


def test_a_diverged_best_and_a_missing_row_are_refused():
    diverged = of("emcdr", SIMPLE, emcdr=float("inf"), **BEATEN)
    assert "is inf" in diverged.objections(PROFILE)[0]
    missing = of("emcdr", SIMPLE, missing=("item_mean",), emcdr=1.0)
    assert missing.objections(PROFILE)[0].startswith("there is no validation RMSE of item_mean to compare")


def test_what_knows_nothing_of_the_user_is_no_champion():
    alone = of("item_mean", (), item_mean=0.5)
    assert alone.objections(PROFILE) == ["item_mean is the best for stars, and it knows nothing of the user"]


def test_rivals_are_told_by_their_role():
    assert rivals(PROFILE, "rating") == list(SIMPLE)
    tuned = rivals(load_profiles()["tuned"], "rating")
    assert {"tgt", "star_logit", "star_boosting", "ridge_source", "shared_vector"} <= set(tuned)
    assert "emcdr" not in tuned
    assert "popularity" in rivals(load_profiles()["paper"], "ranking")


# The champion.


def test_a_profile_without_validation_users_is_refused(house):
    with pytest.raises(ValueError, match="profile paper has no validation users to choose a model on"):
        register(house.store, house.tracking, AXES, "tiny", load_profiles()["paper"], force=True)


def test_without_a_trained_model_there_is_nothing_to_register(house, tmp_path):
    with pytest.raises(NotMaterialized, match="run `diffcdr run --task tiny --profile strict` first"):
        register(Store(home=str(tmp_path)), house.tracking, AXES, "tiny", PROFILE, force=True)


def test_the_champion_is_registered_with_its_card(house):
    judged(house)
    done = register(house.store, house.tracking, AXES, "tiny", PROFILE)
    client, _ = house.tracking.connect()
    version = client.get_model_version_by_alias("diffcdr-tiny", "champion")
    scores = {
        name: house.store.model("strict", name, CELL).table("validation.parquet")["rmse"].item()
        for name in MODELS
    }
    chosen = min(scores, key=scores.get)
    assert (done.model, done.cell, done.forced) == (chosen, CELL, "")
    assert (str(version.version), done.uri) == (done.version, "models:/diffcdr-tiny@champion")
    trained = house.store.model("strict", chosen, CELL).require()
    assert version.run_id == trained["mlflow_run_id"]
    tags = dict(version.tags)
    logged = tags.pop("logged_model")
    about = {"model": chosen, "stars": chosen, "profile": "strict", "cell": CELL.key}
    assert tags == about | {"synthetic": "true"}
    assert "**The data are synthetic**" in done.card
    assert version.description == done.card

    facts = house.store.ratings("tiny_video").require()
    assert f"| source | tiny_video | {facts['ratings']} | {facts['users']} | {facts['items']} |" in done.card
    assert f"Overlap: {house.store.overlap('tiny').require()['users']} users" in done.card
    test = house.store.model("strict", chosen, CELL).table("metrics.parquet")
    test = test.query("stage == 'cold' and selection == 'validation'").set_index("metric")["value"]
    row = f"| **{chosen}** | {scores[chosen]:.4f} | {test['rmse']:.4f} | {test['mae']:.4f} |"
    assert row in done.card
    assert "| item_mean (simple) | 8.0000 | nan | nan |" in done.card
    assert "ordered by predicted stars, and were not compared with popularity" in done.card
    assert "Warning" not in done.card
    assert not done.judged[0].not_compared

    assert client.get_logged_model(logged).source_run_id == version.run_id
    [folder] = house.home.rglob(f"{logged}/artifacts")
    files = {path.name for path in (folder / "artifacts").iterdir()}
    assert {path.rpartition(".")[2] for path in files} == {"safetensors", "json", "parquet", "md"}
    assert not list(folder.rglob("*.pkl"))
    assert (folder / "artifacts" / "model_card.md").read_text() == done.card
    assert json.loads((folder / "input_example.json").read_text())[0]["k"] == 5
    about = (folder / "MLmodel").read_text()
    for name in ("user_id", "history", "item_ids", "because", "signature"):
        assert name in about


def test_the_champion_answers_as_its_cell_does(house):
    judged(house)
    done = register(house.store, house.tracking, AXES, "tiny", PROFILE)
    bundle, version = champion(house.tracking, "tiny")
    assert version == done.version
    found = answering(house.store, house.tracking, AXES, "tiny", PROFILE)
    assert found.what.startswith(f"the champion, version {version} of diffcdr-tiny: {done.model} of tiny|b20")
    own = answering(house.store, house.tracking, AXES, "tiny", PROFILE, "b20-s0").bundle
    import torch

    rows = torch.arange(len(own.user_ids))
    mine, kept = (b.recommender.recommend(b.recommender.known_users(rows), 20) for b in (own, bundle))
    assert torch.equal(mine.items, kept.items)
    torch.testing.assert_close(mine.scores, kept.scores)
    assert bundle.user_ids.tolist() == own.user_ids.tolist()


def test_without_a_registry_there_is_no_champion(tmp_path):

    nowhere = MlflowTracking(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db", home=str(tmp_path))
    assert champion(nowhere, "tiny") is None
    assert not (tmp_path / "mlflow.db").exists()


def test_a_refused_model_leaves_the_champion_and_force_replaces_it_with_a_warning(house):
    judged(house)
    first = register(house.store, house.tracking, AXES, "tiny", PROFILE)
    client, _ = house.tracking.connect()

    def current():
        return client.get_model_version_by_alias("diffcdr-tiny", "champion")

    house.store.model("strict", "item_mean", CELL).write({"validation.parquet": b""}, "of older settings")
    with pytest.raises(NotPromoted, match="there is no validation RMSE of item_mean to compare"):
        register(house.store, house.tracking, AXES, "tiny", PROFILE)
    assert str(current().version) == first.version
    forced = register(house.store, house.tracking, AXES, "tiny", PROFILE, force=True)
    assert str(current().version) == forced.version
    assert int(forced.version) > int(first.version)
    assert "no validation RMSE of item_mean" in current().tags["forced"]
    assert "> **Warning: promoted by force.** " in forced.card


def test_what_was_trained_into_a_database_that_is_gone_can_be_registered(house, tmp_path):
    judged(house)
    another = MlflowTracking(home=str(tmp_path))
    done = register(house.store, another, AXES, "tiny", PROFILE)
    bundle, version = champion(another, "tiny")
    assert (version, bundle.cell) == (done.version, CELL.key)


def test_it_is_said_whom_the_best_was_chosen_without(house, monkeypatch):
    """Only the chosen one of the two trained models has the second cell."""
    judged(house)
    chosen = choose(house.store, CATALOG, PROFILE, AXES.of_task("tiny")).lists.name
    [other] = set(MODELS) - {chosen}
    [second] = [cell.key for cell in AXES.of_task("tiny") if (cell.beta, cell.seed) == (0.2, 1)]

    def with_another(*asked):
        rows = validated(*asked)
        more = rows[rows["model"].isin([chosen, *SIMPLE])].assign(seed=second)
        return pd.concat([rows, more], ignore_index=True)

    monkeypatch.setattr(gate, "validated", with_another)
    done = register(house.store, house.tracking, AXES, "tiny", PROFILE)
    said = f"Chosen without {other}, which lacks a cell that {chosen} has and may be better: run the whole "
    assert "(mean of 2 cells)" in str(done.judged[0])
    assert said in str(done.judged[0])
    assert said in done.card


def test_a_simple_row_that_is_best_answers_itself(house):
    """It need not beat itself; one that knows nothing of the user is refused."""
    judged(house, item_source_bias=0.001)
    chosen = Chosen(Choice("item_source_bias", "rating"), Choice("item_source_bias", "rating"))
    [found] = judge(house.store, AXES, PROFILE, "tiny", chosen)
    assert found.rivals == ("global_mean", "item_mean")
    assert found.objections(PROFILE) == []


UNSAFE = {"pickle", "cloudpickle", "joblib", "shelve", "marshal", "dill"}


def test_nothing_is_read_back_that_can_run_code():
    found = []
    files = [path for room in ("ml", "assets", "pipeline") for path in (OURS / room).rglob("*.py")]
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            unsafe = called in ("torch.load", "eval", "exec") or called.endswith("read_pickle")
            if unsafe or {name.split(".")[0] for name in names} & UNSAFE:
                found.append(f"{path.relative_to(OURS)}:{node.lineno}")
    assert len(files) > 50
    assert not found


def test_all_that_is_served_is_pinned():
    """What `ml` and the served file import is in the requirements of a registered version."""
    names = set()
    for file in [*(OURS / "ml").rglob("*.py"), OURS / "assets/serving/pyfunc_recommender.py"]:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names.add(node.module.split(".")[0])
    packages = importlib.metadata.packages_distributions()
    # Spark factorizes before anything is served.
    needed = {d for n in names - sys.stdlib_module_names - {"ml", "pyspark"} for d in packages[n]}
    # They come with mlflow, whose server needs them.
    assert needed - {"fastapi", "uvicorn", "mlflow-skinny", "mlflow-tracing"} <= set(REQUIREMENTS)
