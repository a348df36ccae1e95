"""The gate before a site's clients: why the site takes no writes now, if it does not (P9)."""

from __future__ import annotations

from structlog.typing import FilteringBoundLogger

from claudefs_repl.error import DiskFull, NotWritable
from claudefs_repl.failover import SiteMode

DISK_FULL = "disk_full"
PEER_AHEAD = "peer_ahead"
DIVERGED = "diverged"
CLOCK = "clock"
LACKS_LOG = "lacks_log"
FORMER = "former"
STRANDED = "stranded"
LOST = "lost"
LASTING = (PEER_AHEAD, DIVERGED, LOST)
"""Reasons that are in what the data directory holds or lacks: they outlast a restart, and go with it or a bootstrap."""


def remedy_anew(site: str, peer: str) -> str:
    """What to do with a site that cannot go on as it is."""
    return f"stop it and make it anew with: claudefs-repl bootstrap {site} --from {peer}"


class WriteGate:
    """Reasons against writing; writes pass when there are none and the mode allows them.

    Owned by the site; the failover actor sets the mode, the disk's users and the conduits close and open it by name.

    Attributes:
        site: the site's name.
        mode: the site's own.
        pinned: whether an operator holds the mode.
    """

    def __init__(self, site: str, mode: SiteMode, *, becomes_active: bool = True) -> None:
        """`becomes_active` is whether a standby takes writes by itself in the end."""
        self.site = site
        self._becomes_active = becomes_active
        self._reasons: dict[str, str] = {}
        self.mode = mode
        self.pinned = False

    def close(self, name: str, reason: str) -> bool:
        """Refuse writes for a reason; returns whether it is a new one."""
        is_new = name not in self._reasons
        self._reasons[name] = reason
        return is_new

    def close_for_disk(self, full: DiskFull, logger: FilteringBoundLogger) -> None:
        """Refuse writes because the disk is full; the housekeeper opens the gate once there is room."""
        if self.close(DISK_FULL, f"its disk is full ({full}); free some space, it goes on by itself"):
            logger.error("disk_full", detail=str(full))

    def open(self, name: str) -> bool:
        """Take a reason away; returns whether it was there."""
        return self._reasons.pop(name, None) is not None

    def is_closed(self, name: str) -> bool:
        """Whether a reason of that name holds."""
        return name in self._reasons

    @property
    def reasons(self) -> tuple[str, ...]:
        """The reasons against writing, without the mode."""
        return tuple(self._reasons.values())

    @property
    def lasting(self) -> dict[str, str]:
        """The reasons against writing that a restart does not take away, by name."""
        return {name: self._reasons[name] for name in LASTING if name in self._reasons}

    def check_write(self) -> None:
        """Let a write pass.

        Raises:
            NotWritable: with the site, the reason and the remedy.
        """
        for reason in self._reasons.values():
            raise NotWritable(f"site {self.site} takes no writes: {reason}")
        if not self.mode.is_writable and self.pinned:
            raise NotWritable(
                f"site {self.site} is {self.mode.value} and takes no writes: an operator holds that mode; release it with: "
                f"claudefs-repl mode {self.site} --release"
            )
        if not self.mode.is_writable and not self._becomes_active:
            raise NotWritable(
                f"site {self.site} is {self.mode.value} and takes no writes: with active_active = false it takes them by "
                f"an operator's hand only: claudefs-repl mode {self.site} active --pin"
            )
        if not self.mode.is_writable:
            raise NotWritable(
                f"site {self.site} is {self.mode.value} and takes no writes; it becomes writable by itself once it "
                f"has caught up, watch it with: claudefs-repl status --watch"
            )

    def check_read(self) -> None:
        """Let a read pass.

        Raises:
            NotWritable: the site is offline; with the reasons against writing, one of which may be why.
        """
        if not self.mode.is_readable:
            why = "; ".join(self._reasons.values()) or "see: claudefs-repl status"
            raise NotWritable(f"site {self.site} is {self.mode.value} and serves no reads; {why}")
