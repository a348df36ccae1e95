"""How a site starts in the surroundings that it is handed: the same steps on a machine and in a simulation."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio
from structlog.typing import FilteringBoundLogger

from claudefs_repl.error import ReplError
from claudefs_repl.topology import ClusterConfig, SiteConfig
from nodes.bootstrap_build import finish_switch, log_bootstrap
from nodes.recovery import read_identity
from nodes.site import Site
from nodes.surroundings import Surroundings
from protocol.keys import KeyRing


async def start_site(
    cluster: ClusterConfig,
    site: SiteConfig,
    keys: KeyRing,
    around: Surroundings,
    run: Callable[[Site], Awaitable[None]],
) -> None:
    """Make sure that the data directory is the site's and whole, then run the site; how it failed is logged.

    Raises:
        ConfigInvalid, CallerError: it cannot start as configured.
        WorldError: a damaged log, a failed sync.
    """
    bootstrapped = await finish_switch(around.storage)
    # Before a line is logged: the directory, and the log in it, may be another site's.
    await read_identity(cluster, site, around.storage)
    logger = around.make_logger()
    if bootstrapped is not None:
        log_bootstrap(bootstrapped, logger)
    try:
        await run(Site(cluster, site, keys, around, logger))
    except BaseException as error:
        _log_failure(error, logger)
        raise


def _log_failure(error: BaseException, logger: FilteringBoundLogger) -> None:
    leaf = error
    while isinstance(leaf, BaseExceptionGroup):
        leaf = leaf.exceptions[0]
    if not isinstance(leaf, trio.Cancelled | KeyboardInterrupt):
        reason = str(leaf) if isinstance(leaf, ReplError) else f"{type(leaf).__name__}: {leaf}"
        logger.error("site_failed", reason=reason)
