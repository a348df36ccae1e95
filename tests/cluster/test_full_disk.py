"""A full disk gates writes, loses nothing, slows nobody else, and the site goes on by itself when there is room."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from nodes.client import ClientError
from nodes.launcher import SiteFailed

MIB = 1 << 20
SMALL: dict[str, dict[str, object]] = {
    "journal": {
        "segment_bytes": 8 * MIB,
        "retention_max_bytes": 64 * MIB,
        "snapshot_every_bytes": 512 * MIB,
        "reserve_bytes": 1 * MIB,
    }
}
DISK_MIB = 34
ROOMY_MIB = 200

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(os.getuid() != 0, reason="only root can mount a small file system"),
]


class Disk:
    """A small file system of its own in the place of a site's data directory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m,mode=0700", "tmpfs", str(path)],
            capture_output=True,
            text=True,
        )
        if mounted.returncode:
            pytest.skip(f"no small file system can be mounted here: {mounted.stderr.strip()}")

    def grow(self, mib: int = ROOMY_MIB) -> None:
        subprocess.run(["mount", "-o", f"remount,size={mib}m", str(self.path)], check=True)

    def leave(self, free_bytes: int) -> Path:
        """Take all room but so much with a file that somebody else left there."""
        ballast = self.path / "ballast"
        status = os.statvfs(self.path)
        with ballast.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, status.f_bavail * status.f_frsize - free_bytes)
        return ballast

    def unmount(self) -> None:
        subprocess.run(["umount", "-l", str(self.path)], check=False)


@pytest.fixture
def small_disk() -> Iterator[Callable[[Path], Disk]]:
    """Puts a small disk under a site; gone at the end of the test."""
    disks: list[Disk] = []

    def make(path: Path) -> Disk:
        disks.append(Disk(path))
        return disks[-1]

    yield make
    for disk in disks:
        disk.unmount()


async def fill(lab: Any, site: str, tree: Path, path: str) -> tuple[set[bytes], ClientError]:
    """Put a tree that is larger than the disk; the names confirmed, and the error that ended it."""
    named: set[bytes] = set()
    with pytest.raises(ClientError) as refused:
        await lab.put(site, tree, path, named=named)
    return named, refused.value


async def test_a_full_site_refuses_writes_and_goes_on_when_there_is_room(
    make_lab: Any, make_files: Any, small_disk: Callable[[Path], Disk], tmp_path: Path
) -> None:
    """Full: exit status 3 and the reason, reads go on. Room again: writes are taken, nothing confirmed was lost."""
    lab = await make_lab(2, settings=SMALL, start=False)
    disk = small_disk(lab.data_dir("alpha"))
    await lab.start()
    tree = make_files(tmp_path / "tree", 400, size=60_000)
    named, error = await fill(lab, "alpha", tree, "/tree")
    assert error.exit_code == 3
    assert "disk is full" in error.message
    assert named

    refused = await lab.cli("write", "alpha:/more", stdin=b"x" * 5000)
    assert refused.code == 3
    assert "disk is full" in refused.err
    assert "goes on by itself" in refused.err
    assert (await lab.ok("ls", "alpha:/tree")).out
    assert (await lab.status("alpha"))["refusing_writes"]
    assert lab.events("alpha", "disk_full")
    # What it took before it was full still goes out.
    await lab.ok("write", "beta:/by-beta", stdin=b"from a site with room")

    disk.grow()
    await lab.until_event("alpha", "disk_recovered")

    async def finished() -> bool:
        return bool((await lab.put("alpha", tree, "/tree")).complete)

    await finished()
    await lab.converge()
    await lab.assert_same_everywhere("/tree", tree)
    assert (await lab.ok("cat", "alpha:/by-beta")).out == b"from a site with room"
    assert "site_failed" not in {event["event"] for event in lab.events("alpha")}


async def test_a_full_peer_slows_nobody_and_loses_nothing(
    make_lab: Any, make_files: Any, small_disk: Callable[[Path], Disk], tmp_path: Path
) -> None:
    """While a peer is full the others converge and say why it lags; with room again it gets all of it."""
    lab = await make_lab(3, settings=SMALL, start=False)
    disk = small_disk(lab.data_dir("gamma"))
    await lab.start()
    tree = make_files(tmp_path / "tree", 400, size=60_000)
    assert (await lab.put("alpha", tree, "/tree")).complete
    await lab.converge("alpha", "beta")
    await lab.until_event("gamma", "disk_full")

    async def told() -> bool:
        link = (await lab.status("alpha"))["peers"]["gamma"]
        return link["lag_entries"] > 0 and "disk is full" in (link["reason"] or "")

    await lab.until(told, "alpha tells that gamma's disk is full")
    refused = await lab.cli("mkdir", "gamma:/dir")
    assert refused.code == 3
    assert "disk is full" in refused.err

    disk.grow()
    await lab.converge()
    await lab.assert_same_at("gamma", "/tree", tree)
    await lab.ok("write", "gamma:/again", stdin=b"writable")
    await lab.converge()
    assert "site_failed" not in {event["event"] for event in lab.events("gamma")}


