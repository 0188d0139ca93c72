"""The transfer models by name, in the order of the paper's tables.

A new model is one subclass of `TransferModel` and one line here; a model outside the project is named as
`module:Class`. TGT and CMF are trained by the factorization itself and transfer nothing afterwards.
"""

from __future__ import annotations

import dataclasses
import importlib

from ml.models.diffcdr import DiffCDR
from ml.models.emcdr import EMCDR, PerceptronEMCDR, RidgeEMCDR
from ml.models.lacdr import LACDR, WideLACDR
from ml.models.ptupcdr import PTUPCDR
from ml.models.sscdr import SSCDR, RejectingSSCDR
from ml.models.transfer import TransferModel

PAPER = (EMCDR, SSCDR, LACDR, PTUPCDR, DiffCDR)
VARIANTS = (RidgeEMCDR, PerceptronEMCDR, RejectingSSCDR, WideLACDR)
MODELS: dict[str, type[TransferModel]] = {model.name: model for model in (*PAPER, *VARIANTS)}


def find(name: str) -> type[TransferModel]:
    """The class of a model by its name here, or as `module:Class` from anywhere on the Python path.

    Raises ValueError where there is none or it is no TransferModel.
    """
    if name in MODELS:
        return MODELS[name]
    module, colon, attribute = name.partition(":")
    if not colon:
        raise ValueError(f"unknown model {name!r}; known models: {', '.join(MODELS)}, or give module:Class")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"model {name!r} cannot be imported: {error}; is its folder on PYTHONPATH?"
        ) from error
    if not (isinstance(found, type) and issubclass(found, TransferModel)):
        raise ValueError(f"model {name!r} is not a subclass of ml.models.transfer.TransferModel")
    return found


def build(name: str, **hyperparameters: object) -> TransferModel:
    """The model `name` with `hyperparameters` in place of its defaults.

    Raises ValueError for a model, a hyper-parameter or a type of value that does not exist there.
    """
    model = find(name)
    fields = {field.name: field for field in dataclasses.fields(model)}
    unknown = [key for key in hyperparameters if key not in fields]
    if unknown:
        raise ValueError(
            f"{name}: unknown hyper-parameter {', '.join(map(repr, unknown))}; known: {', '.join(fields)}"
        )
    for key, value in hyperparameters.items():
        check_type(name, fields[key], value)
    return model(**hyperparameters)


def check_type(model: str, field: dataclasses.Field, value: object) -> None:
    """Raise ValueError unless `value` has the type of the field's default; an int may stand for a float."""
    expected = type(field.default)
    if type(value) is expected or (expected is float and type(value) is int):
        return
    # YAML 1.1 reads 1e-3 as text; it wants the point.
    hint = " (in YAML write 1.0e-3, not 1e-3)" if isinstance(value, str) and expected is float else ""
    raise ValueError(f"{model}: {field.name} must be of type {expected.__name__}, not {value!r}{hint}")
