"""The measured paths, in the order of the table."""

from benchmarks.paths import factors, ranking, reviews, table2, transfer

PATHS = {
    path.name: path
    for path in (
        *transfer.PATHS,
        *factors.PATHS,
        *reviews.PATHS,
        *ranking.PATHS,
        *table2.PATHS,
    )
}
