"""kill -9 of any site at any moment of a running put, fifty times over: nothing that was confirmed is lost."""

from __future__ import annotations

import os
import random
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import trio

from nodes.client import ClientError, SiteUnreachable

pytestmark = [pytest.mark.cluster, pytest.mark.long]

ROUNDS = int(os.environ.get("KILL9_ROUNDS", "50"))
FILES = 120
KILL_WITHIN_S = 0.05
"""After a file was confirmed that was chosen by lot: a few group commits, so that no step of them is spared."""


async def test_fifty_kills_lose_nothing_that_was_confirmed(make_lab: Any, make_files: Any, tmp_path: Path) -> None:
    """Every file that a site named durable is at every site in the end, byte for byte, and the sites agree."""
    seed = int(os.environ.get("KILL9_SEED", str(random.SystemRandom().randrange(1 << 32))))
    sys.stdout.write(f"replay with: KILL9_SEED={seed} KILL9_ROUNDS={ROUNDS} make kill9\n")
    rng = random.Random(seed)
    lab = await make_lab()
    originals = tmp_path / "originals"
    confirmed: set[bytes] = set()
    counts = {"finished": 0, "cut off": 0, "in the middle": 0}
    for number in range(ROUNDS):
        target, victim = rng.choice(lab.names), rng.choice(lab.names)
        after_files, delay_s = rng.randrange(FILES), rng.uniform(0, KILL_WITHIN_S)
        tree = make_files(originals / f"round-{number}", FILES, large=1, large_size=1 << 20)

        named: set[bytes] = set()
        ended = trio.Event()

        async def put(
            tree: Path = tree, target: str = target, named: set[bytes] = named, ended: trio.Event = ended
        ) -> None:
            try:
                assert (await lab.put(target, tree, f"/{tree.name}", named=named)).complete
                counts["finished"] += 1
            except SiteUnreachable:
                counts["cut off"] += 1
            finally:
                ended.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(put)
            while len(named) < after_files and not ended.is_set():
                await trio.sleep(0.001)
            await trio.sleep(delay_s)
            counts["in the middle"] += not ended.is_set()
            await lab.kill(victim)
        confirmed |= named
        await lab.start(victim)
    await lab.converge()
    sys.stdout.write(f"{counts}, {len(confirmed)} files confirmed\n")
    assert counts["in the middle"] > ROUNDS / 4, "too few kills came in the middle of a put"
    for name in lab.names:
        copy = tmp_path / "copy"
        assert (await lab.get(name, "/", copy)).complete
        assert_confirmed_are_whole(originals, copy, confirmed)
        shutil.rmtree(copy)
        assert not [event for event in lab.events(name) if event["event"] in ("site_failed", "dead_letter")]
    await finish_every_put(lab, originals)


def assert_confirmed_are_whole(originals: Path, copy: Path, confirmed: set[bytes]) -> None:
    """What was confirmed is there, and whatever is there is whole."""
    there = {os.fsencode(path.name): path for path in copy.rglob("*") if path.is_file()}
    missing = confirmed - there.keys()
    assert not missing, f"{len(missing)} confirmed files are lost, such as {min(missing)!r}"
    made = {os.fsencode(path.name): path for path in originals.rglob("*") if path.is_file()}
    for name, path in there.items():
        assert path.read_bytes() == made[name].read_bytes(), name


def trees_in(originals: Path) -> list[Path]:
    return sorted(originals.iterdir())


async def finish_every_put(lab: Any, originals: Path) -> None:
    """What was cut off is simply run again, and then all of it is everywhere."""
    for tree in trees_in(originals):
        try:
            assert (await lab.put("alpha", tree, f"/{tree.name}")).complete
        except ClientError as error:
            raise AssertionError(f"{tree.name} cannot be finished: {error}") from error
    await lab.converge()
    await lab.assert_same_everywhere("/", originals_with_root(originals, lab.directory / "expected"))


def originals_with_root(originals: Path, target: Path) -> Path:
    """The originals with the attributes of a tree's root."""
    shutil.copytree(originals, target)
    target.chmod(0o755)
    os.utime(target, ns=(0, 0))
    return target
