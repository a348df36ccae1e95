"""A process takes a site's data directory for itself: to run the site, or to make its view anew."""

from __future__ import annotations

import os
import random
from typing import TextIO

import trio
from structlog.typing import FilteringBoundLogger

from claudefs_repl.error import ConfigInvalid, ReplError
from claudefs_repl.failover import SiteMode
from claudefs_repl.topology import ClusterConfig
from nodes.bootstrap_build import finish_switch, log_bootstrap
from nodes.events import make_logger
from nodes.key_files import load_keys
from nodes.recovery import read_identity, recover
from nodes.runtime import LOCK_NAME, ShiftedClock, SystemClock, events_path
from nodes.site import Site
from nodes.storage import DiskStorage
from nodes.write_gate import WriteGate


async def run_site(cluster: ClusterConfig, site_name: str, *, echo: TextIO | None = None) -> None:
    """Run one site in this process until SIGTERM or SIGINT; a second signal ends it at once.

    Raises:
        SiteUnknown, ConfigInvalid, CallerError: it cannot start as configured.
        WorldError: a damaged log, a failed sync.
    """
    site = cluster.site(site_name)
    keys = load_keys(cluster.key_file(site), site)
    storage = DiskStorage(site.data_dir)
    await storage.lock(LOCK_NAME)
    try:
        bootstrapped = await finish_switch(storage)
        # Before a line is logged: the directory, and the log in it, may be another site's.
        await read_identity(cluster, site, storage)
        wall_clock = ShiftedClock(SystemClock(), offset_s=site.clock_offset_s)
        logger = make_logger(events_path(site), site.name, wall_clock, echo=echo)
        if bootstrapped is not None:
            log_bootstrap(bootstrapped, logger)
        try:
            await Site(cluster, site, keys, storage, wall_clock, os.urandom, random.Random(), logger).run()  # noqa: S311 - jitter, not secrets
        except BaseException as error:
            _log_failure(error, logger)
            raise
    finally:
        storage.close()


async def rebuild_site(cluster: ClusterConfig, site_name: str) -> int:
    """Make a stopped site's view anew; returns the entries that were folded after the snapshot.

    Raises:
        CallerError: the site runs.
        WorldError: the logs do not reach back to a snapshot, or are damaged.
    """
    site = cluster.site(site_name)
    storage = DiskStorage(site.data_dir)
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


def _log_failure(error: BaseException, logger: FilteringBoundLogger) -> None:
    leaf = error
    while isinstance(leaf, BaseExceptionGroup):
        leaf = leaf.exceptions[0]
    if not isinstance(leaf, trio.Cancelled | KeyboardInterrupt):
        reason = str(leaf) if isinstance(leaf, ReplError) else f"{type(leaf).__name__}: {leaf}"
        logger.error("site_failed", reason=reason)
