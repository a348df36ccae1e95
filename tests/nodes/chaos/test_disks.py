"""Disks that are filled or lose power: what was synced stays, what was not is gone, and nothing stays mounted."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import trio

from nodes.chaos.disks import Disk, DiskFailed, PowerDisk, removed_at_end, why_no_disk

MIB = 1 << 20


def is_mounted(path: Path) -> bool:
    return any(line.split()[1] == str(path) for line in Path("/proc/mounts").read_text().splitlines())


async def need(*, has_power: bool) -> None:
    reason = await why_no_disk(has_power=has_power)
    if reason:
        pytest.skip(f"this machine permits no such disk: {reason}")


async def test_a_disk_that_loses_power_keeps_what_was_synced_and_nothing_else(tmp_path):
    """A synced file has its bytes afterwards, one that was only written has none, and both were readable before."""
    await need(has_power=True)
    disk = PowerDisk(tmp_path / "disk", 32 * MIB, tmp_path / "images" / "image")
    async with removed_at_end([disk]):
        await disk.mount()
        synced, written = tmp_path / "disk" / "synced", tmp_path / "disk" / "written"
        with synced.open("wb") as file:
            file.write(b"durable" * 1000)
            file.flush()
            os.fsync(file.fileno())
        directory = os.open(tmp_path / "disk", os.O_RDONLY)
        os.fsync(directory)
        os.close(directory)
        written.write_bytes(b"in memory only" * 1000)
        assert written.stat().st_size == 14_000
        disk.lose_power()
        with pytest.raises(OSError):
            (tmp_path / "disk" / "later").write_bytes(b"x")
        await disk.unmount()
        assert not is_mounted(tmp_path / "disk")
        await disk.mount()
        assert synced.read_bytes() == b"durable" * 1000
        assert not written.exists() or b"in memory" not in written.read_bytes()
    assert not is_mounted(tmp_path / "disk")


async def test_a_filled_disk_takes_nothing_until_it_is_freed(tmp_path):
    """Full to the last block, or with as much left as was asked for."""
    await need(has_power=False)
    disk = Disk(tmp_path / "disk", 4 * MIB)
    async with removed_at_end([disk]):
        await disk.mount()
        disk.fill(0)
        with pytest.raises(OSError):
            (tmp_path / "disk" / "new").write_bytes(bytes(64 * 1024))
        disk.free()
        (tmp_path / "disk" / "new").write_bytes(bytes(64 * 1024))
        disk.fill(MIB)
        (tmp_path / "disk" / "half").write_bytes(bytes(512 * 1024))
        with pytest.raises(OSError):
            (tmp_path / "disk" / "more").write_bytes(bytes(MIB))
    assert not is_mounted(tmp_path / "disk")


async def test_disks_go_although_the_run_failed_or_was_cancelled(tmp_path):
    """An error and a cancellation both leave nothing mounted, and the error is the one that is told."""
    await need(has_power=True)
    disks = [Disk(tmp_path / "small", MIB), PowerDisk(tmp_path / "power", 16 * MIB, tmp_path / "image")]

    async def fail() -> None:
        async with removed_at_end(list(disks)):
            for disk in disks:
                await disk.mount()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    assert not is_mounted(tmp_path / "small")
    assert not is_mounted(tmp_path / "power")
    with trio.move_on_after(0.2):
        async with removed_at_end(list(disks)):
            await disks[0].mount()
            await trio.sleep_forever()
    assert not is_mounted(tmp_path / "small")


async def test_a_disk_that_cannot_be_mounted_says_why(tmp_path):
    """The command and its own words."""
    disk = PowerDisk(tmp_path / "disk", MIB, tmp_path)
    with pytest.raises(DiskFailed) as failed:
        await disk.mount()
    assert "mount" in str(failed.value)
