import logging

import pytest

from assets.state.progress import Steps, in_words


def test_each_step_is_counted_and_the_time_left_follows_from_the_pace(caplog):
    times = iter([0.0, 10.0, 30.0])
    steps = Steps([("ratings", 1), ("emcdr", 2), ("diffcdr", 3)], clock=lambda: next(times))
    with caplog.at_level(logging.INFO, "diffcdr"):
        for name in ("ratings", "not planned", "emcdr", "diffcdr"):
            steps.begin(name)
    assert caplog.messages == [
        "— step 1 of 3: ratings",
        "— step 2 of 3, about 50 s left: emcdr",
        "— step 3 of 3, about 30 s left: diffcdr",
    ]


def test_a_name_that_comes_again_is_the_next_of_that_name(caplog):
    steps = Steps([("split", 1), ("emcdr", 1), ("split", 1)], clock=lambda: 0.0)
    with caplog.at_level(logging.INFO, "diffcdr"):
        for name in ("split", "emcdr", "split", "split"):
            steps.begin(name)
    assert [message.split(",")[0].split(":")[0] for message in caplog.messages] == [
        "— step 1 of 3",
        "— step 2 of 3",
        "— step 3 of 3",
    ]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "5 s"), (41, "40 s"), (89, "90 s"), (90, "2 min"), (5000, "83 min"), (12600, "3.5 h")],
)
def test_durations_in_words(seconds, words):
    assert in_words(seconds) == words
