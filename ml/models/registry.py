"""Everything that predicts, by name: the one place where models are listed.

A new model is one class that meets `ml.models.contract.Model` and one line here; a model outside the project
is named as `module:Class`. Nothing is imported before it is asked for.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from ml.models.facts import Facts, check_settings, construct, facts_of, imported, read

if TYPE_CHECKING:
    from ml.models.contract import Model

# In the order of the paper's tables, then what it is compared with.
MODELS = {
    "tgt": "ml.models.tgt:TGT",
    "cmf": "ml.models.cmf:CMF",
    "cmf_biased": "ml.models.cmf:BiasedCMF",
    "emcdr": "ml.models.emcdr:EMCDR",
    "emcdr_ridge": "ml.models.emcdr:RidgeEMCDR",
    "emcdr_mlp": "ml.models.emcdr:PerceptronEMCDR",
    "sscdr": "ml.models.sscdr:SSCDR",
    "sscdr_rejecting": "ml.models.sscdr:RejectingSSCDR",
    "lacdr": "ml.models.lacdr:LACDR",
    "lacdr_wide": "ml.models.lacdr:WideLACDR",
    "ptupcdr": "ml.models.ptupcdr:PTUPCDR",
    "diffcdr": "ml.models.diffcdr:DiffCDR",
    "star_diffusion": "ml.distribution.model:StarDiffusion",
    "global_mean": "ml.models.statistics:GlobalMean",
    "item_mean": "ml.models.statistics:ItemMean",
    "item_source_bias": "ml.models.statistics:ItemSourceBias",
    "ridge_source": "ml.models.statistics:RidgeSource",
    "item_stars": "ml.distribution.discriminative:ItemStars",
    "star_logit": "ml.distribution.discriminative:StarLogit",
    "star_boosting": "ml.distribution.discriminative:StarBoosting",
    "mean_target_vector": "ml.models.one_vector:MeanTargetVector",
    "shared_vector": "ml.models.one_vector:SharedVector",
    "permuted_source": "ml.models.permuted:Permuted",
    "popularity": "ml.models.statistics:Popularity",
    "user_neighbourhood": "ml.ranking.neighbourhood:UserNeighbourhood",
    "item_regression": "ml.ranking.regression:ItemRegression",
    "graph_filter": "ml.ranking.graph:GraphFilter",
    "collective_als": "ml.ranking.ials:CollectiveALS",
    "autoencoder": "ml.ranking.autoencoder:AutoEncoder",
    "blend": "ml.ranking.blend:Blend",
    "blend_autoencoder": "ml.ranking.blend:BlendAutoEncoder",
    "deep_blend": "ml.ranking.blend:DeepBlend",
    "choice_diffusion": "ml.ranking.choices:ChoiceDiffusion",
    "random": "ml.models.chance:Random",
}


def path_of(name: str) -> str:
    """`module:Class` of a model by its name here, or as it is given. Raises ValueError for another name."""
    if name not in MODELS and ":" not in name:
        raise ValueError(f"unknown model {name!r}; known models: {', '.join(MODELS)}, or give module:Class")
    return MODELS.get(name, name)


@lru_cache
def facts(name: str) -> Facts:
    """What a model says of itself, by its name here or as `module:Class`; neither it nor torch is imported.

    Raises ValueError where there is none, it does not meet the contract or it lacks a fact.
    """
    return read(path_of(name))


def find(name: str) -> type[Model]:
    """The class of a model by its name here, or as `module:Class` from anywhere on the Python path.

    Raises ValueError as `facts` does.
    """
    path = path_of(name)
    kind = imported(path)
    facts_of(kind, path)
    return kind


def build(name: str, **hyperparameters: object) -> Model:
    """The model `name` with `hyperparameters` in place of its defaults; those of a nested dataclass are a
    mapping of their own, or `outer.inner`.

    Raises ValueError for a model, a hyper-parameter, a type of value or a value that does not exist there.
    """
    kind = find(name)
    check_settings(facts_of(kind, path_of(name)), hyperparameters)
    return construct(kind, hyperparameters)
