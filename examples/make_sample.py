"""Write examples/data: synthetic ratings of movies and albums with invented titles, and users to ask about.

`.venv/bin/python examples/make_sample.py [FOLDER]` writes the very files that come along.
"""

import sys
from pathlib import Path

import pandas as pd

from ml.synthetic import ratings_frame, truth_of

FILES = {"movies": "video", "albums": "music"}
WORDS = Path(__file__).parent / "data" / "words.txt"  # first words, then second ones of movies, of albums
DAY = 24 * 60 * 60


def sample(name: str) -> pd.DataFrame:
    """The ratings of `movies` or `albums`: user_id, item_id, item_title, rating, timestamp."""
    frame = ratings_frame(FILES[name], "sample")
    people = truth_of(FILES[name], "sample").people
    first, *second = (line.split() for line in WORDS.read_text().splitlines())
    titles = [f"{one} {other}" for other in second[list(FILES).index(name)] for one in first]
    ratings = pd.DataFrame(
        {
            "user_id": [f"user{number:03d}" for number in people[frame.users]],
            "item_id": [f"{name[0]}{number:03d}" for number in frame.items],
            "item_title": [titles[number] for number in frame.items],
            "rating": frame.stars,
            "timestamp": frame.days.astype("int64") * DAY,
        }
    )
    return ratings.sort_values(["user_id", "timestamp", "item_id"], ignore_index=True)


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        sample(name).to_csv(folder / f"{name}.csv", index=False, lineterminator="\n")
    strangers = sorted(set(sample("movies")["user_id"]) - set(sample("albums")["user_id"]))
    pd.DataFrame({"user_id": strangers}).to_csv(folder / "users.csv", index=False, lineterminator="\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "data")
