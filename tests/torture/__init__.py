"""Hostile input, by the hundred: what the command line answers, judged by rules.

`python -m tests.torture` runs the campaign and prints a table; `--checkout DIR` points it at other code.
A case is files in a folder of its own, a command line, and what a good answer is (`cases`); `judge` says what
the answer was: good, unclear, silent, traceback or hang.
"""
