"""Three linked domains of synthetic ratings in Amazon's 2014 5-core review format, and a title beside.

What is simulated. Every user has a taste (TASTE numbers), a style (how lenient, and how sharply good is told
from bad), an activity and a few bursts of reviewing that all domains share in part. A domain sees the taste
through its own rotation and a quadratic bend, mixed with a private part; so a linear map between two domains
finds most of what they share, not all of it. Items have a popularity, a quality and factors; popularity and
activity have long (log-normal) tails. Who rates what starts as a random graph with the wanted numbers of
ratings of each user and item, and ratings then trade items by affinity, which leaves these numbers exact: at
least five a user, five an item. Some items belong to a scene, a narrow interest that a user has in every
domain. So choices follow popularity, taste and scenes. Stars are an ordinal cut of leniency + sharpness ·
(quality + affinity + noise), at about the shares of Amazon's reviews.

The constants were set, with results of this project's models at hand, so that lists and stars gain by
transfer roughly what they do on real pairs of domains: on the demo a neighbourhood of users gains some 16 %
of popularity's nDCG@20. What models score on such data is therefore no evidence for any of them.

A domain's file depends on the scale and the seed alone, not on which other domains were written.
"""

from __future__ import annotations

import gzip
import json
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path

import numpy as np

CORE = 5  # ratings of every user and every item, at least
TASTE = 4  # width of the shared taste; a wider one could not be learned from a dozen ratings a user
STYLE_SHARED = 0.75  # correlation of a user's leniency, and of the sharpness, between two domains
TASTE_SHARED = 0.9  # share of a domain's user factors that comes from the shared taste
BEND = 0.3  # size of the quadratic part of a domain's view of the taste
AFFINITY_CHOICE = 3.0  # how strongly affinity decides which items a user rates
SCENES, THEIR_SCENES = 40, 2  # narrow interests, such as a series and its soundtrack; those of one user
IN_A_SCENE = 0.6  # share of the items that belong to one
SCENE_CHOICE = 2.5  # how strongly an own scene draws, in the same unit as affinity
ACTIVITY_TAIL, POPULARITY_TAIL = 1.2, 1.0  # standard deviations of the logarithms
MOST_POPULAR = 0.1  # share of the users who rate an item, at most; where users are few, four times the mean
TRADES = 30  # rounds of trading items by affinity
SHARPNESS = 0.4  # standard deviation of the logarithm
SPREAD = {"leniency": 0.9, "quality": 0.6, "affinity": 0.8, "noise": 0.8}  # of the latent score
SHARES = (0.055, 0.05, 0.10, 0.22, 0.575)  # of 1 to 5 stars
FIRST_DAY, LAST_DAY = date(1999, 1, 1), date(2014, 7, 23)
CHUNK = 100_000  # rows held as text at a time

DOMAINS = ("video", "music", "book")


@dataclass(frozen=True)
class Size:
    """What one domain's file holds."""

    users: int
    items: int
    ratings: int


@dataclass(frozen=True)
class Scale:
    """Sizes by domain, users in both domains of a pair, and users in all three (counted in each pair too)."""

    sizes: dict[str, Size]
    overlaps: dict[tuple[str, str], int]
    everywhere: int = 0


TASK1 = {"video": Size(123_960, 50_052, 1_697_533), "music": Size(75_258, 64_443, 1_097_592)}

SCALES = {
    "tiny": Scale(
        {"video": Size(450, 160, 5_600), "music": Size(380, 140, 4_800), "book": Size(480, 180, 6_000)},
        {("video", "music"): 160, ("video", "book"): 180, ("music", "book"): 140},
        everywhere=60,
    ),
    "demo": Scale(
        {
            "video": Size(1_800, 660, 25_000),
            "music": Size(1_500, 560, 20_500),
            "book": Size(1_900, 700, 25_000),
        },
        {("video", "music"): 800, ("video", "book"): 880, ("music", "book"): 660},
        everywhere=320,
    ),
    # A pair of small files to try the commands on.
    "sample": Scale(
        {"video": Size(400, 160, 4_000), "music": Size(380, 140, 3_400)}, {("video", "music"): 320}
    ),
    "task1": Scale(TASK1, {("video", "music"): 18_031}),
    "books": Scale(
        {**TASK1, "book": Size(603_668, 367_982, 8_898_041)},
        {("video", "music"): 18_031, ("video", "book"): 37_388, ("music", "book"): 16_738},
        everywhere=9_000,
    ),
}


