"""The metrics that reports know: a new one is an entry of METRICS."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from assets.settings.profile import Profile


@dataclass(frozen=True)
class Metric:
    """A metric as results name it, and how it is read.

    objective: what models are trained for that it is measured on; tables: those that show it, with its title
    there; paper: its name in the paper's tables; sums: the column of `user_errors` or `list_scores` that its
    numerator is summed from, and root: whether it is the root of that mean; chosen_by: the metric by which
    validation chooses whom it is said of, where that is another.
    """

    name: str
    title: str
    objective: str = "rating"
    higher_is_better: bool = False
    tables: Mapping[str, str] = field(default_factory=dict)
    paper: str = ""
    sums: str = ""
    root: bool = False
    chosen_by: str = ""

    @property
    def digits(self) -> int:
        return 4 if self.objective == "rating" else 5

    def best(self, values):
        """The best of a series; NaN where it has no number."""
        return values.max() if self.higher_is_better else values.min()

    def is_beaten(self, value: float, rival: float) -> bool:
        """Whether `value` is not better than the rival's; not where either is NaN."""
        return value <= rival if self.higher_is_better else value >= rival


def _ranking(name: str, title: str, paper: str = "", **tables: str) -> Metric:
    return Metric(name, title, "ranking", higher_is_better=True, tables=tables, paper=paper)


def _listed(name: str, title: str, **tables: str) -> Metric:
    """A metric of lists that is known of each user."""
    shown = {"lists": title, **tables}
    return Metric(
        name, title, "ranking", higher_is_better=True, tables=shown, sums=name, chosen_by=LIST_HEADLINE
    )


# What lists are chosen by.
LIST_HEADLINE = "ndcg@20"
_MEAN, _ALL = "Recall@20, mean over users", "Recall@20, all hits"
METRICS = (
    Metric(
        "mae",
        "MAE",
        tables={
            "table2": "MAE",
            "errors": "MAE",
            "verdict": "MAE",
            "warming": "MAE",
            "distribution": "MAE of the median",
        },
        paper="mae",
        sums="absolute",
    ),
    Metric("mae_mean", "MAE of the mean", tables={"distribution": "MAE of the mean"}),
    Metric(
        "rmse",
        "RMSE",
        tables={
            "table2": "RMSE",
            "errors": "RMSE",
            "verdict": "RMSE",
            "warming": "RMSE",
            "distribution": "RMSE of the mean",
        },
        paper="rmse",
        sums="squared",
        root=True,
    ),
    # A distribution's CRPS is compared with that of other distributions alone.
    Metric(
        "crps", "CRPS", tables={"verdict": "CRPS", "warming": "CRPS", "distribution": "CRPS"}, sums="crps"
    ),
    Metric("log_loss", "Log loss", tables={"distribution": "Log loss"}),
    Metric("calibration_error", "Calibration error", tables={"distribution": "Calibration error"}),
    Metric(
        "joint_log_likelihood",
        "Joint log-likelihood",
        higher_is_better=True,
        tables={"distribution": "Joint log-likelihood"},
    ),
    _listed(
        "ndcg@20",
        "nDCG@20",
        verdict="nDCG@20",
        table2_lists="nDCG@20",
        ranking="nDCG@20",
        ranking_later="nDCG@20",
        history="nDCG@20",
        first_choices="nDCG@20",
    ),
    # The paper's N@20 and H@20, by the metrics of ours that its numbers fit.
    _ranking("dcg@20", "DCG@20", paper="ndcg@20", table2_paper="N@20†", ranking="DCG@20"),
    replace(
        _listed("recall@20", "Recall@20", table2_paper="H@20†", ranking=_MEAN, ranking_later=_MEAN),
        paper="hr@20",
    ),
    _ranking("recall_micro@20", "Recall@20, all hits", ranking=_ALL, ranking_later=_ALL),
    _listed(
        "hr@20",
        "Hit rate@20",
        verdict="Hit rate@20",
        table2_lists="Hit rate@20",
        ranking="Hit rate@20",
        ranking_later="Hit rate@20",
        first_choices="Hit rate@20",
        history="Hit rate@20",
    ),
    _listed("mrr@20", "MRR@20"),
    _listed("ndcg@10", "nDCG@10"),
    _ranking("precision@20", "Precision@20", ranking="Precision@20"),
    _ranking("ndcg_retrieved@20", "nDCG@20 of retrieved", ranking="nDCG@20 of retrieved"),
)
BY_NAME = {metric.name: metric for metric in METRICS}
# The metrics of ours by the names that the paper's tables give them.
OF_THE_PAPER = {metric.paper: metric.name for metric in METRICS if metric.paper}


def shown_in(table: str) -> tuple[Metric, ...]:
    """The metrics that a table shows, under their titles there, in its order."""
    return tuple(replace(metric, title=metric.tables[table]) for metric in METRICS if table in metric.tables)


def of_table2(profile: Profile) -> tuple[Metric, ...]:
    """The metrics of Table 2. The paper's N@20 and H@20 are those of its own protocol alone: models that are
    chosen on validation users are compared by what they are chosen by, and by hit rate."""
    return (*shown_in("table2"), *shown_in("table2_lists" if profile.validation else "table2_paper"))


ERRORS = shown_in("errors")
