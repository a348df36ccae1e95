"""A process takes a site's data directory for itself: to run the site, or to make its view anew."""

from __future__ import annotations

import os
import random
import signal
from typing import TextIO

import trio

from claudefs_repl.error import ConfigInvalid
from claudefs_repl.failover import SiteMode
from claudefs_repl.topology import ClusterConfig
from nodes.bootstrap_build import finish_switch
from nodes.client_service import open_client_socket
from nodes.descriptors import is_scarce, raise_limit
from nodes.events import make_logger
from nodes.key_files import load_keys
from nodes.recovery import read_identity, recover
from nodes.runtime import LOCK_NAME, ShiftedClock, SystemClock, events_path, socket_path
from nodes.site import Site
from nodes.site_start import start_site
from nodes.storage import DiskStorage
from nodes.store.sqlite_store import Threads
from nodes.surroundings import Surroundings
from nodes.write_gate import WriteGate


async def run_site(cluster: ClusterConfig, site_name: str, *, echo: TextIO | None = None) -> None:
    """Run one site in this process until SIGTERM or SIGINT; a second signal ends it at once.

    Raises:
        SiteUnknown, ConfigInvalid, CallerError: it cannot start as configured.
        WorldError: a damaged log, a failed sync.
    """
    raise_limit()
    site = cluster.site(site_name)
    keys = load_keys(cluster.key_file(site), site)
    storage = DiskStorage(site.data_dir, quota_bytes=site.disk_quota_bytes)
    wall_clock = ShiftedClock(SystemClock(), offset_s=site.clock_offset_s)
    around = Surroundings(
        storage=storage,
        store_runner=Threads(),
        wall_clock=wall_clock,
        entropy=os.urandom,
        rng=random.Random(),  # noqa: S311 - jitter, not secrets
        pid=os.getpid(),
        open_clients=lambda: open_client_socket(socket_path(site, cluster)),
        make_logger=lambda: make_logger(events_path(site), site.name, wall_clock, echo=echo),
        is_scarce=is_scarce,
    )
    await storage.lock(LOCK_NAME)
    try:
        await start_site(cluster, site, keys, around, _run_until_signalled)
    finally:
        storage.close()


async def _run_until_signalled(site: Site) -> None:
    async with trio.open_nursery() as signals:
        await signals.start(_watch_signals, site, signals.cancel_scope)
        await site.run()
        signals.cancel_scope.cancel()


async def _watch_signals(
    site: Site, everything: trio.CancelScope, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as received:
        task_status.started()
        async for number in received:
            if not site.stop(signal.Signals(number).name):
                everything.cancel()
                return


async def rebuild_site(cluster: ClusterConfig, site_name: str) -> int:
    """Make a stopped site's view anew; returns the entries that were folded after the snapshot.

    Raises:
        CallerError: the site runs.
        WorldError: the logs do not reach back to a snapshot, or are damaged.
    """
    site = cluster.site(site_name)
    storage = DiskStorage(site.data_dir, quota_bytes=site.disk_quota_bytes)
    if not site.data_dir.is_dir():
        raise ConfigInvalid([f"{site.data_dir}: site {site_name} has no data there, so there is nothing to rebuild"])
    await storage.lock(LOCK_NAME)
    try:
        await finish_switch(storage)
        if await read_identity(cluster, site, storage) is None:
            raise ConfigInvalid([f"{site.data_dir}: site {site_name} has never run there: nothing to rebuild"])
        wall_clock = ShiftedClock(SystemClock(), offset_s=site.clock_offset_s)
        logger = make_logger(events_path(site), site.name, wall_clock)
        gate = WriteGate(site.name, SiteMode.STANDBY_READ_ONLY)
        recovered = await recover(
            cluster=cluster, site=site, storage=storage, entropy=os.urandom, gate=gate, logger=logger, rebuild=True
        )
        await recovered.store.make_durable()
        await recovered.close()
        return recovered.replayed
    finally:
        storage.close()
