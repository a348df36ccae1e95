"""A file that is written over and over while a peer is away travels once, and everybody has the same in the end."""

from __future__ import annotations

import random
from typing import Any

import pytest

from nodes.client import connect_site
from nodes.commands import ops, remote

pytestmark = pytest.mark.cluster

ROUNDS = 64
PIECE_BYTES = 64 * 1024


async def write_over(lab: Any, site: str, path: bytes, seed: int) -> bytes:
    """Write a file's first piece anew again and again, with a change of mode and an attribute each time."""
    chance = random.Random(seed)
    data = b""
    async with connect_site(lab.cluster, site) as client:
        node = await remote.resolve(client, path)
        for number in range(ROUNDS):
            data = chance.randbytes(PIECE_BYTES)
            step = [
                *ops.write(node.inode, 0, data),
                ops.set_attributes(node.inode, mode=0o600 + number % 8),
                *ops.change_xattrs(node.inode, {b"user.round": b"%d" % number}, {}),
            ]
            await remote.submit(client, step)
    return data


async def test_what_a_backlog_undoes_itself_is_not_sent(make_lab: Any) -> None:
    """With compaction on, a killed peer catches up on a fraction of the bytes, and has the tree of one that got all."""
    settings = {"replication": {"compaction": "on"}, "failover": {"check_interval_ms": 500, "failure_threshold": 20}}
    lab = await make_lab(3, settings=settings)
    await lab.ok("write", "alpha:/file", stdin=b"first")
    await lab.ok("write", "alpha:/other", stdin=b"first")
    await lab.converge()
    await lab.kill("beta")
    before = (await lab.status("alpha"))["journal"]["bytes"]
    last = await write_over(lab, "alpha", b"/file", 1)
    await write_over(lab, "gamma", b"/file", 2)
    content = await write_over(lab, "gamma", b"/other", 3)
    await lab.converge("alpha", "gamma")
    written = (await lab.status("alpha"))["journal"]["bytes"] - before
    assert written > ROUNDS * PIECE_BYTES

    sent = (await lab.status("alpha"))["peers"]["beta"]["bytes_sent"]
    await lab.start("beta")
    await lab.converge()
    link = (await lab.status("alpha"))["peers"]["beta"]
    assert link["bytes_sent"] - sent < written / 5
    assert link["compaction"]["bytes_saved"] > written / 2
    assert link["compaction"]["rows_emptied"] > ROUNDS
    assert "alpha -> beta: compaction emptied" in (await lab.ok("status")).out.decode()
    assert (await lab.ok("verify", "--wait", "60")).out.endswith(b"converged\n")
    assert (await lab.ok("cat", "beta:/other")).out == content
    shown = {(await lab.ok("cat", f"{name}:/file")).out for name in lab.names}
    assert len(shown) == 1
    assert last not in shown, "gamma wrote later"

    # beta's replica of alpha's journal is what alpha sent, and makes the same tree again.
    await lab.launcher.stop("beta")
    await lab.ok("rebuild", "beta")
    await lab.start("beta")
    await lab.converge()
