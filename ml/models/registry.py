"""Everything that predicts, by name: the one place where models are listed.

A new model is one class that meets `ml.models.contract.Model` and one line here; a model outside the project
is named as `module:Class`. Nothing is imported before it is asked for.
"""

from __future__ import annotations

import dataclasses
import importlib

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
    "random": "ml.models.chance:Random",
}


def path_of(name: str) -> str:
    """`module:Class` of a model by its name here, or as it is given. Raises ValueError for another name."""
    if name not in MODELS and ":" not in name:
        raise ValueError(f"unknown model {name!r}; known models: {', '.join(MODELS)}, or give module:Class")
    return MODELS.get(name, name)


def find(name: str) -> type[Model]:
    """The class of a model by its name here, or as `module:Class` from anywhere on the Python path.

    Raises ValueError where there is none or it does not meet the contract.
    """
    module, _, attribute = path_of(name).partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"model {name!r} cannot be imported: {error}; is its folder on PYTHONPATH?"
        ) from error
    if not (isinstance(found, type) and issubclass(found, Model)):
        raise ValueError(f"model {name!r} is not a subclass of ml.models.contract.Model")
    return found


def build(name: str, **hyperparameters: object) -> Model:
    """The model `name` with `hyperparameters` in place of its defaults; those of a nested dataclass are a
    mapping of their own.

    Raises ValueError for a model, a hyper-parameter or a type of value that does not exist there.
    """
    return _built(name, find(name), hyperparameters)


def _built(name: str, kind: type, hyperparameters: dict[str, object]):
    fields = {field.name: field for field in dataclasses.fields(kind)}
    unknown = [key for key in hyperparameters if key not in fields]
    if unknown:
        known = ", ".join(fields) or "none"
        raise ValueError(f"{name}: unknown hyper-parameter {', '.join(map(repr, unknown))}; known: {known}")
    return kind(**{key: _value(name, fields[key], value) for key, value in hyperparameters.items()})


def _value(model: str, field: dataclasses.Field, value: object) -> object:
    if dataclasses.is_dataclass(field.default_factory):
        if not isinstance(value, dict):
            raise ValueError(f"{model}: {field.name} must be a mapping of settings, not {value!r}")
        return _built(f"{model}.{field.name}", field.default_factory, value)
    check_type(model, field, value)
    return value


def check_type(model: str, field: dataclasses.Field, value: object) -> None:
    """Raise ValueError unless `value` has the type of the field's default; an int may stand for a float."""
    expected = type(field.default)
    if type(value) is expected or (expected is float and type(value) is int):
        return
    # YAML 1.1 reads 1e-3 as text; it wants the point.
    hint = " (in YAML write 1.0e-3, not 1e-3)" if isinstance(value, str) and expected is float else ""
    raise ValueError(f"{model}: {field.name} must be of type {expected.__name__}, not {value!r}{hint}")
