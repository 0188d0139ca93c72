"""The best twenty of the full catalogue for every cold-start user."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.data import K
from benchmarks.measure import Result
from benchmarks.paths.path import Options, Path, Work
from benchmarks.textbook import ranking
from ml.evaluation.ranking import top_k

Factors = tuple[Tensor, Tensor]


def prepare(options: Options) -> Work:
    users, items = (20, 500) if options.quick else (3_606, 64_443)
    generator = torch.Generator().manual_seed(0)
    factors = [torch.randn(rows, K, generator=generator).to(options.device) for rows in (users, items)]
    return Work(f"{users:,} users, {items:,} items, k = 20", tuple(factors), users)


def ours(data: Factors) -> Callable[[], Result]:
    items, _ = top_k(*data)
    return lambda: _scores(data, items.cpu())


def textbook(data: Factors) -> Callable[[], Result]:
    items = ranking.top_k(*(table.cpu().numpy() for table in data))
    return lambda: _scores(data, torch.from_numpy(items))


def _scores(data: Factors, items: Tensor) -> Result:
    """Exact scores of the chosen items: near ties may stand in another order."""
    users, catalogue = (table.cpu().double() for table in data)
    return {"scores": torch.einsum("nk,nik->ni", users, catalogue[items]).numpy()}


PATHS = (
    Path(
        "full-catalogue top-20",
        5,
        1e-5,
        prepare,
        ours,
        textbook,
        repeats=2,
        note="difference: exact scores of the chosen items; the memory limit is 500 MB",
    ),
)
