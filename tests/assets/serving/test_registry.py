"""The registry: which model is chosen, when it is refused, and what the registered version holds."""

import ast
import json

import pandas as pd
import pytest

from assets.serving import registry
from assets.serving.registry import NotPromoted, choose, refuse_unless_better, register, validation_rmse
from assets.settings.axes import Cell
from assets.settings.profile import load_profiles
from assets.state.store import PROJECT, NotMaterialized, Store
from tests.assets.house import CELL, MODELS, STRICT
from tests.assets.house import house as trained_house

BEATEN = {"global_mean": 9.0, "item_mean": 8.0, "item_source_bias": 7.0}


@pytest.fixture(scope="module")
def house():
    return trained_house()


def judged(house, **rmse: float):
    """The trivial predictors' validation RMSE in the trained cell, by hand."""
    for name, value in (BEATEN | rmse).items():
        house.judge(name, value)


def test_the_lowest_mean_over_the_common_cells_is_best(tmp_path):
    scores = pd.DataFrame({"a": [1.0, 3.0], "b": [1.5, 1.5], "item_mean": [0.1, 0.1]}, index=["x", "y"])
    assert choose(scores, ["a", "b"]) == "b"
    assert choose(scores.head(1), ["a", "b"]) == "a"


def test_only_cells_that_all_have_finished_are_compared(house, monkeypatch):
    store = house.store
    monkeypatch.setattr(registry, "TRIVIAL", ())
    house.judge("emcdr", 2.0, 1.0, 1.5, key="tiny|b20-s1")
    assert list(validation_rmse(store, STRICT, "tiny").index) == [CELL.key]
    house.judge("ptupcdr", 0.5, key="tiny|b20-s1")
    scores = validation_rmse(store, STRICT, "tiny")
    assert list(scores.index) == ["tiny|b20-s0", "tiny|b20-s1"]
    assert scores.loc["tiny|b20-s1"].to_dict() == {"emcdr": 1.0, "ptupcdr": 0.5}
    for name in MODELS:
        (store.model("strict", name, Cell.parse("tiny|b20-s1")).path / "manifest.json").unlink()


SCORES = pd.DataFrame({"diffcdr": [1.0, 1.2], **{name: [1.3, 1.3] for name in BEATEN}}, index=["x", "y"])


def test_what_beats_every_trivial_predictor_is_promoted():
    assert refuse_unless_better(SCORES, "diffcdr", "tiny", STRICT) is None


def test_what_does_not_is_refused_with_numbers():
    equal = SCORES.assign(item_mean=SCORES["diffcdr"])
    with pytest.raises(NotPromoted) as refused:
        refuse_unless_better(equal, "diffcdr", "tiny", STRICT)
    assert str(refused.value) == (
        "diffcdr is not promoted: its validation RMSE on tiny is 1.1000 (mean of 2 cells), but item_mean has "
        "1.1000; improve the model, or register with --force"
    )


def test_a_model_that_diverged_is_refused():
    diverged = SCORES.assign(diffcdr=float("inf"))
    with pytest.raises(NotPromoted, match=r"is inf .*global_mean has 1.3000, item_mean has 1.3000"):
        refuse_unless_better(diverged, "diffcdr", "tiny", STRICT)


def test_without_trivial_predictors_nothing_is_promoted():
    with pytest.raises(NotPromoted, match=r"no validation RMSE of item_mean .* or use --force"):
        refuse_unless_better(SCORES.drop(columns="item_mean"), "diffcdr", "tiny", STRICT)


def test_a_profile_without_validation_users_is_refused(house):
    with pytest.raises(ValueError, match="profile paper has no validation users to choose a model on"):
        register(house.store, house.tracking, "tiny", load_profiles()["paper"], force=True)


def test_without_a_trained_model_there_is_nothing_to_register(house, tmp_path):
    with pytest.raises(NotMaterialized, match="run `diffcdr run --task tiny --profile strict` first"):
        register(Store(home=str(tmp_path)), house.tracking, "tiny", STRICT, force=True)


def test_the_champion_is_registered_with_its_card(house):
    judged(house)
    done = register(house.store, house.tracking, "tiny", STRICT)
    client, _ = house.tracking.connect()
    version = client.get_model_version_by_alias("diffcdr-tiny", "champion")
    scores = validation_rmse(house.store, STRICT, "tiny").loc[CELL.key, list(MODELS)]
    assert (done.model, done.cell) == (scores.idxmin(), CELL)
    assert (str(version.version), done.uri) == (done.version, "models:/diffcdr-tiny@champion")
    trained = house.store.model("strict", done.model, CELL).require()
    assert version.run_id == trained["mlflow_run_id"]
    logged = version.tags.pop("logged_model")
    assert version.tags == {"model": done.model, "cell": CELL.key}
    assert version.description == done.card

    facts = house.store.ratings("tiny_video").require()
    assert f"| source | tiny_video | {facts['ratings']} | {facts['users']} | {facts['items']} |" in done.card
    assert f"Overlap: {house.store.overlap('tiny').require()['users']} users" in done.card
    test = house.store.model("strict", done.model, CELL).table("metrics.parquet")
    test = test.query("stage == 'cold' and selection == 'validation'").set_index("metric")["value"]
    best = f"| **{done.model}** | {scores.min():.4f} | {test['rmse']:.4f} | {test['mae']:.4f} |"
    assert best in done.card
    assert "| item_mean (simple) | 8.0000 | nan | nan |" in done.card
    assert "## Known limits" in done.card

    assert client.get_logged_model(logged).source_run_id == version.run_id
    [folder] = house.home.rglob(f"{logged}/artifacts")
    files = {path.name for path in (folder / "artifacts").iterdir()}
    assert {path.rpartition(".")[2] for path in files} == {"safetensors", "json", "parquet", "md"}
    assert not list(folder.rglob("*.pkl"))
    assert (folder / "artifacts" / "model_card.md").read_text() == done.card
    assert json.loads((folder / "input_example.json").read_text())[0]["k"] == 5
    about = (folder / "MLmodel").read_text()
    assert all(name in about for name in ("user_id", "history", "item_ids", "signature"))


def test_a_refused_model_leaves_the_champion_and_force_replaces_it(house):
    judged(house)
    first = register(house.store, house.tracking, "tiny", STRICT)
    judged(house, item_source_bias=0.001)
    client, _ = house.tracking.connect()

    def champion() -> str:
        return str(client.get_model_version_by_alias("diffcdr-tiny", "champion").version)

    with pytest.raises(NotPromoted, match=r"but item_source_bias has 0\.0010"):
        register(house.store, house.tracking, "tiny", STRICT)
    assert champion() == first.version
    forced = register(house.store, house.tracking, "tiny", STRICT, force=True)
    assert champion() == forced.version
    assert int(forced.version) > int(first.version)


UNSAFE = {"pickle", "cloudpickle", "joblib", "shelve", "marshal", "dill"}


def test_nothing_is_read_back_that_can_run_code():
    found = []
    files = [path for room in ("ml", "assets", "pipeline") for path in (PROJECT / room).rglob("*.py")]
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            unsafe = called in ("torch.load", "eval", "exec") or called.endswith("read_pickle")
            if unsafe or {name.split(".")[0] for name in names} & UNSAFE:
                found.append(f"{path.relative_to(PROJECT)}:{node.lineno}")
    assert len(files) > 50
    assert not found
