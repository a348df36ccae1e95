"""What a simulated disk has after a loss of power."""

from __future__ import annotations

import random

import pytest

from tests.simulation.disk import DiskContent, SimDisk


@pytest.mark.parametrize("seed", range(8))
def test_a_name_that_was_given_again_is_not_lost_with_what_had_it_before(seed):
    """A file that takes the place of a removed one is there once its directory was synced, whichever is synced later."""
    disk = SimDisk(random.Random(seed), write_s=0.0, sync_s=0.0, quota_bytes=1 << 20)
    disk.put("journals/1/0.seg", b"old")
    disk.put("new/journals/1/0.seg", b"new")
    disk.change("journals/1/0.seg", None)
    moved = disk.files["new/journals/1/0.seg"]
    assert isinstance(moved, DiskContent)
    disk.change("journals/1/0.seg", moved, was="new/journals/1/0.seg")
    disk.sync_names("new/journals/1")
    disk.sync_names("journals/1")
    disk.lose_power()
    assert bytes(disk.files["journals/1/0.seg"].live) == b"new"
    assert "new/journals/1/0.seg" not in disk.files
