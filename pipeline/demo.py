"""`diffcdr demo`: what the product is worth, on synthetic data, in minutes.

A part of profile `tuned` on one β and two seeds, so that `diffcdr run --profile tuned` goes on from there.
"""

import textwrap
from collections.abc import Iterator
from pathlib import Path

import dagster as dg

from assets.report.forest import forest_frame, sentences
from assets.report.metrics import LIST_HEADLINE
from assets.report.people import HISTORY, people_frame
from assets.report.results import Source
from assets.report.verdict import recommended
from assets.serving.registry import Registered, register
from assets.settings.profile import Profile, load_profiles
from assets.state.store import Store
from assets.state.tracking import MlflowTracking
from assets.training.choose import rivals
from pipeline.chain import Chain, perform

TASK, PROFILE, BETA, SEEDS = "demo_video_music", "tuned", 0.2, (0, 1)
# A baseline, the paper's model and ours, beside every row that a champion has to beat.
LEARNED = ("emcdr", "diffcdr", "star_diffusion", "choice_diffusion")
SHOWN = 20  # items of the list
OF_HISTORY = 6
WIDTH = 100


def run(instance: dg.DagsterInstance) -> Registered:
    """All stages, and the best models as the champion; what is up to date is not done again."""
    chain = Chain([TASK], [BETA], SEEDS, [PROFILE], models(load_profiles()[PROFILE]))
    perform(instance, chain.steps())
    return register(Store(), MlflowTracking(), chain.axes, TASK, chain.known[PROFILE])


def models(profile: Profile) -> list[str]:
    """What is trained, in the order of the profile."""
    beaten = {name for objective in profile.objectives for name in rivals(profile, objective)}
    return [name for name in profile.trained if name in beaten or name in LEARNED]


def ending(source: Source, registered: Registered, page: Path, command: str) -> Iterator[str]:
    """About fifteen lines: what was done, what it is worth, one user's list, and what to do next. page: the
    report; command: what this command is called from here."""
    frame = forest_frame(source)
    frame = frame[frame["task"] == TASK]
    yield ""
    yield from _wrapped(
        f"Trained {len(models(source.profile))} models on synthetic video and music ratings, on two splits "
        f"of the users who are in both: {BETA:.0%} of them are test users, whose music ratings were hidden. "
        f"Registered as {registered.name} version {registered.version}: {registered.model}."
    )
    for sentence in sentences(source, frame):
        yield from _wrapped(sentence)
    yield from _one_user(source)
    yield ""
    yield "Next (the data are synthetic: what they say of a model is not evidence):"
    commands = {
        f"python3 -m webbrowser {page.absolute().as_uri()}": "every table and figure",
        f"{command} ui": "every run, in Dagster and MLflow",
        f"{command} serve --task {TASK}": "the champion, by curl or on a page",
    }
    yield from (f"  {command}    # {what}" for command, what in commands.items())


def _one_user(source: Source) -> Iterator[str]:
    """The history of a test user, and the list by the model to use, with what the user chose marked."""
    people = people_frame(source)
    people = people[people["task"] == TASK]
    if people.empty:
        return
    use = recommended(source)
    model = use.loc[(use["task"] == TASK) & (use["metric"] == LIST_HEADLINE), "model"].iloc[0]
    hits = people[(people["side"] == model) & (people["place"] <= SHOWN)].groupby("user", sort=False)["hit"]
    hits = hits.sum().astype(int)
    # Neither the luckiest nor the worst of those drawn by chance.
    user = hits.index[(hits - hits.median()).abs().argmin()]
    mine = people[people["user"] == user]
    history, shown = mine[mine["side"] == HISTORY], mine[mine["side"] == model].head(SHOWN)
    rated = ", ".join(f"{row.item} {row.stars:g}★" for row in history.head(OF_HISTORY).itertuples())
    marked = ", ".join(f"[{row.item}]" if row.hit else row.item for row in shown.itertuples())
    yield from _wrapped(f"Test user {user} rated {len(history)} videos: {rated}, …")
    by = source.names.model(model)
    yield from _wrapped(f"and is shown this music by {by}, in brackets what the user has chosen: {marked}")


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, subsequent_indent="  ", break_on_hyphens=False)
