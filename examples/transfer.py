"""DiffCDR in a script, with `ml` alone: from the ratings of two domains to those of cold-start users.

The ratings are synthetic: the errors printed at the end are no evidence for or against the model.
"""

import numpy as np
import torch

from ml.data import History, Problem, Ratings, SourceUsers
from ml.evaluation.ratings import predict, rating_errors
from ml.factorization.adam import MatrixFactorization, RatingTable
from ml.models.diffcdr import DiffCDR
from ml.splits import TEST, TRAIN, assign_roles
from ml.synthetic import Frame, ratings_frame, truth_of

SCALE, SEED, BETA = "demo", 0, 0.2


def main() -> None:
    torch.set_num_threads(1)  # small tensors: threads cost more than they give
    video, music = (ratings_frame(domain, SCALE, SEED) for domain in ("video", "music"))
    in_video, in_music = overlap()
    roles = torch.from_numpy(assign_roles(len(in_video), BETA, SEED, "example", validation=0))
    train, test = roles == TRAIN, roles == TEST
    print(f"{len(video.stars)} video and {len(music.stars)} music ratings, {len(roles)} users in both")
    print(f"{train.sum()} training users and {test.sum()} cold users, whose music ratings are hidden")

    hidden = np.isin(music.users, in_music[test])
    video_users, video_items = factorize("video", video, np.zeros(len(video.users), dtype=bool))
    music_users, music_items = factorize("music", music, hidden)

    known, cold = (source_users(video_users[in_video[role]], video_items) for role in (train, test))
    ratings = ratings_of(music, in_music[train])
    problem = Problem(known, music_users[in_music[train]], music_items, ratings, SEED)
    model = DiffCDR()
    for epoch in model.train([problem]):
        losses = ", ".join(f"{name} {values[0]:.3f}" for name, values in epoch.losses.items())
        print(f"diffcdr, epoch {epoch.number} of {model.epochs}: {losses}")

    transferred, truth = model.transfer([cold])[0], ratings_of(music, in_music[test])
    mean = torch.full_like(truth.values, music.stars[~hidden].mean())
    for name, predicted in (("diffcdr", predict(transferred, music_items, truth)), ("mean rating", mean)):
        errors = rating_errors(predicted, truth.values, truth.users)
        print(f"{name}, {len(truth)} ratings: MAE {errors['mae']:.3f}, RMSE {errors['rmse']:.3f}")


def overlap() -> tuple[torch.Tensor, torch.Tensor]:
    """The rows (n,) that the users of both domains have in video and in music."""
    people = [truth_of(domain, SCALE, SEED).people for domain in ("video", "music")]
    return tuple(map(torch.from_numpy, np.intersect1d(*people, return_indices=True)[1:]))


def factorize(domain: str, frame: Frame, hidden: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """User and item factors (n, k) of the ratings that are not `hidden` (m,) bool."""
    users, items, stars = (torch.from_numpy(x[~hidden]) for x in (frame.users, frame.items, frame.stars))
    sizes = int(frame.users.max()) + 1, int(frame.items.max()) + 1
    table = RatingTable(users.long(), items.long(), stars.float(), *sizes, SEED)
    trainer = MatrixFactorization(epochs=30)  # of so few ratings ten leave much to chance
    for epoch in trainer.train([table], domain):
        print(f"{domain}, epoch {epoch.number} of {trainer.epochs}: MSE {epoch.losses['loss'][0]:.3f}")
    return trainer.user_factors_[0], trainer.item_factors_[0]


def ratings_of(frame: Frame, users: torch.Tensor) -> Ratings:
    """The ratings of `users` (n,), who become 0..n-1."""
    place = torch.full((int(frame.users.max()) + 1,), -1)
    place[users] = torch.arange(len(users))
    rows = place[frame.users] >= 0
    items, stars = torch.from_numpy(frame.items), torch.from_numpy(frame.stars)
    return Ratings(place[frame.users][rows], items[rows].long(), stars[rows].float())


def source_users(factors: torch.Tensor, items: torch.Tensor) -> SourceUsers:
    """Users without liked items, which SSCDR and PTUPCDR would need and DiffCDR does not."""
    nothing = torch.zeros(len(factors) + 1, dtype=torch.int64)
    return SourceUsers(factors, History(nothing, nothing[:0]), items)


if __name__ == "__main__":
    main()
