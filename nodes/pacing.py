"""Pacing: batches wait at the rate limiter, at the sending and at the receiving side; none is ever dropped."""

from __future__ import annotations

import trio

from claudefs_repl.auth_ratelimit import AuthRateLimiter, Throttled
from claudefs_repl.journal import SiteId
from nodes.dialing import monotonic_us

WAIT_MAX_S = 1.0
"""The longest sleep before looking again: a reload may have lifted the limit."""


async def take_turn(limiter: AuthRateLimiter, peer: SiteId, byte_count: int) -> float:
    """Wait until the limiter lets a batch of so many bytes pass; returns the seconds waited, 0 if it passed at once.

    A receiver that waits here does not read on, so that TCP slows the sender.
    """
    began_s, has_waited = trio.current_time(), False
    while isinstance(result := limiter.check_batch_send(peer, byte_count, monotonic_us()), Throttled):
        has_waited = True
        await trio.sleep(min(WAIT_MAX_S, result.wait_ms / 1000))
    return trio.current_time() - began_s if has_waited else 0.0
