"""What the data look like: shares of ratings, and how much is known of the users whom two domains share."""

import numpy as np
import pandas as pd

from assets.report.part import Picture
from assets.settings.catalog import Catalog, Task
from assets.state import plots
from assets.state.store import Store

# Where the bars of history lengths begin; the last has no end.
STARTS = (1, 2, 3, 5, 10, 20, 50, 100)
SIDES = {"source": plots.BLUE, "target": plots.RED}


def data_pictures(store: Store, catalog: Catalog) -> list[Picture]:
    """Of each task whose overlap is known: shares by rating, and shared users by number of their ratings."""
    known = [task for task in catalog.tasks.values() if store.overlap(task.name).manifest() is not None]
    return [_picture(store, catalog, task) for task in known]


def _picture(store: Store, catalog: Catalog, task: Task) -> Picture:
    shared = store.overlap(task.name).table("users.parquet")
    figure = plots.new_figure(9.0, 2.7)
    stars, lengths = figure.subplots(1, 2)
    titles = {side: catalog.domains[getattr(task, side)].title for side in SIDES}
    for position, (side, colour) in enumerate(SIDES.items()):
        shift = 0.4 * (position - 0.5)
        shares = store.ratings(getattr(task, side)).require()["stars"]
        # Keys of a manifest are text.
        places = [int(star) + shift for star in shares]
        stars.bar(places, list(shares.values()), 0.4, color=colour, label=titles[side])
        counts = history_lengths(shared[f"{side}_ratings"])
        lengths.bar(np.arange(len(counts)) + shift, counts.to_numpy(), 0.4, color=colour)
        lengths.set_xticks(range(len(counts)), counts.index)
    plots.plain(stars, "Share of ratings by stars")
    plots.plain(lengths, "Shared users by number of their ratings")
    stars.set_xlabel("rating", fontsize=8)
    lengths.set_xlabel("ratings of the user in that domain", fontsize=8)
    stars.legend(fontsize=7, frameon=False)
    caption = (
        f"{task.title}: how ratings are spread, and how much is known of the {len(shared):,} users in both "
        "domains."
    )
    return Picture(f"data-{task.name}", caption, plots.formats(figure))


def history_lengths(counts: pd.Series) -> pd.Series:
    """How many users have so many ratings, by spans such as `5–9`, up to the longest that anybody has."""
    ends = [*(start - 1 for start in STARTS[1:]), None]
    titles = [
        f"{start}+" if end is None else f"{start}" if end == start else f"{start}–{end}"
        for start, end in zip(STARTS, ends, strict=True)
    ]
    places = np.searchsorted(STARTS, counts.to_numpy(), side="right") - 1
    return pd.Series(np.bincount(places, minlength=len(STARTS)), index=titles)
