"""A real site that runs out of file descriptors: peers go on, newcomers are closed, and it is told."""

from __future__ import annotations

import contextlib
import os
import resource

import pytest
import trio

from nodes.runtime import events_path, site_pid
from tests.nodes.hostile_site import row

pytestmark = pytest.mark.cluster
NEWCOMERS = 90


@row(37)
async def test_a_site_without_descriptors_keeps_its_peers_and_tells(make_lab, tmp_path):
    """With room for a few more only, and strangers that connect and wait, an entry still comes from its peer."""
    lab = await make_lab(2)
    beta = lab.cluster.site("beta")
    pid = site_pid(beta)
    assert pid is not None
    open_now = max(int(name) for name in os.listdir(f"/proc/{pid}/fd"))
    # A third is kept; beneath that there is room for ten more than what is open.
    limit = (open_now + 10) * 3 // 2
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (limit, limit))
    (tmp_path / "file").write_bytes(b"while they wait")
    streams = []
    try:
        for number in range(NEWCOMERS):
            with contextlib.suppress(OSError):
                address = f"127.3.0.{number + 1}"
                streams.append(await trio.open_tcp_stream(beta.address, beta.port, local_address=address))
        await lab.ok("put", str(tmp_path / "file"), "alpha:/file")
        with trio.fail_after(60):
            while b'"descriptors_low"' not in events_path(beta).read_bytes():
                await trio.sleep(0.05)
            while (await lab.cli("cat", "beta:/file")).out != b"while they wait":
                await trio.sleep(0.05)
    finally:
        for stream in streams:
            await trio.aclose_forcefully(stream)
    assert site_pid(beta) == pid