@dataclass(frozen=True)
class Truth:
    """What a domain's ratings were drawn from.

    people: (users,) int64, numbers of the users that are the same in every domain; taste (users, TASTE): the
    shared taste; user_factors (users, TASTE), leniency and sharpness (users,); item_factors (items, TASTE)
    and quality (items,). All float32, each with standard deviation near 1.
    """

    people: np.ndarray
    taste: np.ndarray
    user_factors: np.ndarray
    user_scenes: np.ndarray
    leniency: np.ndarray
    sharpness: np.ndarray
    item_factors: np.ndarray
    item_scenes: np.ndarray
    quality: np.ndarray


@dataclass(frozen=True)
class Frame:
    """m ratings of a domain: users (m,) int32, rows of `Truth.people`; items (m,) int32, rows of
    `Truth.quality`; stars (m,) int8, 1 to 5; days (m,) int32 since 1970-01-01."""

    users: np.ndarray
    items: np.ndarray
    stars: np.ndarray
    days: np.ndarray


def write_reviews(domain: str, scale: str, path: Path, seed: int = 0) -> dict[str, int]:
    """Write a domain's reviews to `path`, gzipped JSON lines in the order of asin, then time.

    The same arguments give the same bytes. Returns the counts {"ratings", "users", "items"}. Raises
    ValueError on a domain or scale that does not exist.
    """
    frame, truth = ratings_frame(domain, scale, seed), truth_of(domain, scale, seed)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".part")
    # No name and no time in the header, so equal content gives equal bytes.
    with open(partial, "wb") as raw, gzip.GzipFile("", "wb", 1, raw, mtime=0) as file:
        for text in _lines(frame, truth, domain, _generator(seed, domain, "text")):
            file.write(text.encode("ascii"))
    os.replace(partial, path)
    return {"ratings": len(frame.stars), "users": len(truth.people), "items": len(truth.quality)}


