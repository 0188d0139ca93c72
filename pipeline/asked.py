"""Names that are asked for on the command line, checked before anything is opened or imported for long."""

from collections.abc import Mapping, Sequence

from assets.settings.catalog import OWN_DATA, Catalog, load_catalog
from assets.settings.profile import Profile
from assets.state.store import home


class UnknownName(ValueError):
    """Something asked for is not in the catalogue or the profiles; the message lists what is."""


def check_tasks(catalog: Catalog, tasks: Sequence[str]) -> None:
    """Raise UnknownName for those that are not in the catalogue; of own files the message says in which."""
    try:
        _check("task", tasks, catalog.tasks)
    except UnknownName as error:
        file = home() / OWN_DATA
        if file.is_file() and set(tasks) <= set(load_catalog(file).tasks):
            raise UnknownName(f"{error}; own files were entered so: export DIFFCDR_CATALOG={file}") from None
        raise


def check_profiles(known: Mapping[str, Profile], profiles: Sequence[str]) -> None:
    """Raise UnknownName for those that are not known."""
    _check("profile", profiles, known)


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
    check_profiles(known, profiles)
    for name in profiles:
        _check(f"model of profile {name}", models, known[name].trained)


def _check(what: str, asked: Sequence, known: Sequence) -> None:
    unknown = [str(value) for value in asked if value not in known]
    if unknown:
        raise UnknownName(f"unknown {what}: {', '.join(unknown)}; known are {', '.join(map(str, known))}")
