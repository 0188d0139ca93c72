"""Keys of the axes survive a round trip, in the order that puts the seeds of one β into one run."""

import dagster as dg
import pytest

from assets.settings.axes import CATALOG, SEEDS_TOGETHER, Cell, Trial, by_task, cells, trials


@pytest.mark.parametrize(
    ("beta", "seed", "key"), [(0.2, 0, "b20-s0"), (0.05, 12, "b05-s12"), (0.29, 3, "b29-s3")]
)
def test_trial_keys(beta, seed, key):
    assert Trial(beta, seed).key == key
    assert Trial.parse(key) == Trial(beta, seed)


def test_every_cell_key_is_dagsters_and_parses_back():
    keys = cells.get_partition_keys()
    assert len(keys) == len(CATALOG.tasks) * len(CATALOG.betas) * len(CATALOG.seeds)
    assert all(Cell.parse(key).key == str(key) for key in keys)
    assert Cell.parse("tiny|b50-s1").folder == "task=tiny/beta=0.5/seed=1"


def test_trials_are_beta_major():
    keys = trials.get_partition_keys()
    size = len(CATALOG.seeds)
    blocks = [keys[i : i + size] for i in range(0, len(keys), size)]
    assert SEEDS_TOGETHER.max_partitions_per_run == size
    assert all(len({Trial.parse(key).beta for key in block}) == 1 for block in blocks)


def test_by_task_groups_and_orders():
    groups = by_task(["tiny|b50-s0", "demo_video_music|b20-s0", "tiny|b20-s1"])
    assert {task: [c.trial.key for c in group] for task, group in groups.items()} == {
        "demo_video_music": ["b20-s0"],
        "tiny": ["b20-s1", "b50-s0"],
    }


def test_a_domain_maps_to_the_tasks_that_read_it():
    from assets.settings.axes import DOMAIN_TO_TASK, domains, tasks

    result = DOMAIN_TO_TASK.get_downstream_partitions_for_partitions(
        domains.subset_with_partition_keys(["tiny_video"]), domains, tasks
    )
    assert set(result.get_partition_keys()) == {"tiny"}
    assert isinstance(cells, dg.MultiPartitionsDefinition)
