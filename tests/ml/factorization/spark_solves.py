"""The exact solution of one half-sweep of Spark's ALS, user by user in numpy."""

import numpy as np
import torch
from torch import Tensor


def solved(users: Tensor, items: Tensor, values: Tensor, table: Tensor, n: int, penalty: float) -> Tensor:
    """p (n, k) of min Σ (r − p·q)² + penalty n_u ‖p‖² given q, `table`; 0 for a user without ratings."""
    q, out = table.double().numpy(), np.zeros((n, table.shape[1]))
    for user in range(n):
        mine = (users == user).numpy()
        if count := mine.sum():
            rated = q[items.numpy()[mine]]
            left = rated.T @ rated + penalty * count * np.eye(q.shape[1])
            out[user] = np.linalg.solve(left, rated.T @ values.double().numpy()[mine])
    return torch.from_numpy(out)


def solved_choices(
    users: Tensor, items: Tensor, table: Tensor, n: int, penalty: float, confidence: float
) -> Tensor:
    """p (n, k) of min Σ_i c (1_i − p·q_i)² + penalty n_u ‖p‖² over all items, c = confidence for a choice."""
    q, out = table.double().numpy(), np.zeros((n, table.shape[1]))
    for user in range(n):
        chosen = np.zeros(len(q))
        chosen[items.numpy()[(users == user).numpy()]] = 1
        if chosen.any():
            weight = np.where(chosen, confidence, 1)
            left = (q * weight[:, None]).T @ q + penalty * chosen.sum() * np.eye(q.shape[1])
            out[user] = np.linalg.solve(left, (q * weight[:, None]).T @ chosen)
    return torch.from_numpy(out)