def ratings_frame(domain: str, scale: str, seed: int = 0) -> Frame:
    """A domain's ratings as arrays, in no particular order; the very ratings that `write_reviews` writes."""
    truth, size = truth_of(domain, scale, seed), _size(domain, scale)
    activity = _shared_normal(SCALES[scale], seed, "activity")[truth.people]
    private = _generator(seed, domain, "activity").standard_normal(size.users, dtype=np.float32)
    rng = _generator(seed, domain, "choices")
    degrees = _degrees(
        np.exp(ACTIVITY_TAIL * _mix(activity, private, 0.5)), size.ratings, size.items // 3, rng
    )
    users = np.repeat(np.arange(size.users, dtype=np.int32), degrees)
    popularity = np.exp(POPULARITY_TAIL * rng.standard_normal(size.items))
    most = max(int(MOST_POPULAR * size.users), 4 * size.ratings // size.items)
    degrees = _degrees(popularity, size.ratings, most, rng)
    items = rng.permutation(np.repeat(np.arange(size.items, dtype=np.int32), degrees))
    for _ in range(TRADES):
        _trade(users, items, truth, rng)
    _part_duplicates(users, items, rng)
    stars = _stars(users, items, truth, rng)
    return Frame(users, items, stars, _days(truth.people[users], SCALES[scale], seed, rng))


def truth_of(domain: str, scale: str, seed: int = 0) -> Truth:
    """The traits behind a domain's ratings."""
    size = _size(domain, scale)
    people = _people(domain, SCALES[scale])
    taste = _shared_normal(SCALES[scale], seed, "taste", TASTE)[people]
    rng = _generator(seed, domain, "traits")
    rotation = np.linalg.qr(rng.standard_normal((TASTE, TASTE)))[0].astype(np.float32)
    seen = taste @ rotation
    seen = (seen + BEND * seen * np.roll(seen, 1, axis=1)) / (1 + BEND**2) ** 0.5
    private = rng.standard_normal(seen.shape, dtype=np.float32)
    scenes = _generator(seed, "shared", "scenes").integers(
        SCENES, size=(_count(SCALES[scale]), THEIR_SCENES)
    )[people]
    other = rng.random(scenes.shape) > TASTE_SHARED
    scenes = np.where(other, rng.integers(SCENES, size=scenes.shape), scenes)
    theirs = np.where(rng.random(size.items) < IN_A_SCENE, rng.integers(SCENES, size=size.items), -1)
    leniency, sharpness = _shared_normal(SCALES[scale], seed, "style", 2)[people].T
    return Truth(
        people,
        taste,
        _mix(seen, private, TASTE_SHARED),
        scenes.astype(np.int8),
        _mix(leniency, rng.standard_normal(size.users, dtype=np.float32), STYLE_SHARED),
        _mix(sharpness, rng.standard_normal(size.users, dtype=np.float32), STYLE_SHARED),
        rng.standard_normal((size.items, TASTE), dtype=np.float32),
        theirs.astype(np.int8),
        rng.standard_normal(size.items, dtype=np.float32),
    )


def _size(domain: str, scale: str) -> Size:
    if scale not in SCALES:
        raise ValueError(f"no synthetic scale {scale!r}; choose one of {', '.join(SCALES)}")
    if domain not in SCALES[scale].sizes:
        raise ValueError(
            f"scale {scale!r} has no domain {domain!r}; choose one of {', '.join(SCALES[scale].sizes)}"
        )
    return SCALES[scale].sizes[domain]


def _generator(seed: int, *purpose: str) -> np.random.Generator:
    return np.random.default_rng([seed, zlib.crc32(" ".join(purpose).encode())])


def _mix(shared: np.ndarray, private: np.ndarray, share: float) -> np.ndarray:
    """Sum of two unit-variance parts, `share` of whose unit variance is the first's."""
    return np.float32(share**0.5) * shared + np.float32((1 - share) ** 0.5) * private


def _people(domain: str, scale: Scale) -> np.ndarray:
    """Numbers of a domain's users: first those of all domains, then each pair's, then each domain's own."""
    members, start = [], 0
    blocks: list[tuple[tuple[str, ...], int]] = [(DOMAINS, scale.everywhere)]
    blocks += [(pair, count - scale.everywhere) for pair, count in scale.overlaps.items()]
    for name, size in scale.sizes.items():
        shared = sum(count for block, count in blocks if name in block and len(block) > 1)
        blocks.append(((name,), size.users - shared))
    for block, count in blocks:
        if domain in block:
            members.append(np.arange(start, start + count))
        start += count
    return np.concatenate(members)


def _shared_normal(scale: Scale, seed: int, trait: str, *width: int) -> np.ndarray:
    """A standard normal trait of every person of a scale, the same in whatever domain it is asked for."""
    return _generator(seed, "shared", trait).standard_normal((_count(scale), *width), dtype=np.float32)


def _count(scale: Scale) -> int:
    """All people of a scale."""
    return 1 + max(int(_people(domain, scale)[-1]) for domain in scale.sizes)


def _degrees(weight: np.ndarray, total: int, most: int, rng: np.random.Generator) -> np.ndarray:
    """Ratings of each node, `total` (more than CORE a node) in all: CORE and, up to `most`, a part in
    proportion to its weight."""
    room = total - CORE * len(weight)
    extra = weight.astype(np.float64)
    for _ in range(50):  # what the heaviest may not have goes to the others, in proportion
        extra = np.minimum(extra * (room / extra.sum()), most - CORE)
    extra = extra.astype(np.int64)
    while left := room - extra.sum():
        free = np.flatnonzero(extra < most - CORE)
        extra[rng.choice(free, min(left, len(free)), replace=False)] += 1
    return CORE + extra


def _trade(users: np.ndarray, items: np.ndarray, truth: Truth, rng: np.random.Generator) -> None:
    """Pair all ratings at random and let each pair exchange its items if affinity favours it (heat bath)."""
    order = rng.permutation(len(items)).astype(np.int32)
    half = len(order) // 2
    for start in range(0, half, 1_000_000):
        one = order[start : min(start + 1_000_000, half)]
        other = order[half + start : half + start + len(one)]
        people = truth.user_factors[users[one]] - truth.user_factors[users[other]]
        things = truth.item_factors[items[other]] - truth.item_factors[items[one]]
        gain = np.einsum("nk,nk->n", people, things) * (AFFINITY_CHOICE / TASTE**0.5)
        for sign, user, item in ((1, one, other), (1, other, one), (-1, one, one), (-1, other, other)):
            own = truth.user_scenes[users[user]] == truth.item_scenes[items[item], None]
            gain += sign * SCENE_CHOICE * own.any(1)
        yes = gain + rng.logistic(size=len(gain)) > 0
        one, other = one[yes], other[yes]
        items[one], items[other] = items[other], items[one]


def _part_duplicates(users: np.ndarray, items: np.ndarray, rng: np.random.Generator) -> None:
    """Exchange the items of ratings that repeat a (user, item) pair with random ratings until none does."""
    things = int(items.max()) + 1
    while True:
        pairs = users.astype(np.int64) * things + items
        order = np.argsort(pairs, kind="stable")
        repeated = order[1:][np.diff(pairs[order]) == 0]
        if len(repeated) == 0:
            return
        for one, other in zip(repeated, rng.integers(len(items), size=len(repeated)), strict=True):
            items[one], items[other] = items[other], items[one]


def _stars(users: np.ndarray, items: np.ndarray, truth: Truth, rng: np.random.Generator) -> np.ndarray:
    score = SPREAD["noise"] * rng.standard_normal(len(users), dtype=np.float32)
    score += SPREAD["quality"] * truth.quality[items]
    for start in range(0, len(users), 1_000_000):
        part = slice(start, start + 1_000_000)
        affinity = np.einsum("nk,nk->n", truth.user_factors[users[part]], truth.item_factors[items[part]])
        score[part] += SPREAD["affinity"] / TASTE**0.5 * affinity
    score = SPREAD["leniency"] * truth.leniency[users] + np.exp(SHARPNESS * truth.sharpness[users]) * score
    cuts = np.quantile(score, np.cumsum(SHARES)[:-1])
    return (1 + np.searchsorted(cuts, score)).astype(np.int8)


def _days(people: np.ndarray, scale: Scale, seed: int, rng: np.random.Generator) -> np.ndarray:
    """A day of each rating, near one of the three bursts its person has in all domains, more of them late."""
    first, last = _epoch_day(FIRST_DAY), _epoch_day(LAST_DAY)
    bursts = np.abs(_shared_normal(scale, seed, "bursts", 3)).clip(max=3) / 3
    burst = bursts[people, rng.integers(3, size=len(people))]
    day = last - (last - first) * burst + rng.exponential(4, len(people))
    return np.minimum(day, last).astype(np.int32)


# Text.

NAMES = [
    f"{name} {letter}."
    for name in ("Ada", "Ben", "Cleo", "Dan", "Eva", "Finn", "Gus", "Hana", "Ivo", "June", "Karl", "Lena")
    for letter in "ABCDEFGHJKLMNPRSTVW"
]
HELPFUL = ["[0, 0]", "[0, 0]", "[0, 0]", "[1, 1]", "[0, 1]", "[2, 2]", "[1, 2]", "[3, 4]", "[7, 9]"]
OPINIONS = [  # two a star
    ("Not for me", "I gave up halfway."),
    ("Avoid", "A waste of time and money."),
    ("Weak", "It has a moment or two, no more."),
    ("Let down", "I had hoped for much more."),
    ("Fair", "Neither good nor bad."),
    ("Mixed", "A strong start and a weak end."),
    ("Good", "Well made, with small flaws."),
    ("Enjoyed it", "I would come back to it."),
    ("A favourite", 'I "loved" every minute.'),
    ("Superb", "Could not ask for more."),
]
# Of titles: a first word for each scene, then those of items of none; second words by domain.
WORDS = {
    which: words.split()
    for which, words in {
        "first": """Arctic Autumn Baroque Coastal Cosmic Country Desert Electric Forest Gothic Harbour
            Highland Imperial Island Jungle Lunar Marine Medieval Metro Midnight Monsoon Mountain Neon Nomad
            Northern Oasis Orbital Parisian Pirate Prairie River Royal Samurai Silver Southern Steam Thunder
            Tropical Viking Winter Another First Good Little Long Old Simple Young""",
        "video": """Chase Crossing Dawn Empire Escape Fury Gambit Game Journey Kingdom Legend Mystery Night
            Outpost Passage Promise Rescue Return Secret Voyage""",
        "music": """Anthems Ballads Blues Chords Chorus Dances Echoes Grooves Hymns Jazz Lullabies Melodies
            Nocturnes Overture Rhythms Serenade Sessions Sonata Songs Suite""",
        "book": """Almanac Atlas Chronicle Confession Diary Essays Fables Guide Handbook Inheritance Letters
            Memoir Notebook Portrait Primer Reader Saga Stories Tales Verses""",
    }.items()
}
LINE = '{"reviewerID": "%s", "asin": "%s", "title": "%s", "reviewerName": "%s", "helpful": %s, %s, %s}\n'


def _lines(frame: Frame, truth: Truth, domain: str, rng: np.random.Generator) -> Iterator[str]:
    """The file's text, CHUNK reviews at a time."""
    reviewers = _ids("A1SYNTH", truth.people)
    asins = _ids("B0" + domain[0].upper(), np.arange(len(truth.quality)))
    titles = np.array(titles_of(domain, truth), object)
    names, helpful = np.array(NAMES, object), np.array(HELPFUL, object)
    opinions, dates = np.array(_opinions(), object), np.array(_dates(), object)
    rank = np.argsort(np.argsort(asins))
    order = np.lexsort((frame.days, rank[frame.items]))
    for start in range(0, len(order), CHUNK):
        rows = order[start : start + CHUNK]
        users = frame.users[rows]
        columns = (
            reviewers[users],
            asins[frame.items[rows]],
            titles[frame.items[rows]],
            names[truth.people[users] % len(NAMES)],
            helpful[rng.integers(len(HELPFUL), size=len(rows))],
            opinions[2 * (frame.stars[rows] - 1) + rng.integers(2, size=len(rows))],
            dates[frame.days[rows] - _epoch_day(FIRST_DAY)],
        )
        yield "".join(map(LINE.__mod__, zip(*(column.tolist() for column in columns), strict=True)))


def titles_of(domain: str, truth: Truth) -> list[str]:
    """A title of each item, no two alike, so that a reader sees what goes together: the first word is the
    scene's, in every domain the same."""
    first, second, titles = WORDS["first"], WORDS[domain], []
    used = [0] * len(first)
    for item, scene in enumerate(truth.item_scenes.tolist()):
        kind = scene if scene >= 0 else SCENES + item % (len(first) - SCENES)
        volume, word = divmod(used[kind], len(second))
        used[kind] += 1
        number = f" {volume + 1}" if volume else ""
        # Not every scene begins with the same second word.
        titles.append(f"{first[kind]} {second[(word + kind) % len(second)]}{number}")
    return titles


def _ids(prefix: str, numbers: np.ndarray) -> np.ndarray:
    """An id of each number below 2**24: prefix and seven base-36 digits, scrambled to hide the order."""
    digits = np.frombuffer(b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ", np.uint8)
    # The factor shares no divisor with 36, so no two numbers meet.
    scrambled = (numbers.astype(np.uint64) + np.uint64(1)) * np.uint64(48_271_828_183) % np.uint64(36**7)
    places = np.uint64(36) ** np.arange(6, -1, -1, dtype=np.uint64)
    text = np.ascontiguousarray(digits[scrambled[:, None] // places % np.uint64(36)])
    return np.strings.add(prefix, text.view("S7").ravel().astype("U7"))


def _opinions() -> list[str]:
    return [
        f'"reviewText": {json.dumps(text)}, "overall": {1 + index // 2}.0, "summary": {json.dumps(summary)}'
        for index, (summary, text) in enumerate(OPINIONS)
    ]


def _dates() -> list[str]:
    days = (FIRST_DAY + timedelta(n) for n in range((LAST_DAY - FIRST_DAY).days + 1))
    return [
        f'"unixReviewTime": {_epoch_day(day) * 86_400}, "reviewTime": "{day:%m} {day.day}, {day.year}"'
        for day in days
    ]


def _epoch_day(day: date) -> int:
    return (day - date(1970, 1, 1)).days
