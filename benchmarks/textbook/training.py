"""What the textbook trainings are given, so that they can be compared with ours number by number."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset


@dataclass(frozen=True)
class Script:
    """One seed's random numbers: initial parameters by our names, and (order, draws by name) of each epoch.

    order: (n,) int64; draws: entries (n, ...) in that order. Drawing them costs the textbook no time.
    """

    initial: dict[str, Tensor]
    epochs: Sequence[tuple[Tensor, dict[str, Tensor]]]


def batches(
    columns: Sequence[Tensor], batch: int, order: Tensor, draws: dict[str, Tensor]
) -> Iterator[tuple[list[Tensor], dict[str, Tensor]]]:
    """The batches of one epoch as a DataLoader yields them, each with its part of the draws."""
    loader = DataLoader(TensorDataset(*columns), batch_size=batch, sampler=order.tolist())
    for index, rows in enumerate(loader):
        part = slice(index * batch, (index + 1) * batch)
        yield rows, {name: draw[part] for name, draw in draws.items()}


def load(model: nn.Module, names: dict[str, str], initial: dict[str, Tensor]) -> None:
    """Set the parameters; `names` gives the module's name of each of ours."""
    model.load_state_dict({names[name]: value for name, value in initial.items()})


def state(model: nn.Module, names: dict[str, str]) -> dict[str, Tensor]:
    """The parameters by our names, on the CPU."""
    values = model.state_dict()
    return {name: values[inner].cpu() for name, inner in names.items()}
