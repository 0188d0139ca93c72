"""Figure 4 on the tiny task: what is compared with what, and what is written."""

import dataclasses
import io
import json

import dagster as dg
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from assets.data.cell import Gate
from assets.settings.profile import load_profiles
from assets.state.compute import Compute
from assets.state.store import NotMaterialized, Store, tensors
from assets.training import embeddings
from assets.training.factors import train_source, train_target
from assets.training.fingerprints import Fingerprints
from ml.models.registry import build
from tests.assets.axes import AXES, CATALOG, CELL
from tests.assets.tiny import prepare

PROFILE = load_profiles()["strict"]
FILES = {"distances.parquet", "points.parquet", "figure4.png", "figure4.svg"}
COMPUTE = Compute(device="cpu")


def analyse(store, profile=PROFILE):
    embeddings.analyse(store, COMPUTE, CATALOG, profile, [CELL])


def train(store, name, spoil=False):
    """A model of the cell, by one epoch; `spoil` makes it one that diverged."""
    settings = PROFILE.model(name, CELL.task) | {"epochs": 1}
    data = Gate(store, PROFILE, CELL, needs=("factors",)).data
    weights = build(name, **settings).trained([data.problem]).state_dict()
    if spoil:
        weights = {key: torch.full_like(value, torch.nan) for key, value in weights.items()}
    content = {
        "weights.safetensors": tensors(weights),
        "config.json": json.dumps({"model": name, "hyperparameters": settings}).encode(),
    }
    expected = Fingerprints(store, CATALOG, PROFILE).model(name, CELL, "rating")
    store.model(PROFILE.name, name, CELL).write(content, expected)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    store = prepare(Store(home=str(tmp_path_factory.mktemp("home"))))
    train_source(store, COMPUTE, CATALOG, PROFILE, [CELL], "rating")
    train_target(store, COMPUTE, CATALOG, PROFILE, [CELL], "rating")
    with pytest.raises(NotMaterialized, match=r"no model of profile strict has weights for tiny\|b20-s0"):
        analyse(store)
    train(store, "emcdr")
    train(store, "diffcdr")
    train(store, "lacdr", spoil=True)
    analyse(store)
    return store


@pytest.fixture(scope="module")
def entry(store):
    return store.embeddings(PROFILE.name, CELL)


@pytest.fixture(scope="module")
def distances(entry):
    return entry.table("distances.parquet")


def rows_of(store, side):
    return Gate(store, PROFILE, CELL, needs=()).members(side)


def test_the_truth_differs_from_the_target_factors_by_the_hidden_ratings_alone(store):
    """Both start from the same vectors, so that training users end close and test users moved from there."""
    truth = embeddings.train_truth(store, COMPUTE, PROFILE, [CELL])[0]
    base = store.target_factors(PROFILE.name, CELL).tensors("factors.safetensors")["users"]
    codes = store.overlap("tiny").table("users.parquet")["target_user"].to_numpy()
    shift = (truth - base).norm(dim=1).numpy()
    seen, hidden = shift[codes[rows_of(store, "train")]], shift[codes[rows_of(store, "test")]]
    assert np.median(seen) < np.median(hidden) < base.norm(dim=1).median()


def test_every_variant_has_a_row_for_each_side(distances):
    assert list(distances.columns) == [
        *("model", "side", "nfe", "frechet", "mmd", "euclidean", "cosine", "undefined")
    ]
    expected = [("source", None), ("tgt", None), ("emcdr", None), ("lacdr", None), ("diffcdr", 30)]
    expected += [("diffcdr_dim", nfe) for nfe in (5, 15, 20, 30)]
    for side in ("train", "test"):
        mine = distances[distances["side"] == side]
        found = [(m, None if pd.isna(n) else n) for m, n in zip(mine["model"], mine["nfe"], strict=True)]
        assert sorted(found, key=str) == sorted(expected, key=str)


def test_trained_target_factors_are_the_floor_on_training_users(distances):
    train_side = distances[distances["side"] == "train"].set_index("model")["euclidean"]
    assert train_side["tgt"] < train_side.drop(["tgt", "lacdr"]).min()


