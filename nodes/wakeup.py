"""A wake-up that is never lost: notified before the wait counts as much as during it."""

from __future__ import annotations

import trio


class Wakeup:
    """One waiter, any number of notifiers; notifications while nobody waits are remembered as one."""

    def __init__(self) -> None:
        self._event = trio.Event()

    def notify(self) -> None:
        """Wake the waiter, or let its next wait return at once."""
        self._event.set()

    async def wait(self) -> None:
        """Return once notified since the last return."""
        await self._event.wait()
        self._event = trio.Event()
