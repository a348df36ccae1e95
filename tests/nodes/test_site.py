"""A site's start and end, in this process."""

from __future__ import annotations

import os
import signal

import trio

from nodes.config import load_cluster, write_cluster
from nodes.key_files import make_keys, write_keys
from nodes.runtime import events_path
from nodes.site_process import run_site


async def test_a_second_signal_ends_a_site_that_is_still_recovering(tmp_path, monkeypatch):
    """Recovery may take long: the second signal ends the site at once, without an error of its own."""

    async def recover(**_):
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        await trio.sleep_forever()

    monkeypatch.setattr("nodes.site.recover", recover)
    cluster = load_cluster(write_cluster(tmp_path / "cluster", cluster_id="test"))
    write_keys(cluster.keys_dir, make_keys(cluster.sites, os.urandom))
    site = cluster.sites[0]
    with trio.fail_after(10):
        await run_site(cluster, site.name)
    assert "site_failed" not in events_path(site).read_text()
