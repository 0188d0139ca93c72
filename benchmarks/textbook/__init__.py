"""Each hot path as one writes it straight from the paper, in plain PyTorch, pandas and numpy.

These are the other side of every ratio in `benchmarks/results.json`, and an independent reference: given the
same initial weights, orders and draws they must end where the fast paths end.
"""
