"""The overlap: what counts as liked follows the source's scale."""

import pytest

from assets.data import splits
from assets.data.ratings import ingest_domain
from assets.data.reviews import obtain
from assets.settings.catalog import Catalog, Columns, Domain, Task
from assets.state.store import Store

TASK = Task(name="t", title="t", source="a", target="b")


def liked(folder, scale: tuple[float, float], stars: list[float]) -> list[float]:
    """The source ratings of one user that count as liked."""
    columns = Columns(user="user", item="item", rating="rating")
    domains = {}
    for name in ("a", "b"):
        file = folder / f"{name}.csv"
        file.write_text("user,item,rating\n" + "".join(f"u,i{n},{s!r}\n" for n, s in enumerate(stars)))
        domains[name] = Domain(name=name, title=name, url=str(file), kind="csv", columns=columns, scale=scale)
        obtain(Store(), domains[name])
        ingest_domain(Store(), domains[name])
    splits.find_overlap(Store(), Catalog(domains=domains, tasks={"t": TASK}), "t")
    return [stars[item] for item in Store().overlap("t").table("liked.parquet")["item"]]


@pytest.mark.parametrize(
    ("scale", "stars", "expected"),
    [
        ((1, 5), [1.0, 3.0, 3.5, 5.0], [3.5, 5.0]),
        ((0, 10), [3.0, 5.0, 5.5, 10.0], [5.5, 10.0]),
        ((-1, 1), [-1.0, 0.0, 1.0], [1.0]),
        # In single precision 0.1 is larger than in double precision; it is not above itself.
        ((0, 0.2), [0.1, 0.15], [0.15]),
    ],
)
def test_a_rating_above_the_middle_of_the_scale_is_liked(tmp_path, scale, stars, expected):
    assert liked(tmp_path, scale, stars) == expected


def test_another_scale_finds_the_overlap_anew(tmp_path):
    assert liked(tmp_path, (1, 5), [3.5, 5.0]) == [3.5, 5.0]
    assert liked(tmp_path, (1, 8), [3.5, 5.0]) == [5.0]
