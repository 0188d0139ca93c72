import gzip
import itertools
import json
import re
from collections import Counter
from datetime import UTC, datetime

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LinearRegression, RidgeCV
from sklearn.metrics import r2_score, root_mean_squared_error
from sklearn.preprocessing import PolynomialFeatures

from ml import synthetic
from ml.synthetic import CORE, SCALES, ratings_frame, truth_of, write_reviews

SMALL = [(scale, domain) for scale in ("tiny", "demo") for domain in SCALES[scale].sizes]


def read(path):
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The three files of the tiny scale: path and counts by domain."""
    folder = tmp_path_factory.mktemp("tiny") / "raw"
    paths = {domain: folder / f"{domain}.json.gz" for domain in SCALES["tiny"].sizes}
    return {domain: (path, write_reviews(domain, "tiny", path)) for domain, path in paths.items()}


# The graph.


@pytest.mark.parametrize(("scale", "domain"), SMALL)
def test_counts_are_the_scale_and_the_five_core_holds(scale, domain):
    frame, size = ratings_frame(domain, scale), SCALES[scale].sizes[domain]
    assert len(frame.stars) == size.ratings
    assert np.bincount(frame.users, minlength=size.users).min() >= CORE
    assert np.bincount(frame.items, minlength=size.items).min() >= CORE
    assert (frame.users.max(), frame.items.max()) == (size.users - 1, size.items - 1)
    assert len(set(zip(frame.users.tolist(), frame.items.tolist(), strict=True))) == size.ratings


@pytest.mark.parametrize("seed", range(1, 8))
def test_no_pair_repeats_at_any_seed(seed):
    frame = ratings_frame("music", "tiny", seed)
    assert len(set(zip(frame.users.tolist(), frame.items.tolist(), strict=True))) == len(frame.users)


@pytest.mark.parametrize("scale", SCALES)
def test_overlaps_are_the_scales(scale):
    people = {domain: synthetic._people(domain, SCALES[scale]) for domain in SCALES[scale].sizes}
    for domain, size in SCALES[scale].sizes.items():
        assert len(np.unique(people[domain])) == size.users
    for (one, other), count in SCALES[scale].overlaps.items():
        assert len(np.intersect1d(people[one], people[other])) == count
    if len(people) == 3:
        everyone = set.intersection(*(set(p.tolist()) for p in people.values()))
        assert len(everyone) == SCALES[scale].everywhere


def test_large_scales_are_the_papers_table_1():
    sizes, overlaps = SCALES["books"].sizes, SCALES["books"].overlaps
    assert [vars(sizes[d]) for d in ("video", "music", "book")] == [
        {"users": 123_960, "items": 50_052, "ratings": 1_697_533},
        {"users": 75_258, "items": 64_443, "ratings": 1_097_592},
        {"users": 603_668, "items": 367_982, "ratings": 8_898_041},
    ]
    assert sorted(overlaps.values()) == [16_738, 18_031, 37_388]


@given(st.integers(1, 40), st.integers(1, 300), st.integers(0, 99))
def test_degrees_sum_to_the_total_within_their_bounds(nodes, extra, seed):
    rng = np.random.default_rng(seed)
    most = CORE + -(-extra // nodes) + 2
    degrees = synthetic._degrees(rng.pareto(1, nodes) + 0.01, CORE * nodes + extra, most, rng)
    assert degrees.sum() == CORE * nodes + extra
    assert degrees.min() >= CORE
    assert degrees.max() <= most


def test_activity_and_popularity_have_long_tails():
    frame = ratings_frame("video", "demo")
    for index in (frame.users, frame.items):
        counts = np.sort(np.bincount(index))
        top = counts[-len(counts) // 10 :].sum() / counts.sum()
        assert top > 0.3
        assert np.median(counts) < 0.75 * counts.mean()


def test_users_choose_items_that_suit_them():
    frame, truth = ratings_frame("music", "demo"), truth_of("music", "demo")
    chosen = (truth.user_factors[frame.users] * truth.item_factors[frame.items]).sum(1).mean()
    shuffled = np.random.default_rng(0).permutation(frame.items)
    random = (truth.user_factors[frame.users] * truth.item_factors[shuffled]).sum(1).mean()
    assert abs(random) < 0.15
    assert chosen > 0.5


# What domains share.


def test_traits_have_the_stated_sharing():
    video, music = truth_of("video", "demo"), truth_of("music", "demo")
    _, ours, theirs = np.intersect1d(video.people, music.people, return_indices=True)
    np.testing.assert_array_equal(video.taste[ours], music.taste[theirs])
    for trait in ("leniency", "sharpness"):
        correlation = np.corrcoef(getattr(video, trait)[ours], getattr(music, trait)[theirs])[0, 1]
        assert correlation == pytest.approx(synthetic.STYLE_SHARED, abs=0.06)
    assert video.user_factors.dtype == np.float32


def test_a_domains_view_of_the_taste_is_bent():
    """A linear map explains TASTE_SHARED / (1 + BEND²) of it, with products of two traits TASTE_SHARED."""
    for domain in ("video", "music", "book"):
        truth = truth_of(domain, "demo")
        assert truth.user_factors.std(0) == pytest.approx(np.ones(synthetic.TASTE), abs=0.12)
        linear = LinearRegression().fit(truth.taste, truth.user_factors)
        products = PolynomialFeatures(2).fit_transform(truth.taste)
        bent = LinearRegression().fit(products, truth.user_factors)
        expected = synthetic.TASTE_SHARED / (1 + synthetic.BEND**2)
        assert r2_score(truth.user_factors, linear.predict(truth.taste)) == pytest.approx(expected, abs=0.03)
        assert r2_score(truth.user_factors, bent.predict(products)) == pytest.approx(
            synthetic.TASTE_SHARED, abs=0.03
        )


def test_domains_bend_differently():
    maps = [
        LinearRegression().fit(t.taste, t.user_factors).coef_
        for t in (truth_of(d, "demo") for d in ("video", "music", "book"))
    ]
    for one, other in itertools.combinations(maps, 2):
        assert np.abs(one - other).max() > 0.3


# Ratings and days.


def test_no_item_is_known_to_all():
    frame, size = ratings_frame("music", "demo"), SCALES["demo"].sizes["music"]
    counts = np.bincount(frame.items)
    assert counts.max() == synthetic.MOST_POPULAR * size.users > 4 * counts.mean()


@pytest.mark.parametrize(("scale", "domain"), SMALL)
def test_star_shares_look_like_amazons(scale, domain):
    stars = ratings_frame(domain, scale).stars
    share = np.bincount(stars, minlength=6)[1:] / len(stars)
    lower, upper = (0.05, 0.045, 0.09, 0.20, 0.55), (0.06, 0.06, 0.11, 0.25, 0.60)
    assert (share >= lower).all()
    assert (share <= upper).all()
    assert stars.mean() == pytest.approx(4.2, abs=0.05)


def test_days_come_in_bursts_that_domains_share():
    spread = {}
    for domain in ("video", "music"):
        frame, truth = ratings_frame(domain, "demo"), truth_of(domain, "demo")
        first, last = (np.datetime64(day, "D").astype(int) for day in ("1999-01-01", "2014-07-23"))
        assert first <= frame.days.min()
        assert frame.days.max() <= last
        order = np.lexsort((frame.days, frame.users))
        gap = np.diff(frame.days[order])[np.diff(frame.users[order]) == 0]
        assert np.median(gap) <= 5
        median = {int(truth.people[u]): np.median(frame.days[frame.users == u]) for u in range(200)}
        spread[domain] = median
    both = sorted(spread["video"].keys() & spread["music"].keys())
    assert len(both) > 100
    assert np.corrcoef(*([spread[d][p] for p in both] for d in spread))[0, 1] > 0.5


# Files.


def test_records_have_amazons_fields(tiny):
    path, counts = tiny["video"]
    records = read(path)
    size = SCALES["tiny"].sizes["video"]
    assert counts == {"ratings": size.ratings, "users": size.users, "items": size.items}
    assert len(records) == size.ratings
    fields = ["reviewerID", "asin", "title", "reviewerName", "helpful", "reviewText", "overall", "summary"]
    for record in records:
        assert list(record) == [*fields, "unixReviewTime", "reviewTime"]
        day = datetime.fromtimestamp(record["unixReviewTime"], UTC)
        assert record["unixReviewTime"] % 86_400 == 0
        assert record["reviewTime"] == f"{day:%m} {day.day}, {day.year}"
        assert re.fullmatch(r"A[0-9A-Z]{13}", record["reviewerID"])
        assert re.fullmatch(r"B0[0-9A-Z]{8}", record["asin"])
        helpful, votes = record["helpful"]
        assert 0 <= helpful <= votes
    assert any('"' in record["reviewText"] for record in records)
    assert [r["asin"] for r in records] == sorted(r["asin"] for r in records)


def test_stars_are_written_as_amazon_writes_them(tiny):
    text = gzip.decompress(tiny["music"][0].read_bytes()).decode("ascii")
    assert set(re.findall(r'"overall": ([^,]*),', text)) == {"1.0", "2.0", "3.0", "4.0", "5.0"}


def test_the_file_holds_the_frames_ratings(tiny):
    frame, records = ratings_frame("book", "tiny"), read(tiny["book"][0])

    def by_user_and_item(users, items, stars, days):
        """The same whatever the names: for each user and each item the multiset of stars and days."""
        groups = {}
        for user, item, star, day in zip(users, items, stars, days, strict=True):
            groups.setdefault(("user", user), []).append((star, day))
            groups.setdefault(("item", item), []).append((star, day))
        return Counter((kind, tuple(sorted(group))) for (kind, _), group in groups.items())

    written = by_user_and_item(
        *([r[field] for r in records] for field in ("reviewerID", "asin", "overall")),
        [r["unixReviewTime"] // 86_400 for r in records],
    )
    assert written == by_user_and_item(*(x.tolist() for x in vars(frame).values()))


def test_files_overlap_as_the_scale_says(tiny):
    users, items = {}, {}
    for domain, (path, _) in tiny.items():
        records = read(path)
        users[domain] = {r["reviewerID"] for r in records}
        items[domain] = {r["asin"] for r in records}
    for (one, other), count in SCALES["tiny"].overlaps.items():
        assert len(users[one] & users[other]) == count
        assert not items[one] & items[other]


def test_a_file_follows_from_its_arguments_alone(tiny, tmp_path):
    again, other = tmp_path / "other name.json.gz", tmp_path / "seed.json.gz"
    write_reviews("book", "tiny", again)
    write_reviews("book", "tiny", other, seed=1)
    assert again.read_bytes() == tiny["book"][0].read_bytes()
    assert other.read_bytes() != again.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["other name.json.gz", "seed.json.gz"]


@given(st.sets(st.integers(0, 2**24 - 1), min_size=1, max_size=50))
def test_ids_are_distinct_and_of_one_width(numbers):
    ids = synthetic._ids("B0V", np.array(sorted(numbers))).tolist()
    assert len(set(ids)) == len(numbers)
    assert {len(text) for text in ids} == {10}


@pytest.mark.parametrize(("scale", "domain"), SMALL)
def test_titles_are_of_one_item_and_begin_as_their_scene(scale, domain):
    truth = truth_of(domain, scale)
    titles = synthetic.titles_of(domain, truth)
    assert len(set(titles)) == len(titles) == len(truth.quality)
    first = {scene: set() for scene in truth.item_scenes.tolist() if scene >= 0}
    for title, scene in zip(titles, truth.item_scenes.tolist(), strict=True):
        if scene >= 0:
            first[scene].add(title.split()[0])
    assert all(len(words) == 1 for words in first.values())
    assert len(set.union(*first.values())) == len(first)


def test_names_that_do_not_exist_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no synthetic scale 'huge'; choose one of tiny, demo"):
        write_reviews("video", "huge", tmp_path / "x.json.gz")
    with pytest.raises(ValueError, match="no domain 'book'; choose one of video, music"):
        write_reviews("book", "task1", tmp_path / "x.json.gz")
    assert list(tmp_path.iterdir()) == []


# What can be learned.


def shrunk_mean(index, values, rows, strength=5):
    return np.bincount(index, values, rows) / (np.bincount(index, minlength=rows) + strength)


def cold_start_errors(source, target, scale, seed=0):
    """Test RMSE for users whose target ratings are hidden (20 % of the overlap), by what a predictor uses."""
    frames, truths = (
        [function(domain, scale, seed) for domain in (source, target)]
        for function in (ratings_frame, truth_of)
    )
    (s, t), (s_truth, t_truth) = frames, truths
    both, s_rows, t_rows = np.intersect1d(s_truth.people, t_truth.people, return_indices=True)
    order = np.random.default_rng(seed).permutation(len(both))
    overlap = np.full(len(t_truth.people), -1)
    overlap[t_rows] = np.arange(len(both))
    person = overlap[t.users]
    hidden = order < round(0.2 * len(both))
    test = (person >= 0) & hidden[person]
    train = (person >= 0) & ~hidden[person]

    def item_means(frame, known, items):
        mean = frame.stars[known].mean()
        return mean + shrunk_mean(frame.items[known], frame.stars[known] - mean, items)

    residual = s.stars - item_means(s, slice(None), len(s_truth.quality))[s.items]
    bias = shrunk_mean(s.users, residual, len(s_truth.people))
    liking = (residual - bias[s.users])[:, None] * s_truth.item_factors[s.items]
    factors = [s_truth.item_factors[s.items], liking]
    tastes = [shrunk_mean(s.users, column, len(s_truth.people)) for part in factors for column in part.T]
    estimated = np.stack(tastes, 1)[s_rows]
    base = item_means(t, ~test, len(t_truth.quality))[t.items]
    source_bias = bias[s_rows][person]

    def rmse(predicted):
        return root_mean_squared_error(t.stars[test], predicted)

    def linear(*columns):
        """Item mean + a regression of the rest on `columns`, learned on the training users."""
        features = np.hstack(columns)
        features = features / features[train].std(0)
        model = RidgeCV(np.logspace(0, 4, 9)).fit(features[train], (t.stars - base)[train])
        return rmse(base[test] + model.predict(features[test]))

    def match(taste):
        return np.einsum("ni,nj->nij", taste[person], t_truth.item_factors[t.items]).reshape(len(person), -1)

    return {
        "global mean": rmse(np.full(test.sum(), t.stars[~test].mean())),
        "item mean": rmse(base[test]),
        "source bias": linear(source_bias[:, None]),
        "source ratings": linear(source_bias[:, None], match(estimated)),
        "permuted": linear(source_bias[:, None], match(np.random.default_rng(1).permutation(estimated))),
        "shared taste": linear(source_bias[:, None], match(s_truth.taste[s_rows])),
    }


@pytest.mark.parametrize(("source", "target"), [("video", "music"), ("book", "video"), ("book", "music")])
def test_transfer_beats_what_knows_no_source(source, target):
    error = cold_start_errors(source, target, "demo")
    assert error["item mean"] < error["global mean"] - 0.03
    assert error["source bias"] < error["item mean"] - 0.02
    assert error["source ratings"] < error["source bias"] - 0.02
    assert error["shared taste"] < error["source ratings"] - 0.01
    assert error["permuted"] > error["source bias"] - 0.005


def test_the_tiny_scale_has_something_to_transfer_too():
    errors = [cold_start_errors("video", "music", "tiny", seed) for seed in range(5)]
    mean = {name: np.mean([error[name] for error in errors]) for name in errors[0]}
    assert mean["shared taste"] < mean["source bias"] < mean["item mean"] < mean["global mean"]