async def test_a_disk_that_has_room_for_the_log_but_not_for_the_view_loses_nothing(
    make_lab: Any, make_files: Any, small_disk: Callable[[Path], Disk], tmp_path: Path
) -> None:
    """The log's segment is allocated, the view has to grow: the site refuses, lives on, and is whole when there is room."""
    lab = await make_lab(2, settings=SMALL, start=False)
    disk = small_disk(lab.data_dir("alpha"))
    await lab.start()
    await lab.ok("write", "alpha:/first", stdin=b"x")
    ballast = disk.leave(512 * 1024)
    tree = make_files(tmp_path / "tree", 60, size=60_000)
    named, error = await fill(lab, "alpha", tree, "/tree")
    assert error.exit_code == 3
    assert "disk is full" in error.message
    refused = await lab.cli("write", "alpha:/more", stdin=b"x" * 5000)
    assert refused.code == 3
    assert lab.launcher.processes["alpha"].poll() is None, lab.tell()
    ballast.unlink()
    # Nobody writes: what is durable comes into the view all the same.
    await lab.until_event("alpha", "disk_recovered")
    await lab.converge()
    await lab.until(lambda: written(lab), "alpha takes writes again")
    there = {Path(line["path"]).name.encode() for line in (await lab.ok("ls", "-R", "--json", "alpha:/")).json_lines}
    assert named <= there
    assert (await lab.put("alpha", tree, "/tree")).complete
    await lab.converge()
    await lab.assert_same_everywhere("/tree", tree)


@pytest.mark.parametrize("how", ["stopped", "killed"])
async def test_a_full_site_that_ends_and_starts_again_keeps_what_it_confirmed(
    make_lab: Any, make_files: Any, small_disk: Callable[[Path], Disk], tmp_path: Path, how: str
) -> None:
    """Ended while full, in order or not, and started without a free byte: its reserve lets it serve, nothing is lost."""
    lab = await make_lab(2, settings=SMALL, start=False)
    disk = small_disk(lab.data_dir("alpha"))
    await lab.start()
    tree = make_files(tmp_path / "tree", 400, size=60_000)
    named, _ = await fill(lab, "alpha", tree, "/tree")
    await end(lab, how)
    # Whether it had the time to give its reserve up is chance: here it had not, and everything else is taken.
    disk.grow(DISK_MIB + 2)
    with (lab.data_dir("alpha") / "reserve").open("ab") as reserve:
        os.posix_fallocate(reserve.fileno(), 0, 1 * MIB)
    ballast = disk.leave(0)
    await lab.start("alpha")
    assert await refuses(lab), "the disk is still full"
    ballast.unlink()
    disk.grow()
    await lab.until(lambda: written(lab), "alpha takes writes again")
    copy = tmp_path / "copy"
    await lab.get("alpha", "/tree", copy)
    there = {path.name.encode(): path for path in copy.rglob("*") if path.is_file()}
    originals = {path.name.encode(): path for path in tree.rglob("*") if path.is_file()}
    for name in named & originals.keys():
        assert there[name].read_bytes() == originals[name].read_bytes()
    assert (await lab.put("alpha", tree, "/tree")).complete
    await lab.converge()
    await lab.assert_same_at("beta", "/tree", tree)


async def test_a_site_whose_disk_has_no_byte_left_says_so(make_lab: Any, small_disk: Callable[[Path], Disk]) -> None:
    """Without a reserve and without room even for its last line, the launcher tells why; with room it starts."""
    lab = await make_lab(2, settings=SMALL, start=False)
    disk = small_disk(lab.data_dir("alpha"))
    await lab.start()
    await lab.ok("write", "alpha:/first", stdin=b"x")
    await end(lab, "stopped")
    (lab.data_dir("alpha") / "reserve").unlink()
    ballast = disk.leave(0)
    with pytest.raises(SiteFailed) as failed:
        await lab.start("alpha")
    assert "no room" in str(failed.value)
    assert str(lab.data_dir("alpha")) in str(failed.value)
    assert "Traceback" not in str(failed.value)
    ballast.unlink()
    await lab.start("alpha")
    await lab.converge()
    assert (await lab.ok("cat", "alpha:/first")).out == b"x"


async def end(lab: Any, how: str) -> None:
    if how == "stopped":
        assert await lab.launcher.stop("alpha") == 0, lab.tell()
    else:
        lab.launcher.processes["alpha"].send_signal(signal.SIGKILL)
        await lab.launcher.processes["alpha"].wait()


async def refuses(lab: Any) -> bool:
    """Whether writes are refused in the end, as they must be on a disk that is full."""
    big = b"x" * (4 * MIB)
    with trio.fail_after(60):
        for i in range(20):
            done = await lab.cli("write", f"alpha:/more-{i}", stdin=big)
            if done.code == 3:
                return True
            assert done.code == 0, done.err
    return False


async def written(lab: Any) -> bool:
    return bool((await lab.cli("mkdir", "-p", "alpha:/written")).code == 0)
