"""Keys between sites, as values; `nodes.key_files` reads and writes their files."""

from __future__ import annotations

import hmac
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from claudefs_repl.error import PeerRefused
from claudefs_repl.journal import SITE_ID_MAX, SiteId

SECRET_BYTES = 32
KEY_ID_BYTES_MAX = 64
"""A key id is told in the clear in the handshake and shown in logs."""
_KEY_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]*")


@dataclass(frozen=True, slots=True)
class PairKey:
    """The key of one ordered pair of sites: only these two have it, and only for connections that `dialer` opens.

    Attributes:
        key_id: tells several keys of one pair apart while they are rotated; 1 to 64 of `A-Z a-z 0-9 . _ : -`.
        secret: 32 random bytes.
    """

    key_id: str
    dialer: SiteId
    listener: SiteId
    secret: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if not is_key_id(self.key_id):
            raise ValueError(f"not a key id: {self.key_id!r:.80}")
        for site in (self.dialer, self.listener):
            if type(site) is not int or not 1 <= site <= SITE_ID_MAX:
                raise ValueError(f"a site id is 1 to {SITE_ID_MAX}, not {site!r:.40}")
        if self.dialer == self.listener:
            raise ValueError(f"key {self.key_id}: a site has no key for connections to itself")
        if type(self.secret) is not bytes or len(self.secret) != SECRET_BYTES:
            raise ValueError(f"key {self.key_id}: a secret is {SECRET_BYTES} bytes")


class KeyRing:
    """The keys that one site has."""

    def __init__(self, site_id: SiteId, keys: Iterable[PairKey], use: Mapping[SiteId, str] | str) -> None:
        """Take the keys, and the id of the key to use when dialling: one for all listeners, or one for each.

        Raises:
            ValueError: a key is there twice, or belongs to two other sites.
        """
        self.site_id = site_id
        self._use = use
        self._keys: dict[tuple[str, SiteId, SiteId], PairKey] = {}
        for key in keys:
            if site_id not in (key.dialer, key.listener):
                raise ValueError(f"key {key.key_id} of sites {key.dialer} and {key.listener} is not site {site_id}'s")
            identity = (key.key_id, key.dialer, key.listener)
            if identity in self._keys:
                raise ValueError(f"key {key.key_id} of sites {key.dialer} and {key.listener} is there twice")
            self._keys[identity] = key

    def to_use(self, listener: SiteId) -> PairKey:
        """The key with which this site dials a peer.

        Raises:
            PeerRefused: `key_missing`.
        """
        key_id = self._use if isinstance(self._use, str) else self._use.get(listener)
        if key_id is None:
            raise PeerRefused("key_missing", f"site {self.site_id} has no key to use for site {listener}")
        key = self.find(key_id, dialer=self.site_id, listener=listener)
        if key is None:
            raise PeerRefused(
                "key_missing",
                f"site {self.site_id} has no key {key_id!r} for connections that it opens to site {listener}",
            )
        return key

    def find(self, key_id: str, *, dialer: SiteId, listener: SiteId) -> PairKey | None:
        """The key of an ordered pair, None if there is none."""
        return self._keys.get((key_id, dialer, listener))

    def __eq__(self, other: object) -> bool:
        """Whether the other ring holds the same keys and uses the same."""
        if not isinstance(other, KeyRing):
            return NotImplemented
        return (self.site_id, self._use, self._keys) == (other.site_id, other._use, other._keys)

    __hash__ = None  # type: ignore[assignment]  # equal by content, which is secret: not for tables

    def __repr__(self) -> str:
        return f"KeyRing(site_id={self.site_id}, keys={sorted(self._keys)})"


def is_key_id(text: object) -> bool:
    """Whether this can name a key."""
    return isinstance(text, str) and len(text) <= KEY_ID_BYTES_MAX and _KEY_ID.fullmatch(text) is not None


def derive(secret: bytes, transcript_hash: bytes, label: bytes) -> bytes:
    """A key of 32 bytes for one purpose on one connection.

    Source: RFC 5869 (HKDF) with SHA-256, the transcript's hash as salt, the label as info, and one block of output.
    """
    extracted = hmac.digest(transcript_hash, secret, "sha256")
    return hmac.digest(extracted, label + b"\x01", "sha256")
