import pytest
import torch

from ml.models.diffcdr import DiffCDR
from ml.models.emcdr import EMCDR
from ml.models.outputs import Variant, transferred
from tests.ml.problems import random_problem

PROBLEM = random_problem(seed=3)


@pytest.fixture(scope="module")
def diffcdr():
    return DiffCDR(epochs=1, batch=64, hidden=8, nfe=12).trained([PROBLEM])


def test_diffcdr_gives_both_outputs_and_every_solver(diffcdr):
    vectors = transferred("mine", diffcdr, PROBLEM.source)
    solvers = [Variant("mine_dim", nfe) for nfe in (5, 12, 15, 20, 30)]
    assert list(vectors) == [Variant("mine", 12), *solvers]
    assert torch.equal(vectors["mine", 12], diffcdr.transfer([PROBLEM.source])[0])
    aligned = vectors["mine_dim", 12] @ diffcdr.state_dict()["alignment.weight"].T
    torch.testing.assert_close(aligned, vectors["mine", 12])


@pytest.mark.parametrize("nfe", [5, 30])
def test_a_solver_is_the_same_weights_solved_otherwise(diffcdr, nfe):
    vectors = transferred("mine", diffcdr, PROBLEM.source)
    other = DiffCDR(hidden=8, nfe=nfe).load_state_dict(diffcdr.state_dict())
    assert torch.equal(vectors["mine_dim", nfe], other.dim_output([PROBLEM.source])[0])
    assert not torch.allclose(vectors["mine_dim", nfe], vectors["mine_dim", 12])


def test_diffcdr_without_diffusion_has_one_output():
    model = DiffCDR(epochs=1, hidden=8, parts="at").trained([PROBLEM])
    vectors = transferred("at", model, PROBLEM.source)
    assert list(vectors) == [Variant("at", 30)]
    weight = model.state_dict()["alignment.weight"]
    torch.testing.assert_close(vectors["at", 30], PROBLEM.source.factors @ weight.T)


def test_another_model_is_transferred_once_under_its_name():
    model = EMCDR(epochs=1).trained([PROBLEM])
    vectors = transferred("mine", model, PROBLEM.source)
    assert list(vectors) == [Variant("mine")]
    assert torch.equal(vectors["mine", None], model.transfer([PROBLEM.source])[0])
