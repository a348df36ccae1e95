"""Batch tags: the seed's HMAC-SHA256 over the entries of a batch.

The message, which has no lengths of its own:

| bytes        | field                                          |
|--------------|------------------------------------------------|
| 8            | source site id, little endian                  |
| 8            | batch_seq, little endian                       |
| each entry   | seq (8) and inode (8), little endian, payload  |

What follows the first 16 bytes is exactly `Block.body`, so a block is tagged without a look at its entries.

The tag alone is weak: bytes may move between a payload and the entry after it, and it does not cover op, timestamp,
shard or origin. The frame around a batch is therefore authenticated as a whole too (`protocol.frames`), and both are
verified.
"""

from __future__ import annotations

import builtins
import hmac
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from claudefs_repl.journal import JournalEntry, SiteId

KEY_BYTES = 32
TAG_BYTES = 32
"""What SHA-256 gives."""

_PREFIX = struct.Struct("<QQ")
_ENTRY_HEAD = struct.Struct("<QQ")


class BatchAuthKey:
    """A secret of 32 bytes, wiped when it is closed or collected, and never shown."""

    __slots__ = ("_secret",)

    def __init__(self, secret: bytes | bytearray | memoryview) -> None:
        if len(secret) != KEY_BYTES:
            raise ValueError(f"a batch key has {KEY_BYTES} bytes, not {len(secret)}")
        self._secret = bytearray(secret)

    @classmethod
    def generate(cls, entropy: Callable[[int], bytes]) -> BatchAuthKey:
        """A fresh key from a source that gives so many random bytes."""
        return cls(entropy(KEY_BYTES))

    @classmethod
    def from_bytes(cls, secret: bytes | bytearray | memoryview) -> BatchAuthKey:
        """A key of given bytes, which are copied.

        Raises:
            ValueError: there are not 32 of them.
        """
        return cls(secret)

    def as_bytes(self) -> bytes:
        """A copy of the secret, which is the caller's to guard.

        Raises:
            ValueError: the key is closed.
        """
        return bytes(self._open_secret())

    def close(self) -> None:
        """Overwrite the secret; the key is of no use from then on. Closing twice does nothing."""
        self._secret[:] = bytes(len(self._secret))
        self._secret.clear()

    @property
    def closed(self) -> bool:
        """Whether the secret is gone."""
        return not self._secret

    def _open_secret(self) -> bytearray:
        if not self._secret:
            raise ValueError("the batch key is closed")
        return self._secret

    def _begin(self, message: bytes) -> hmac.HMAC:
        return hmac.new(self._open_secret(), message, "sha256")

    def __del__(self) -> None:
        if hasattr(self, "_secret"):
            self.close()

    def __repr__(self) -> str:
        return "BatchAuthKey(closed)" if self.closed else "BatchAuthKey(...)"

    def __reduce__(self) -> str:
        raise TypeError("a batch key is neither pickled nor copied")


@dataclass(frozen=True, slots=True)
class BatchTag:
    """The tag of a batch: 32 bytes."""

    bytes: builtins.bytes

    def __post_init__(self) -> None:
        if type(self.bytes) is not builtins.bytes or len(self.bytes) != TAG_BYTES:
            raise ValueError(f"a batch tag is {TAG_BYTES} bytes")


@dataclass(frozen=True, slots=True)
class AuthResult:
    """What a verification found.

    Attributes:
        valid: whether the tag is the batch's.
        reason: why not; None if it is.
    """

    valid: bool
    reason: str | None = None

    @classmethod
    def invalid(cls, reason: str) -> AuthResult:
        """A refusal."""
        return cls(valid=False, reason=reason)


VALID = AuthResult(valid=True)


class BatchAuthenticator:
    """Signs and verifies batches with one key.

    Attributes:
        local_site_id: the site that signs and verifies here; told in the reason of a refusal.
    """

    __slots__ = ("_key", "local_site_id")

    def __init__(self, key: BatchAuthKey, local_site_id: SiteId) -> None:
        self._key = key
        self.local_site_id = local_site_id

    def sign_batch(self, source_site_id: SiteId, batch_seq: int, entries: Sequence[JournalEntry]) -> BatchTag:
        """The tag of entries one by one."""
        return BatchTag(self._tag(source_site_id, batch_seq, _entry_parts(entries)))

    def verify_batch(
        self, tag: BatchTag, source_site_id: SiteId, batch_seq: int, entries: Sequence[JournalEntry]
    ) -> AuthResult:
        """Whether a tag is that of these entries, in constant time for a given length of them."""
        return self._compare(tag, source_site_id, batch_seq, _entry_parts(entries))

    def sign_body(self, source_site_id: SiteId, batch_seq: int, body: memoryview | bytes) -> BatchTag:
        """The tag of a block's body: the same as that of its entries."""
        return BatchTag(self._tag(source_site_id, batch_seq, (body,)))

    def verify_body(
        self, tag: BatchTag, source_site_id: SiteId, batch_seq: int, body: memoryview | bytes
    ) -> AuthResult:
        """Whether a tag is that of a block's body, in constant time for a given length of it."""
        return self._compare(tag, source_site_id, batch_seq, (body,))

    def _tag(self, source_site_id: int, batch_seq: int, parts: Iterable[memoryview | bytes]) -> bytes:
        mac = self._key._begin(_PREFIX.pack(source_site_id, batch_seq))
        for part in parts:
            mac.update(part)
        return mac.digest()

    def _compare(
        self, tag: BatchTag, source_site_id: int, batch_seq: int, parts: Iterable[memoryview | bytes]
    ) -> AuthResult:
        if hmac.compare_digest(tag.bytes, self._tag(source_site_id, batch_seq, parts)):
            return VALID
        return AuthResult.invalid(
            f"tag mismatch: batch {batch_seq} of site {source_site_id} is not what its tag was made for, "
            f"or was signed with another key than site {self.local_site_id} has"
        )


def _entry_parts(entries: Iterable[JournalEntry]) -> Iterable[bytes]:
    for entry in entries:
        yield _ENTRY_HEAD.pack(entry.seq, entry.inode)
        yield entry.payload
