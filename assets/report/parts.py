"""What the report is made of: each table and figure of a profile, with words on how to read it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from assets.report import figures, layouts, tables, verdicts
from assets.report.formats import Layout, Part, Picture, layout
from assets.report.layouts import Names
from assets.report.results import (
    read_calibration,
    read_coverage,
    read_distances,
    read_results,
    read_surface,
    read_throughput,
    read_warming,
)
from assets.settings.axes import CATALOG, Cell, Trial
from assets.settings.profile import Profile
from assets.state.store import Entry, Store
from assets.training.controls import PERMUTED
from assets.training.distributions import BLIND, DIFFUSION
from assets.training.models import TITLES
from assets.training.warming import diffusions

NAMES = Names(CATALOG, {**TITLES, "source": "Source vectors"})


def table1_layouts(store: Store, tasks: Sequence[str]) -> list[Layout]:
    """Table 1 as it is read, of these tasks; empty where the overlap of none is known."""
    frame = tables.table1(store, CATALOG)
    frame = frame[frame["task"].isin(tasks)]
    return [layouts.table1(frame, NAMES)] if len(frame) else []


def table1_part(store: Store) -> Part:
    frame = tables.table1(store, CATALOG)
    notes = (
        "Counts after removing repeated ratings of the same user and item. Overlap: users with ratings in "
        "both domains. The paper gives thousands (K).",
    )
    shown = tuple(table1_layouts(store, list(CATALOG.tasks)))
    return Part("table1", "Table 1. Data statistics", frame, shown, notes)


def summary_part(store: Store, profiles: Mapping[str, Profile]) -> Part:
    """Finished cells by profile, task, objective and model."""
    results = read_results(store)
    frames = [
        tables.coverage(results[results["profile"] == name], profile, CATALOG)
        for name, profile in profiles.items()
    ]
    frame = pd.concat(frames, ignore_index=True)
    rows = []
    for (profile, task, objective), part in frame.groupby(["profile", "task", "objective"], sort=False):
        cells = {
            NAMES.model(row.model): f"{row.present}"
            if not row.missing
            else f"{row.present} of {row.expected}"
            for row in part.itertuples()
        }
        head = {"Profile": profiles[profile].title, "Task": NAMES.task(task), "Objective": objective}
        rows.append({**head, **cells})
    shown = (layout("", rows, keys=3, sections=True),) if rows else ()
    trials = (
        f"β {', '.join(f'{beta:.0%}' for beta in CATALOG.betas)}; seeds {', '.join(map(str, CATALOG.seeds))}"
    )
    notes = (
        f"The catalogue asks for {trials}. Blank: the profile does not train that model for that objective.",
    )
    return Part("summary", "What was run", frame, shown, notes)


def headline(profile: Profile) -> str:
    """The selection rule by which a profile is judged."""
    return "validation" if profile.validation else "last"


def table2_part(store: Store, profile: Profile) -> Part:
    results = read_results(store, profile=profile.name)
    frame = tables.table2(results, CATALOG, profile.models, profile.controls)
    notes = (
        "Means ± sample standard deviation over seeds; bold is the best of a row. MAE and RMSE: lower is "
        "better; N@20 and H@20: higher is better. Improve: DiffCDR against the best other model, positive "
        "where DiffCDR is better. p: paired t-test over seeds between the two; * where DiffCDR is better "
        "with p < 0.05. Difference: ours − paper.",
    )
    shown = layouts.table2(frame, NAMES, profile.models, profile.controls)
    gaps = _gaps(results, profile, (*profile.models, *profile.controls))
    pictures = tuple(figures.optimism(frame, NAMES, profile.models))
    title = f"Table 2. Cold start. {profile.title}"
    return Part("table2", title, frame, tuple(shown), notes, gaps, pictures)


def table2_layouts(profile: Profile, results: pd.DataFrame) -> list[Layout]:
    """Table 2 as it is read, one layout for each selection rule that has results."""
    frame = tables.table2(results, CATALOG, profile.models, profile.controls)
    return layouts.table2(frame, NAMES, profile.models, profile.controls)


def verdict_part(store: Store, profile: Profile) -> Part:
    frame = verdicts.verdicts(store, profile, CATALOG)
    notes = (
        "Each model is the best of its family by validation error; errors and differences are on the test "
        "users, pooled over seeds. Interval: paired bootstrap of whole users, "
        f"{tables.RESAMPLES:,} resamples, 95 %. yes: all of it is below 0; no: all above; open: neither.",
        "Transfer: what knows the user's source ratings against what knows nothing of the user. Learning: "
        "trained models against simple statistics of the source. Baselines: DiffCDR against every other "
        "trained model. Diffusion: DiffCDR against the same without its diffusion. CRPS: of distributions "
        "alone.",
        "DiffCDR and the controls on stars predict medians for MAE, the other models means: where half the "
        "ratings are five stars this alone is worth a good deal, whatever is known of the user. RMSE and "
        "CRPS compare like with like. Validation users of one seed may be test users of another, and "
        "nothing is corrected for the number of comparisons.",
    )
    shown = _verdict_layouts(store, profile, frame)
    gaps = _gaps(read_results(store, profile=profile.name), profile, _rated(profile), ("rating",))
    return Part("verdict", f"Verdict. {profile.title}", frame, tuple(shown), notes, gaps)


def verdict_layouts(store: Store, profile: Profile, tasks: Sequence[str]) -> list[Layout]:
    """The verdict on these tasks: a sentence for each task and β, and the numbers behind it."""
    frame = verdicts.verdicts(store, profile, CATALOG)
    return _verdict_layouts(store, profile, frame[frame["task"].isin(tasks)])


def _verdict_layouts(store: Store, profile: Profile, frame: pd.DataFrame) -> list[Layout]:
    return layouts.verdict(frame, verdicts.recommended(store, profile, CATALOG), NAMES)


def distribution_part(store: Store, profile: Profile) -> Part:
    frame = tables.distribution(read_results(store, profile=profile.name), headline(profile))
    notes = (
        "Means over seeds; lower is better, but for the joint log-likelihood (of all of a user's ratings "
        "together, for each rating) higher. MAE is of the median, which minimizes it, RMSE of the mean. CRPS "
        "and log loss score the distribution itself; the CRPS of a point would be its MAE. Calibration "
        "error: mean distance between stated and observed P(r ≥ level). Gaussian and mean vector: the same "
        "model with the diffusion replaced by the Gaussian it starts from, or by that Gaussian's mean alone; "
        "what DiffCDR gains over them is what diffusion adds.",
    )
    shown = layouts.distribution(frame, NAMES, profile.trained)
    pictures = figures.reliability(read_calibration(store, profile.name), NAMES, _distributions(profile))
    title = f"Distributions. {profile.title}"
    return Part("distribution", title, frame, tuple(shown), notes, "", tuple(pictures))


def warming_part(store: Store, profile: Profile) -> Part:
    frame = tables.warming(read_warming(store, profile.name))
    notes = (
        "Of each test user with enough target ratings the first n are seen, by time where there is time, and "
        "the same later ones predicted for every n. DiffCDR, Gaussian: 512 samples of the user's vector, "
        "weighted by the likelihood of what was seen; nothing is trained. Fine-tuning: ten gradient steps on "
        "one vector, the rate chosen on validation users. The two simple predictors add a user's shrunk "
        "residuals; their distributions are normals cut into levels, which costs them in MAE and CRPS, so "
        "compare them by RMSE.",
    )
    shown, pictures = layouts.warming(frame, NAMES), figures.warming(frame, NAMES)
    return Part("warming", f"Warming up. {profile.title}", frame, tuple(shown), notes, "", tuple(pictures))


def ranking_part(store: Store, profile: Profile) -> Part:
    models = (*profile.models, *profile.controls)
    results = read_results(store, profile=profile.name)
    frame = tables.ranking(results, models)
    notes = (
        "All items of the target domain are ranked, k = 20; higher is better. Epochs: "
        f"{layouts.SELECTIONS[headline(profile)]}. Random: the closed-form expectation of a random order; "
        "popularity: by number of training ratings. "
        "nDCG@20 of retrieved divides by the DCG of the same hits in the first places.",
    )
    shown = layouts.ranking(frame, NAMES, profile.models, headline(profile), profile.controls)
    gaps = _gaps(results, profile, models, ("ranking",))
    return Part("ranking", f"Ranking. {profile.title}", frame, tuple(shown), notes, gaps)


def significance_part(store: Store, profile: Profile) -> Part:
    results = read_results(store, profile=profile.name)
    models = (*profile.models, *profile.controls)
    frame = tables.significance(store, profile.name, results, headline(profile), models)
    notes = (
        "Difference: DiffCDR − baseline, mean over seeds; for MAE and RMSE a negative one favours "
        f"DiffCDR, for N@20 and H@20 a positive one. Epochs: {layouts.SELECTIONS[headline(profile)]}. Over "
        "seeds: paired t-test as in the paper, and Wilcoxon's signed-rank test (with five seeds its p "
        "cannot go below 0.0625).",
        "Over users: a user's errors are summed over the seeds in which they are a test user. Interval: "
        f"paired bootstrap of whole users, {tables.RESAMPLES:,} resamples. Wilcoxon: of each user's own "
        "MAE or RMSE. Holm: the p to its left, corrected for comparing with several baselines. "
        f"{layouts.UNDEFINED}: undefined, for example with one seed; blank: no errors by user.",
    )
    shown = layouts.significance(frame, NAMES, models)
    gaps = _gaps(results, profile, models)
    return Part("significance", f"Significance. {profile.title}", frame, tuple(shown), notes, gaps)


def table3_part(store: Store, profile: Profile) -> Part:
    results = read_results(store, profile=profile.name)
    frame = tables.table3(results, CATALOG, profile.controls)
    notes = (
        "† The lowest mean of CMF, EMCDR, SSCDR and LACDR, for each column apart, as the paper forms it. "
        "DA: diffusion and alignment without the task loss; AT: alignment and task loss without "
        "diffusion; DAT: all of DiffCDR. Means over seeds, bold is the best of a column, lower is better.",
    )
    shown = layouts.table3(frame, NAMES)
    gaps = _gaps(results, profile, _ablation_models(profile), ("rating",))
    return Part("table3", f"Table 3. Ablation. {profile.title}", frame, tuple(shown), notes, gaps)


def _ablation_models(profile: Profile) -> list[str]:
    wanted = {*tables.MAPPING_MODELS, *layouts.ABLATION_ROWS, *profile.controls}
    return [name for name in profile.trained if name in wanted and "rating" in profile.objectives_of(name)]


def _compared(profile: Profile) -> list[str]:
    """The models and those controls that some objective of the profile is measured on."""
    return [name for name in profile.trained if name not in profile.ablations]


def _rated(profile: Profile) -> list[str]:
    """All that is trained for ratings, ablations included."""
    return [name for name in profile.trained if "rating" in profile.objectives_of(name)]


def _trained_for(profile: Profile, objective: str) -> list[str]:
    names = (*profile.models, *profile.controls)
    return [name for name in names if objective in profile.objectives_of(name)]


def _distributions(profile: Profile) -> list[str]:
    return [name for name in profile.trained if profile.registered(name) in (DIFFUSION, BLIND, "star_logit")]


def coverage_part(store: Store, profile: Profile) -> Part:
    frame = tables.support(read_coverage(store, profile.name))
    notes = (
        "Pooled over seeds, test users' ratings. Training ratings of the item: those that the cell's models "
        "may learn from. Best control: the lowest of each row apart. Epochs: "
        f"{layouts.SELECTIONS[headline(profile)]}.",
    )
    shown = layouts.support(frame, NAMES, profile.models, profile.controls)
    pictures = figures.calibration(frame, NAMES, profile.models)
    gaps = _gaps(
        read_results(store, profile=profile.name), profile, _trained_for(profile, "rating"), ("rating",)
    )
    return Part("coverage", f"Coverage. {profile.title}", frame, tuple(shown), notes, gaps, tuple(pictures))


def table4_part(store: Store, profile: Profile) -> Part:
    models = (*profile.models, *profile.ablations)
    frame = tables.table4(read_throughput(store, profile.name))
    notes = (
        "Thousands a second, mean over cells. Samples are rating rows, as the paper counts. Replicas "
        "(seeds) that are trained at once count together. The paper measured on one core of a 2 GHz Xeon "
        "and a P100 GPU, so its row compares models with each other, not with ours.",
    )
    shown = layouts.table4(frame, NAMES, models)
    return Part("table4", f"Table 4. Throughput. {profile.title}", frame, tuple(shown), notes)


def figure3_part(store: Store, profile: Profile) -> Part:
    results = read_results(store, profile=profile.name)
    frame = tables.figure3(results, headline(profile), profile.models)
    notes = (
        "Cold: before fine-tuning; warm: after fine-tuning each test user's vector on the earlier half of "
        f"their ratings. Both on the later half, by time. Epochs: {layouts.SELECTIONS[headline(profile)]}. "
        "Left out: test users with fewer than two target ratings, by cell. Difference: warm against cold, "
        "negative is better.",
    )
    shown = layouts.figure3(frame, NAMES, profile.models, _left_out(store, profile, frame))
    pictures = figures.figure3(frame, NAMES, profile.models)
    title = f"Figure 3. Warm start. {profile.title}"
    gaps = _gaps(results, profile, profile.models, ("rating",))
    return Part("figure3", title, frame, tuple(shown), notes, gaps, tuple(pictures))


def _left_out(store: Store, profile: Profile, frame: pd.DataFrame) -> dict[tuple[str, float], str]:
    """How many test users warm start leaves out, by task and β: a number, or its range over cells."""
    out = {}
    for task, beta in frame[["task", "beta"]].drop_duplicates().itertuples(index=False):
        cells = [Cell(task, Trial(beta, seed)) for seed in CATALOG.seeds]
        manifests = [store.model(profile.name, m, cell).manifest() for cell in cells for m in profile.models]
        counts = {m["warm_left_out"] for m in manifests if m and m.get("warm_left_out") is not None}
        if counts:
            out[task, beta] = "–".join(str(count) for count in sorted({min(counts), max(counts)}))
    return out


def figure4_part(store: Store, profile: Profile) -> Part:
    raw = read_distances(store, profile.name)
    frame = tables.distances(raw)
    notes = (
        "t-SNE keeps neighbours, not distances: that two clouds touch or lie apart in the picture proves "
        "nothing. The table measures it: each model's vectors against those of a factorization that saw "
        "the test users' ratings. Fréchet² and MMD² (RBF kernel, median bandwidth) compare the clouds, "
        "Euclidean and cosine are means over users; lower is closer, but for cosine higher. Means over "
        "the analysed cells. TGT is trained for training users and for test users never, so it starts "
        "where the truth started.",
    )
    pictures = [
        _picture(
            store.embeddings(profile.name, cell), f"figure4-{cell.task}", "figure4", _figure4_caption(cell)
        )
        for cell in _first_cells(raw)
    ]
    title = f"Figure 4. User vectors. {profile.title}"
    return Part(
        "figure4",
        title,
        frame,
        tuple(layouts.distances(frame, NAMES, profile.models)),
        notes,
        "",
        tuple(pictures),
    )


def _figure4_caption(cell: Cell) -> str:
    return (
        f"Figure 4. {NAMES.task(cell.task)}, β = {cell.beta:.0%}, seed {cell.seed}: t-SNE of up to 1000 "
        "users. (a) training and (b) test users by model, black is the truth; (c) training and (d) test "
        "users by DiffCDR's number of function evaluations, grey is the source domain."
    )


def search_part(store: Store, profile: Profile) -> Part:
    frame = read_surface(store, profile.name)
    notes = (
        "Every pair of λ (weight of the task loss) and s (guidance) is trained; errors are on validation "
        "users only. Paper: its choice, λ = 0.1 and s = 0.1, on the same users.",
    )
    pictures = [
        _picture(store.search(profile.name, cell), f"surface-{cell.task}", "surface", _surface_caption(cell))
        for cell in _first_cells(frame)
    ]
    title = f"Search of λ and s. {profile.title}"
    return Part(
        "search_surface", title, frame, tuple(layouts.search(frame, NAMES)), notes, "", tuple(pictures)
    )


def _surface_caption(cell: Cell) -> str:
    return f"{NAMES.task(cell.task)}, β = {cell.beta:.0%}, seed {cell.seed}: validation error by λ and s."


def _first_cells(frame: pd.DataFrame) -> list[Cell]:
    """Of each task the cell of the smallest β, and of its first seed."""
    ordered = frame.sort_values(["beta", "seed"]).drop_duplicates("task").set_index("task")
    return [
        Cell(task, Trial(float(ordered.loc[task, "beta"]), int(ordered.loc[task, "seed"])))
        for task in NAMES.in_order(frame["task"])
    ]


def _picture(entry: Entry, name: str, file: str, caption: str) -> Picture:
    endings = [ending for ending in ("png", "svg") if entry.has(f"{file}.{ending}")]
    return Picture(name, caption, {e: entry.read(f"{file}.{e}") for e in endings})


def _gaps(
    results: pd.DataFrame,
    profile: Profile,
    models: Sequence[str],
    objectives: Sequence[str] = ("rating", "ranking"),
) -> str:
    """Which cells of the tasks with results are missing, in words; empty where none is."""
    frame = tables.coverage(results, profile, CATALOG)
    frame = frame[frame["model"].isin(models) & frame["objective"].isin(objectives)]
    objectives_by_gap: dict[str, list[str]] = {}
    for (task, objective), part in frame.groupby(["task", "objective"], sort=False):
        for (lacks, of), rows in part[part["missing"] > 0].groupby(["missing", "expected"]):
            who = "every model" if len(rows) == len(part) else ", ".join(map(NAMES.model, rows["model"]))
            gap = f"{NAMES.task(task)}: {lacks} of {of} cells of {who}"
            objectives_by_gap.setdefault(gap, []).append(objective)
    return "; ".join(f"{gap} ({', '.join(trained)})" for gap, trained in objectives_by_gap.items())


@dataclass(frozen=True)
class Kind:
    """A table or figure that every profile has for which it is `wanted`."""

    name: str
    what: str
    build: Callable[[Store, Profile], Part]
    upstream: Callable[[Profile], Sequence[str]]
    wanted: Callable[[Profile], bool] = lambda profile: True


KINDS = (
    Kind(
        "verdict",
        "Whether transfer helps, by how much, and which model to use.",
        verdict_part,
        _rated,
        lambda profile: profile.validation,
    ),
    Kind(
        "table2",
        "Table 2: cold start, every model, mean and spread over seeds, under each selection rule.",
        table2_part,
        _compared,
    ),
    Kind(
        "ranking",
        "Ranking of the whole catalogue, k = 20, beside the expectation of a random order.",
        ranking_part,
        lambda profile: _trained_for(profile, "ranking"),
        lambda profile: "ranking" in profile.objectives,
    ),
    Kind(
        "significance",
        "DiffCDR against each baseline: tests over seeds and over users.",
        significance_part,
        _compared,
    ),
    Kind(
        "table3",
        "Table 3: what diffusion, alignment and task loss are each worth.",
        table3_part,
        _ablation_models,
        lambda profile: bool(profile.ablations) and not profile.biased,
    ),
    Kind(
        "distribution",
        "Predicted distributions: CRPS, log loss and calibration, and what the diffusion adds.",
        distribution_part,
        lambda profile: [*_distributions(profile), *(name for name in profile.trained if name == PERMUTED)],
        lambda profile: bool(_distributions(profile)),
    ),
    Kind(
        "warming",
        "Error by number of target ratings seen.",
        warming_part,
        lambda profile: ["warming_up"],
        lambda profile: bool(diffusions(profile)),
    ),
    Kind(
        "coverage",
        "Errors by what is known of the item and of the user, and calibration.",
        coverage_part,
        lambda profile: _trained_for(profile, "rating"),
    ),
    Kind(
        "table4",
        "Table 4: training and test throughput.",
        table4_part,
        lambda profile: (*profile.models, *profile.ablations),
    ),
    Kind(
        "figure3",
        "Figure 3: cold beside warm start.",
        figure3_part,
        lambda profile: profile.models,
        lambda profile: not profile.biased,
    ),
    Kind(
        "figure4",
        "Figure 4: user vectors as t-SNE, and their distances to the true ones.",
        figure4_part,
        lambda profile: ["embeddings"],
        lambda profile: not profile.biased,
    ),
    Kind(
        "search_surface",
        "Validation error by λ and s.",
        search_part,
        lambda profile: ["search"],
        lambda profile: bool(profile.search),
    ),
)
