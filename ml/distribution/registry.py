"""The models of distributions over rating levels by name: `fit(TransferRatings)`, then `predict`."""

from __future__ import annotations

import dataclasses

from ml.distribution.diffusion import VectorDiffusion
from ml.distribution.discriminative import ItemStars, StarBoosting, StarLogit
from ml.distribution.model import StarDiffusion
from ml.models.registry import check_type

Model = StarDiffusion | ItemStars | StarLogit | StarBoosting
MODELS = {
    "star_diffusion": StarDiffusion,
    "item_stars": ItemStars,
    "star_logit": StarLogit,
    "star_boosting": StarBoosting,
}


def build(name: str, **hyperparameters: object) -> Model:
    """The model `name` with `hyperparameters` in place of its defaults; `diffusion` is a mapping of its own.

    Raises ValueError for a model, a hyper-parameter or a type of value that does not exist there.
    """
    if name not in MODELS:
        raise ValueError(f"unknown model {name!r}; known models: {', '.join(MODELS)}")
    kind = MODELS[name]
    nested = hyperparameters.pop("diffusion", None) if hasattr(kind, "vectors") else None
    model = _built(name, kind, hyperparameters)
    if nested is not None:
        model.diffusion = _built(f"{name}.diffusion", VectorDiffusion, nested)
    return model


def _built(name: str, kind: type, hyperparameters: dict[str, object]):
    fields = {field.name: field for field in dataclasses.fields(kind)}
    unknown = [key for key in hyperparameters if key not in fields]
    if unknown:
        known = ", ".join(fields) or "none"
        raise ValueError(f"{name}: unknown hyper-parameter {', '.join(map(repr, unknown))}; known: {known}")
    for key, value in hyperparameters.items():
        check_type(name, fields[key], value)
    return kind(**hyperparameters)


def hyperparameters(model: Model) -> dict[str, object]:
    """Every hyper-parameter with its value, those of the diffusion as `diffusion.…`."""
    flat: dict[str, object] = {}
    for name, value in dataclasses.asdict(model).items():
        nested = value if isinstance(value, dict) else None
        flat |= {f"{name}.{key}": v for key, v in nested.items()} if nested else {name: value}
    return flat
