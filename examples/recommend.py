"""Recommend albums to people who have rated movies alone, from two DataFrames. The ratings are synthetic."""

from pathlib import Path

import pandas as pd

from ml import CrossDomainRecommender

data = Path(__file__).parent / "data"
movies, albums = (pd.read_csv(data / f"{name}.csv") for name in ("movies", "albums"))

recommender = CrossDomainRecommender(columns={"user": "user_id", "item": "item_id"})
recommender.fit(movies, albums)

print("Albums for people of whom only movie ratings are known:")
print(recommender.recommend(k=3, because=True).head(6).to_string(index=False))

print("\nHeld-out users, ours beside what any shop could do:")
print(recommender.evaluate(against=("popularity", "item_mean")).to_string(index=False))
