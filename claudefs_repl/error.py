"""Errors say whose fault it is, because each fault has its own reaction.

* ours: an `assert`, never caught;
* the caller's (`CallerError`): answered with a message that names the thing and the remedy;
* the peer's (`PeerError`): the connection is closed, counted, logged;
* the world's (`WorldError`): a disk, a network; retried, gated, or the end of the process.
"""

from __future__ import annotations

import errno as errno_module


class ReplError(Exception):
    """The root of every error that this project declares."""


class CallerError(ReplError):
    """Input that cannot be served as it was given; nothing was changed."""


class PeerError(ReplError):
    """A peer broke the protocol or may not speak to us; its connection is closed."""


class WorldError(ReplError):
    """A disk, a socket or a clock did not do its part."""


class SiteUnknown(CallerError):
    """A site was named that the configuration does not have."""


class ConfigInvalid(CallerError):
    """`cluster.toml` or a key file cannot be used.

    Attributes:
        problems: one line for each problem: file, key, what is expected.
    """

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class OperationRefused(CallerError):
    """A client's operation does not fit the tree as it is.

    Attributes:
        errno: the POSIX error number that a mounted file system would answer with.
    """

    def __init__(self, errno: int, detail: str) -> None:
        super().__init__(detail)
        self.errno = errno

    @property
    def code(self) -> str:
        """The symbolic name, such as `EEXIST`."""
        return errno_module.errorcode.get(self.errno, "EIO")


class NotWritable(CallerError):
    """The site takes no writes now; the message says why and what to do (P9)."""


class ProtocolViolation(PeerError):
    """Bytes from a peer that the protocol does not allow.

    Attributes:
        code: a stable word for logs and counters, such as `bad_mac` or `frame_too_long`.
    """

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code
        self.detail = detail


class PeerRefused(PeerError):
    """The other side, or this one, declined a connection at the handshake.

    Attributes:
        code: a stable word, such as `cluster_mismatch` or `key_unknown`.
        wait_ms: how long the dialler should wait before it tries again, 0 if it does not matter.
    """

    def __init__(self, code: str, detail: str, *, wait_ms: int = 0) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code
        self.detail = detail
        self.wait_ms = wait_ms


class WalCorrupted(WorldError):
    """A log is damaged where it was known to be durable; the site does not start.

    Attributes:
        path: the damaged file.
        offset: the byte at which the damage begins.
    """

    def __init__(self, path: str, offset: int, detail: str) -> None:
        super().__init__(f"{path}: damaged at byte {offset}: {detail}")
        self.path = path
        self.offset = offset


class DiskFull(WorldError):
    """There is no room for the next segment or transaction; writes are gated until there is."""


class SyncFailed(WorldError):
    """An `fdatasync` failed: the page cache can no longer be trusted and the process must end."""
