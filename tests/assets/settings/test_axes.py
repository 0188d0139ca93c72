"""Keys of the axes survive a round trip, in the order that puts the seeds of one β into one run."""

import pytest

from tests.assets.axes import AXES, CATALOG


@pytest.mark.parametrize(
    ("beta", "seed", "key"), [(0.2, 0, "b20-s0"), (0.05, 12, "b05-s12"), (0.29, 3, "b29-s3")]
)
def test_keys_of_cells(beta, seed, key):
    cell = AXES.cell("tiny", beta, seed)
    assert (cell.place, cell.key) == (key, f"tiny|{key}")
    assert AXES.parse(cell.key) == cell


def test_every_cell_key_is_dagsters_and_parses_back():
    keys = AXES.cells.get_partition_keys()
    assert len(keys) == len(CATALOG.tasks) * len(CATALOG.betas) * len(CATALOG.seeds)
    assert all(AXES.parse(key).key == str(key) for key in keys)
    assert AXES.parse("tiny|b50-s1").folder == "task=tiny/beta=0.5/seed=1"


def test_a_cell_knows_its_domains():
    cell = AXES.parse("tiny|b50-s1")
    assert (cell.source.name, cell.target.name) == ("tiny_video", "tiny_music")


def test_cells_of_a_task_are_beta_major():
    cells, size = AXES.of_task("tiny"), len(CATALOG.seeds)
    blocks = [cells[i : i + size] for i in range(0, len(cells), size)]
    assert AXES.seeds_together.max_partitions_per_run == size
    assert all(len({cell.beta for cell in block}) == 1 for block in blocks)
    assert [cell.key for cell in cells] == [
        k for k in AXES.cells.get_partition_keys() if k.startswith("tiny|")
    ]


def test_by_task_groups_and_orders():
    groups = AXES.by_task(["tiny|b50-s0", "demo_video_music|b20-s0", "tiny|b20-s1"])
    assert {task: [cell.place for cell in group] for task, group in groups.items()} == {
        "demo_video_music": ["b20-s0"],
        "tiny": ["b20-s1", "b50-s0"],
    }


def test_a_domain_maps_to_the_tasks_that_read_it():
    result = AXES.domain_to_task.get_downstream_partitions_for_partitions(
        AXES.domains.subset_with_partition_keys(["tiny_video"]), AXES.domains, AXES.tasks
    )
    assert set(result.get_partition_keys()) == {"tiny"}
