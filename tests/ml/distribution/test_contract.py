"""What models of a cell share: learned once, and the same as learned anew."""

from __future__ import annotations

import dataclasses
from unittest.mock import patch

import pytest
import torch

from ml.distribution import contract
from ml.distribution import model as module
from ml.distribution.contract import RECENT, TransferRatings
from ml.distribution.diffusion import VectorDiffusion
from ml.distribution.model import StarDiffusion
from tests.ml.cells import cell

torch.set_num_threads(1)
QUICK = {"epochs": 1, "diffusion": VectorDiffusion(steps=2)}


@pytest.fixture(autouse=True)
def nothing_kept():
    RECENT.clear()
    yield
    RECENT.clear()


@pytest.fixture(scope="module")
def data():
    return cell(0, ("effects", "ratings")).data


def test_ablations_of_a_cell_start_from_what_was_fitted_once_and_become_the_same(data):
    kinds = [{}, {"taste": False}, {"vectors": "gaussian"}, {"vectors": "mean"}]
    alone = []
    for kind in kinds:
        RECENT.clear()
        alone.append(StarDiffusion(**QUICK, **kind).trained(TransferRatings.of(data)).tensors())
    RECENT.clear()
    with (
        patch.object(module, "fit_effects", wraps=module.fit_effects) as effects,
        patch.object(module, "fit_taste", wraps=module.fit_taste) as taste,
    ):
        together = [StarDiffusion(**QUICK, **k).trained(TransferRatings.of(data)).tensors() for k in kinds]
    # With the posterior draws that a diffusion learns from, and without.
    assert (effects.call_count, taste.call_count) == (2, 1)
    for mine, theirs in zip(together, alone, strict=True):
        assert mine.keys() == theirs.keys()
        for name, value in theirs.items():
            assert torch.equal(mine[name], value)


def test_cells_that_differ_in_anything_share_nothing(data):
    known = TransferRatings.of(data)
    assert TransferRatings.of(data).digest == known.to("cpu").digest == known.digest
    target = dataclasses.replace(data.target, values=6 - data.target.values)
    source = dataclasses.replace(data.source, values=6 - data.source.values)
    changes = [
        {"seed": 1},
        {"levels": None},
        {"target": target},
        {"source": source},
        {"source": None},
        {"description": data.description.flip(0)},
        {"source_user": data.source_user.flip(0)},
    ]
    digests = [dataclasses.replace(known, **change).digest for change in changes]
    assert len({known.digest, *digests}) == len(changes) + 1
    assert known.once("name", lambda: 1) == known.once("name", lambda: 2) == 1
    other = dataclasses.replace(known, seed=1)
    # One that nobody trains with others is not kept.
    assert (other.once("name", lambda: 2), other.once("name", lambda: 3)) == (2, 3)


def test_few_and_small_cells_are_kept(data):
    with patch.object(contract, "CELLS", 2):
        cells = [TransferRatings.of(dataclasses.replace(data, seed=seed)) for seed in range(3)]
        assert list(RECENT) == [each.digest for each in cells[1:]]
    with patch.object(contract, "RATINGS", len(data.target) + 1):
        last = TransferRatings.of(data)
        assert list(RECENT) == [last.digest]
    with patch.object(contract, "RATINGS", len(data.target) - 1):
        TransferRatings.of(data)
        assert not RECENT
