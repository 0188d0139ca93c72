"""The registry: everything that predicts, in the order of the paper's tables, and what it refuses."""

from __future__ import annotations

import pytest
import torch

from ml.models.registry import MODELS, build, find

torch.set_num_threads(1)


PAPER = ["tgt", "cmf", "emcdr", "sscdr", "lacdr", "ptupcdr", "diffcdr"]


def test_the_registry_lists_the_models_in_the_order_of_the_paper():
    assert [name for name in MODELS if name in PAPER] == PAPER
    assert all(build(name).name == name for name in MODELS)


def test_a_model_from_elsewhere_is_named_by_its_path():
    assert isinstance(build("ml.models.emcdr:EMCDR", epochs=3), type(build("emcdr")))
    assert find("ml.models.emcdr:EMCDR") is find("emcdr")


def test_build_passes_hyperparameters_on():
    model = build("lacdr", lr=1, epochs=3)
    assert (model.lr, model.epochs, model.latent) == (1, 3, 4)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("emdcr", {}, "unknown model 'emdcr'; known models: tgt, cmf, .*, random, or give module:Class"),
        ("emcdr", {"latent": 4}, "emcdr: unknown hyper-parameter 'latent'; known: epochs, batch, lr"),
        ("sscdr", {"lr": "1e-3"}, r"sscdr: lr must be of type float, not '1e-3' \(in YAML write 1.0e-3"),
        ("sscdr", {"epochs": 2.5}, r"sscdr: epochs must be of type int, not 2\.5"),
        ("ptupcdr", {"length": 0}, "ptupcdr: length must be at least 1, not 0"),
    ],
)
def test_build_refuses_what_it_does_not_know(name, values, message):
    with pytest.raises(ValueError, match=message):
        build(name, **values)
