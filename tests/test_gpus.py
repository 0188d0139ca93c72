"""Which ops are tagged as wanting a GPU: those that compute on the device, and no others."""

import json

import dagster as dg
import pytest
import torch

from assets.settings.profile import Profile, load_profiles
from assets.state.compute import Compute, gpu_tags
from assets.training.factors import Work, _fit
from assets.training.fingerprints import objectives_with_factors
from ml.factorization.adam import RatingTable
from pipeline.definitions import build_defs

PROFILES = load_profiles()
[(TAG, NEEDED)] = gpu_tags(True).items()


def tagged() -> set[str]:
    ops = [each for each in build_defs().assets if isinstance(each, dg.AssetsDefinition)]
    found = {op.key.to_user_string(): op.op.tags[TAG] for op in ops if op.is_executable and TAG in op.op.tags}
    assert {json.loads(value)["num_gpus"] for value in found.values()} == {NEEDED["num_gpus"]}
    return set(found)


def test_ops_that_compute_on_the_device_want_a_gpu_and_no_others_do():
    wanted = {
        f"{name}/{model}"
        for name, profile in PROFILES.items()
        for model in profile.trained
        if any(profile.facts[kind].on_device for kind in profile.kinds(model))
    }
    wanted |= {f"{name}/{side}_factors" for name in ("paper", "strict") for side in ("source", "target")}
    assert tagged() == wanted | {"paper/embeddings", "strict/embeddings", "strict/search"}


@pytest.mark.parametrize("name", PROFILES)
def test_factors_want_one_where_they_are_computed_on_the_device(name):
    uses = any(computes_on_the_device(PROFILES[name], o) for o in objectives_with_factors(PROFILES[name]))
    assert uses == ({f"{name}/{side}_factors" for side in ("source", "target")} <= tagged())


def computes_on_the_device(profile: Profile, objective: str) -> bool:
    """Whether a device that is none is missed."""
    table = RatingTable(torch.arange(6) % 3, torch.arange(6) % 2, torch.ones(6), 3, 2, 0)
    try:
        _fit(Compute(device="nowhere"), profile, "demo_video_music", objective, Work([table], "t", "t"))
    except RuntimeError as error:
        return "nowhere" in str(error)
    return False
