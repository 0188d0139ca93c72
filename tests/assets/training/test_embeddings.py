"""Figure 4 on the tiny task: what is compared with what, and what is written."""

import io
import json

import dagster as dg
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from assets.data.cell import cell_data, roles
from assets.data.ratings import ingest_domain
from assets.data.reviews import obtain
from assets.data.splits import draw_split, find_overlap
from assets.settings.axes import CATALOG
from assets.settings.profile import load_profiles
from assets.state.compute import Compute
from assets.state.store import NotMaterialized, Store, tensors
from assets.training import embeddings
from assets.training.factors import source_config, train_source, train_target
from ml.models.registry import build
from ml.splits import TEST, TRAIN

PROFILE = load_profiles()["strict"]
FILES = {"distances.parquet", "points.parquet", "figure4.png", "figure4.svg"}


def train(store, name, spoil=False):
    """A model of the cell, by one epoch; `spoil` makes it one that diverged."""
    entry = store.model(PROFILE.name, name, CELL)
    settings = PROFILE.model(name, CELL.task) | {"epochs": 1}
    config = source_config(PROFILE, CELL.task)
    factors = [
        store.source_factors(PROFILE.name, CATALOG.tasks[CELL.task].source, config, CELL.seed),
        store.target_factors(PROFILE.name, CELL),
    ]
    data = cell_data(store, PROFILE, CELL, *(entry.tensors("factors.safetensors") for entry in factors))
    weights = build(name, **settings).trained([data.problem]).state_dict()
    if spoil:
        weights = {key: torch.full_like(value, torch.nan) for key, value in weights.items()}
    content = {
        "weights.safetensors": tensors(weights),
        "config.json": json.dumps({"model": name, "hyperparameters": settings}).encode(),
    }
    entry.write(content, f"{name}-{spoil}")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    store, task = Store(home=str(tmp_path_factory.mktemp("home"))), CATALOG.tasks[CELL.task]
    for name in (task.source, task.target):
        obtain(store, CATALOG.domains[name])
        ingest_domain(store, CATALOG.domains[name])
    find_overlap(store, task)
    draw_split(store, CELL)
    train_source(store, Compute(), PROFILE, CELL.task, [CELL.seed], "rating")
    train_target(store, Compute(), PROFILE, [CELL], "rating")
    with pytest.raises(NotMaterialized, match=r"no model of profile strict has weights for tiny\|b20-s0"):
        embeddings.analyse(store, Compute(), PROFILE, [CELL])
    train(store, "emcdr")
    train(store, "diffcdr")
    train(store, "lacdr", spoil=True)
    embeddings.analyse(store, Compute(), PROFILE, [CELL])
    return store


@pytest.fixture(scope="module")
def entry(store):
    return store.embeddings(PROFILE.name, CELL)


@pytest.fixture(scope="module")
def distances(entry):
    return entry.table("distances.parquet")


def rows_of(store, role):
    return np.flatnonzero(roles(store, PROFILE, CELL) == role)


def test_the_truth_differs_from_the_target_factors_by_the_hidden_ratings_alone(store):
    """Both start from the same vectors, so that training users end close and test users moved from there."""
    truth = embeddings.train_truth(store, Compute(), PROFILE, [CELL])[0]
    base = store.target_factors(PROFILE.name, CELL).tensors("factors.safetensors")["users"]
    codes = store.overlap("tiny").table("users.parquet")["target_user"].to_numpy()
    shift = (truth - base).norm(dim=1).numpy()
    seen, hidden = shift[codes[rows_of(store, TRAIN)]], shift[codes[rows_of(store, TEST)]]
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
    for panel, role in zip("abcd", (TRAIN, TEST, TRAIN, TEST), strict=True):
        for _, shown in points[points["panel"] == panel].groupby("series"):
            assert shown["user"].tolist() == rows_of(store, role).tolist()


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
    embeddings.analyse(store, Compute(), PROFILE, [CELL])
    assert (entry.path / "manifest.json").stat().st_mtime_ns == written
    assert entry.is_current(embeddings._fingerprint(store, PROFILE, CELL))
    train(store, "lacdr")
    assert not entry.is_current(embeddings._fingerprint(store, PROFILE, CELL))


def test_nothing_finite_gives_an_empty_figure():
    points = pd.DataFrame(columns=embeddings.POINTS)
    assert embeddings.figure(points).axes == []


def test_the_asset_follows_every_model_of_its_profile():
    asset = embeddings.embeddings_asset(PROFILE)
    assert asset.key == dg.AssetKey(["strict", "embeddings"])
    upstream = {key.path[-1] for key in asset.dependency_keys}
    assert upstream == {*PROFILE.models, "source_factors", "target_factors"}
