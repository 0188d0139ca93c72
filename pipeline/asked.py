"""Names that are asked for on the command line, checked before anything is opened or imported for long."""

from collections.abc import Mapping, Sequence

from assets.settings.catalog import Catalog
from assets.settings.profile import Profile


class UnknownName(ValueError):
    """Something asked for is not in the catalogue or the profiles; the message lists what is."""


def check_tasks(catalog: Catalog, tasks: Sequence[str]) -> None:
    """Raise UnknownName for the first that is not in the catalogue."""
    _check("task", tasks, catalog.tasks)


def check_cells(
    catalog: Catalog,
    known: Mapping[str, Profile],
    betas: Sequence[float],
    seeds: Sequence[int],
    profiles: Sequence[str],
    models: Sequence[str],
) -> None:
    """Raise UnknownName for the first that the catalogue or the `known` profiles do not have."""
    _check("beta", betas, catalog.betas)
    _check("seed", seeds, catalog.seeds)
    _check("profile", profiles, known)
    for name in profiles:
        _check(f"model of profile {name}", models, known[name].trained)


def _check(what: str, asked: Sequence, known: Sequence) -> None:
    unknown = [str(value) for value in asked if value not in known]
    if unknown:
        raise UnknownName(f"unknown {what}: {', '.join(unknown)}; known are {', '.join(map(str, known))}")