def test_a_diverged_model_is_reported_and_drawn_nowhere(distances, entry):
    broken = distances[distances["model"] == "lacdr"]
    assert broken[["frechet", "mmd", "euclidean", "cosine"]].isna().all(axis=None)
    assert broken["undefined"].str.fullmatch(r"diverged: (\d+) of \1 vectors are NaN or infinite").all()
    assert distances[distances["model"] != "lacdr"]["undefined"].isna().all()
    assert "lacdr" not in set(entry.table("points.parquet")["series"])


def test_panels_show_the_same_users_of_their_side(store, entry):
    points = entry.table("points.parquet")
    series = points.groupby("panel")["series"].unique().map(list).to_dict()
    assert series["a"] == series["b"] == ["emcdr", "diffcdr_dim", "truth"]
    assert series["c"] == series["d"] == ["source", "nfe 5", "nfe 15", "nfe 20", "nfe 30", "truth"]
    for panel, side in zip("abcd", ("train", "test", "train", "test"), strict=True):
        for _, shown in points[points["panel"] == panel].groupby("series"):
            assert shown["user"].tolist() == rows_of(store, side).tolist()


def test_the_figure_is_written_as_png_and_svg(entry):
    assert set(entry.files()) == FILES
    picture = Image.open(io.BytesIO(entry.read("figure4.png")))
    assert picture.format == "PNG"
    assert picture.size == (1500, 1560)
    assert entry.read("figure4.svg").decode().rstrip().endswith("</svg>")


def test_what_the_figure_says(entry):
    drawn = embeddings.figure(entry.table("points.parquet"))
    panels = drawn.axes
    assert [axes.get_title()[:3] for axes in panels] == ["(a)", "(b)", "(c)", "(d)"]
    legend = [text.get_text() for text in panels[0].get_legend().get_texts()]
    assert legend == ["EMCDR", "DiffCDR (DIM)", "ground truth"]
    truth = panels[0].collections[-1]
    assert truth.get_zorder() > max(other.get_zorder() for other in panels[0].collections[:-1])
    assert truth.get_facecolor()[0, :3].tolist() == [0, 0, 0]


def test_metadata_shows_the_figure_and_the_distances_in_little_room(entry):
    metadata = embeddings._metadata(entry)
    assert metadata["models"] == "diffcdr, emcdr, lacdr"
    assert metadata["figure4"].value.startswith("![Figure 4](data:image/png;base64,")
    assert len(metadata["figure4"].value) < 300_000
    assert "diffcdr_dim" in metadata["distances"].value


def test_a_finished_cell_is_skipped_until_a_model_changes(store, entry):
    written = (entry.path / "manifest.json").stat().st_mtime_ns
    analyse(store)
    assert (entry.path / "manifest.json").stat().st_mtime_ns == written
    assert entry.is_current(embeddings.embeddings_fingerprint(store, CATALOG, PROFILE, CELL))
    other = changed("lacdr", lr=0.5)
    assert not entry.is_current(embeddings.embeddings_fingerprint(store, CATALOG, other, CELL))
    # Nor is it once there is one more model to show.
    train(store, "ptupcdr")
    assert not entry.is_current(embeddings.embeddings_fingerprint(store, CATALOG, PROFILE, CELL))
    analyse(store)
    assert "ptupcdr" in entry.require()["models"]


def changed(name, **settings):
    """The profile with other settings of a model."""
    changed = dataclasses.replace(PROFILE.entries[name], settings=settings)
    return dataclasses.replace(PROFILE, entries={**PROFILE.entries, name: changed})


def test_a_model_of_other_settings_is_refused(store, entry):
    """The analysis would carry a fingerprint that lies."""
    before = entry.require()
    with pytest.raises(NotMaterialized, match=r"lacdr.*out of date.*materialize"):
        analyse(store, changed("lacdr", lr=0.5))
    assert entry.require() == before


def test_nothing_finite_gives_an_empty_figure():
    points = pd.DataFrame(columns=embeddings.POINTS)
    assert embeddings.figure(points).axes == []


def test_the_asset_follows_every_model_of_its_profile():
    asset = embeddings.embeddings_asset(AXES, PROFILE)
    assert asset.key == dg.AssetKey(["strict", "embeddings"])
    upstream = {key.path[-1] for key in asset.dependency_keys}
    assert upstream == {*PROFILE.models, "source_factors", "target_factors"}
