"""Where a site lives on this machine: its client socket, its process, its address, the time of day."""

from __future__ import annotations

import fcntl
import hashlib
import os
import socket
import stat
import time
from contextlib import suppress
from pathlib import Path

from claudefs_repl.error import ConfigInvalid
from claudefs_repl.topology import ClusterConfig, SiteConfig
from nodes.seams import WallClock

SOCKET_PATH_BYTES_MAX = 107
"""`sun_path` of Linux has 108 bytes, one of them NUL; other systems have 104, which a hashed name stays below too."""
LOCK_NAME = "lock"
"""In a data directory: locked, and with the pid in it, for as long as a site runs there."""
NEW_NAME = "new"
"""In a data directory in which no site has run yet: it is that of a new one, and not what a lost disk left."""
EVENTS_NAME = "events.jsonl"
OUTPUT_NAME = "output.log"
"""What a site that the launcher started wrote to its stdout and stderr: a traceback, if anything."""


class SystemClock:
    """The machine's time of day: the production end of the wall clock seam."""

    def now_us(self) -> int:
        """Microseconds since 1970."""
        return time.time_ns() // 1000


class ShiftedClock:
    """A wall clock that shows another time than the one beneath it, for experiments with clocks that are wrong.

    Owned by a site, whose administration may shift it at any moment.
    """

    def __init__(self, beneath: WallClock, *, offset_s: float) -> None:
        self._beneath = beneath
        self.shift(offset_s)

    def shift(self, offset_s: float) -> None:
        """Show from now on the time beneath and so many seconds, which may be negative."""
        self._offset_us = round(offset_s * 1e6)

    def now_us(self) -> int:
        """Microseconds since 1970, as shifted."""
        return max(0, self._beneath.now_us() + self._offset_us)


def socket_path(site: SiteConfig, cluster: ClusterConfig) -> Path:
    """Where a site listens for clients of this machine, in a directory that only this user enters.

    The name is a hash, because a socket's path must be short and data directories need not be.

    Raises:
        ConfigInvalid: the directory belongs to someone else, or lets others in.
    """
    directory = _runtime_dirs()[0]
    _own_dir(directory)
    return directory / _socket_name(site, cluster)


def socket_candidates(site: SiteConfig, cluster: ClusterConfig) -> list[Path]:
    """Where a client looks for a site's socket, the likeliest first.

    A site that a service manager started may have no XDG_RUNTIME_DIR where the client's shell has one.
    """
    return [directory / _socket_name(site, cluster) for directory in _runtime_dirs()]


def events_path(site: SiteConfig) -> Path:
    """A site's event log."""
    return site.data_dir / EVENTS_NAME


def output_path(site: SiteConfig) -> Path:
    """What a started site wrote to its stdout and stderr."""
    return site.data_dir / OUTPUT_NAME


def mark_new(cluster: ClusterConfig) -> None:
    """Mark the data directories of a new cluster's sites on this machine, so that they begin without asking their peers.

    One that cannot be made here is left out: its site asks them.
    """
    for site in cluster.sites:
        if is_local_address(site.address):
            with suppress(OSError):
                site.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
                (site.data_dir / NEW_NAME).touch()


def _runtime_dirs() -> list[Path]:
    fallback = Path(f"/tmp/claudefs-repl-{os.getuid()}")  # noqa: S108 - _own_dir refuses it if another user made it
    given = os.environ.get("XDG_RUNTIME_DIR", "")
    if given and len(os.fsencode(given)) + 48 <= SOCKET_PATH_BYTES_MAX and os.access(given, os.W_OK | os.X_OK):
        return [Path(given) / "claudefs-repl", fallback]
    return [fallback]


def _socket_name(site: SiteConfig, cluster: ClusterConfig) -> str:
    identity = b"\0".join((os.fsencode(site.data_dir.resolve()), cluster.cluster_id.encode(), site.name.encode()))
    return hashlib.sha256(identity).hexdigest()[:20] + ".sock"


def _own_dir(directory: Path) -> None:
    try:
        directory.mkdir(mode=0o700, exist_ok=True)
        found = directory.lstat()
    except OSError as error:
        raise ConfigInvalid([f"{directory}: cannot be made: {error.strerror}"]) from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise ConfigInvalid(
            [f"{directory}: expected a directory of user {os.getuid()}, mode 0700; remove it, or set XDG_RUNTIME_DIR"]
        )


def site_pid(site: SiteConfig) -> int | None:
    """The process that runs a site on this machine, None if there is none.

    The pid alone could be another process' by now, so its lock is tried, but only when such a process lives: a starting
    site, whose lock file tells a dead one, never meets this.
    """
    try:
        with (site.data_dir / LOCK_NAME).open("rb") as file:
            pid = int(file.read(32))
            if pid <= 0 or not process_lives(pid):
                return None
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return pid
    except (OSError, ValueError):
        return None
    return None


def process_lives(pid: int) -> bool:
    """Whether there is such a process, another user's too."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):  # or a number that is no pid
        return False
    except PermissionError:
        return True
    return True


def is_local_address(address: str) -> bool:
    """Whether a site with this address runs on this machine: whether a socket can be bound to it."""
    try:
        found = socket.getaddrinfo(address, 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError):
        return False
    for family, kind, _, _, place in found:
        try:
            with socket.socket(family, kind) as probe:
                probe.bind(place)
        except OSError:
            continue
        return True
    return False
