"""DiffCDR as MLflow serves it: source user vectors in, target user vectors out.

MLflow copies this file and `ml` into the logged model and runs them there, without the rest of the project.
"""

import json
from pathlib import Path

import mlflow  # noqa: TID253 - MLflow runs this file itself, no pipeline process imports it
import numpy as np
import pandas as pd
import torch  # noqa: TID253
from mlflow.pyfunc import PythonModel  # noqa: TID253
from safetensors.torch import load_file

from ml.data import History, SourceUsers
from ml.models.registry import build


class ServedDiffCDR(PythonModel):
    """Maps source user vectors (n, width) to target user vectors (n, k), both float32.

    Loaded by MLflow it takes float32 alone, as its signature says; JSON sent to a server is converted.
    """

    def load_context(self, context) -> None:
        config = json.loads(Path(context.artifacts["config"]).read_text())
        self.width = config["width"]
        model = build(config["model"], **config["hyperparameters"])
        self.model = model.load_state_dict(load_file(context.artifacts["weights"]))

    def predict(self, context, model_input: np.ndarray, params=None) -> np.ndarray:
        """Target user vectors (n, k) of `model_input` (n, width), an array or a DataFrame.

        Raises ValueError for another width, for what is not a number and for what is not finite.
        """
        return self.model.transfer([source_users(user_factors(model_input, self.width))])[0].numpy()


def user_factors(given: pd.DataFrame | np.ndarray, width: int) -> torch.Tensor:
    """`given` as a float32 tensor (n, width), or ValueError with the row or shape that is wrong."""
    try:
        values = np.asarray(given, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise ValueError(f"source user vectors must be numbers: {error}") from None
    if values.ndim != 2 or values.shape[1] != width:
        raise ValueError(
            f"source user vectors have shape {values.shape}, expected (users, {width}): "
            "one row a user, from the source factors this model was trained on"
        )
    finite = np.isfinite(values).all(axis=1)
    if not finite.all():
        raise ValueError(
            f"source user vector in row {int(finite.argmin())} is not finite: drop or mend that user"
        )
    return torch.from_numpy(values.copy())


def source_users(factors: torch.Tensor) -> SourceUsers:
    """Users known by their vectors alone: DiffCDR reads no history."""
    history = History(torch.zeros(len(factors) + 1, dtype=torch.int64), torch.zeros(0, dtype=torch.int64))
    return SourceUsers(factors, history, factors[:0])


mlflow.models.set_model(ServedDiffCDR())
