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


@pytest.mark.parametrize("seed", range(8))
def test_what_was_in_a_directory_that_is_gone_does_not_come_back_in_the_next_one_of_its_name(seed):
    """The directory that a removed one was in was synced: nothing of the removed one is left to be found again."""
    disk = SimDisk(random.Random(seed), write_s=0.0, sync_s=0.0, quota_bytes=1 << 20)
    disk.put("journals/1/7.seg", b"old")
    disk.change("journals/1/7.seg", None, tree="journals")
    disk.sync_names(".")
    disk.lose_power()
    assert not disk.files
