"""What commands open: the home's history, the results of profiles, names that are known."""

import contextlib
from collections.abc import Iterator, Sequence


@contextlib.contextmanager
def opened_instance() -> Iterator:
    """The home's Dagster instance, in which no run that was killed is left open."""
    from pipeline.instance import dagster_instance
    from pipeline.recovery import close_dead_runs

    with dagster_instance() as instance:
        close_dead_runs(instance)
        yield instance


def perform(steps) -> None:
    """Do these steps of a chain."""
    from pipeline import chain

    with opened_instance() as instance:
        chain.perform(instance, steps)


def check_tracking() -> None:
    """Raise before anything is done where MLflow does not answer."""
    from assets.state.tracking import MlflowTracking

    MlflowTracking().check()


def sources(profiles: Sequence[str] = ()) -> list:
    """What the tables of these profiles are made from; of all where none is named."""
    from assets.report.results import source
    from assets.settings.catalog import load_catalog
    from assets.settings.profile import load_profiles
    from assets.state.store import Store

    store, catalog, known = Store(), load_catalog(), load_profiles()
    return [source(store, catalog, known[name]) for name in profiles or known]


def known_profile(task: str, name: str):
    """The profile `name`; raises UnknownName where it or the task is not known."""
    from assets.settings.profile import load_profiles

    refuse_unknown(task, name)
    return load_profiles()[name]


def refuse_unknown(task: str | None, profile: str | None) -> None:
    """Raise UnknownName for a task or a profile that is asked for and not known, as `check_tasks` does."""
    from assets.settings.catalog import load_catalog
    from assets.settings.profile import load_profiles
    from pipeline.asked import check_profiles, check_tasks

    check_tasks(load_catalog(), [] if task is None else [task])
    check_profiles(load_profiles(), [] if profile is None else [profile])
