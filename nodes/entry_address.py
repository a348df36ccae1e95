"""ORIGIN/SHARD/SEQ: how people name an entry."""

from __future__ import annotations

from dataclasses import dataclass

from claudefs_repl.checkpoint import SEQ_MAX
from claudefs_repl.error import CallerError
from claudefs_repl.journal import SITE_ID_MAX, Incarnation, JournalId, Shard, SiteId
from claudefs_repl.topology import ClusterConfig

FORM = "expected ORIGIN/SHARD/SEQ, as in alpha/0/17; ORIGIN is a site's name or id, or ID:INCARNATION as status --json shows"


DIGITS_MAX = 19
"""Of SEQ_MAX; Python itself refuses to read numbers of some thousand digits."""


@dataclass(frozen=True, slots=True)
class EntryAddress:
    """An entry as it was named.

    Attributes:
        origin: the site that made it.
        incarnation: of the journal that it is in; None for the one that the origin writes now.
    """

    origin: SiteId
    incarnation: Incarnation | None
    shard: Shard
    seq: int

    def __str__(self) -> str:
        origin = self.origin if self.incarnation is None else JournalId(self.origin, self.incarnation)
        return f"{origin}/{self.shard}/{self.seq}"


def parse_entry(text: object, cluster: ClusterConfig) -> EntryAddress:
    """Read an entry's address.

    Raises:
        CallerError: it has another form, or names a site or shard that the configuration does not have.
    """
    if not isinstance(text, str):
        raise CallerError(f"an entry is named by a text: {FORM}")
    origin, *numbers = text.split("/")
    if len(numbers) != 2 or not all(map(_is_number, numbers)):
        raise CallerError(f"{text!r:.80}: {FORM}")
    shard, seq = map(int, numbers)
    if shard >= cluster.shards:
        raise CallerError(f"{text!r:.80}: there is no shard {shard}; the cluster has 0 to {cluster.shards - 1}")
    if not 1 <= seq <= SEQ_MAX:
        raise CallerError(f"{text!r:.80}: the seqs of a shard begin at 1")
    incarnation: Incarnation | None = None
    if ":" in origin:
        try:
            site_id, incarnation = JournalId.parse(origin)
        except ValueError as error:
            raise CallerError(f"{text!r:.80}: {FORM}") from error
    elif _is_number(origin) and 1 <= int(origin) <= SITE_ID_MAX:
        site_id = SiteId(int(origin))
    else:
        site_id = cluster.site(origin).site_id
    return EntryAddress(site_id, incarnation, Shard(shard), seq)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= DIGITS_MAX
