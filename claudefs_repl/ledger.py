"""The ledger: every entry that a journal was given is accounted for at every site, or it is told which is not (P5).

What a site counts of a journal's shard is counted in several ways that share no code: its log is read through, the view
has its cursor and beside it a count and a chain of what was folded, the tables tell whose stamps they hold. The sums:

* written by the origin = durable here + in flight + missing;
* applied = current + lost + superseded + dead letters.

`find_faults` holds the counts against each other, at each site and between sites. Numbers of different sites are of
different moments; only what holds whatever happened in between is a fault.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from claudefs_repl.journal import JournalId


@dataclass(frozen=True, slots=True)
class ShardAccount:
    """What one site counts of one shard of one journal.

    Attributes:
        tail: where its log says that it ends: a seq, 0 for nothing.
        durable: entries that were counted by reading the log, and those before its first one, which were trimmed.
        applied: the view's cursor, read before `tail`.
        folded: entries that the view has counted while it folded them.
        chain: CRC-32 over the checksums of those entries, in order.
        log_chain: the same over the log's entries up to `applied`; None if the log was trimmed.
        current: entries of which something is the current value of something in the view.
        lost: others that are on the conflict list.
        last_showing: greatest seq among both, 0 if there are none.
        dead_letters: entries that were put aside.
    """

    tail: int
    durable: int
    applied: int
    folded: int
    chain: int
    log_chain: int | None
    current: int
    lost: int
    last_showing: int
    dead_letters: int

    @property
    def superseded(self) -> int:
        """Entries that took effect and of which nothing shows any more."""
        return self.folded - self.current - self.lost - self.dead_letters

    def faults(self) -> Iterator[str]:
        """What does not add up at this site alone."""
        if self.durable != self.tail:
            yield f"the log ends at seq {self.tail}, but {self.durable} entries are in it"
        if self.applied > self.tail:
            yield f"the view has applied up to seq {self.applied}, but the log ends at {self.tail}"
        if self.folded != self.applied:
            yield f"the view has applied up to seq {self.applied}, but folded {self.folded} entries"
        if self.log_chain is not None and self.log_chain != self.chain:
            yield f"what the view has folded up to seq {self.applied} is not what the log has"
        if self.last_showing > self.applied:
            yield f"the view shows entry {self.last_showing}, but has applied up to seq {self.applied}"
        if self.superseded < 0:
            shown = f"{self.current} entries are current, {self.lost} have lost, {self.dead_letters} are dead letters"
            yield f"{shown}, but the view has folded {self.folded}"


Accounts = Mapping[JournalId, tuple[ShardAccount, ...]]
"""One site's accounts: for each journal that it holds, one for each shard."""


@dataclass(frozen=True, slots=True)
class SiteLedger:
    """What one site told, in two answers one after the other.

    Attributes:
        accounts: of the first answer.
        acked: of the first answer: for each peer by name, what it has acknowledged of the site's own journal.
        tails: of the second answer: for each journal where its log ends.
        sent: of the second answer: for each peer by name, what was sent to it of the site's own journal.
        own: the journal that it writes.
    """

    accounts: Accounts
    acked: Mapping[str, tuple[int, ...]]
    tails: Mapping[JournalId, tuple[int, ...]]
    sent: Mapping[str, tuple[int, ...]]
    own: JournalId


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that does not add up.

    Attributes:
        site: where, by name.
        journal: of which journal.
        shard: of which shard.
        what: in words.
    """

    site: str
    journal: JournalId
    shard: int
    what: str

    def __str__(self) -> str:
        return f"{self.site}: journal {self.journal} shard {self.shard}: {self.what}"


def find_faults(ledgers: Mapping[str, SiteLedger]) -> list[Fault]:
    """Everything that does not add up, at each site and between those that told, by name."""
    faults = [
        Fault(name, journal, shard, what)
        for name, ledger in ledgers.items()
        for journal, accounts in ledger.accounts.items()
        for shard, account in enumerate(accounts)
        for what in account.faults()
    ]
    return [*faults, *_between_origin_and_others(ledgers), *_between_chains(ledgers)]


def _between_origin_and_others(ledgers: Mapping[str, SiteLedger]) -> Iterator[Fault]:
    """No site may hold more than the origin wrote, or less than it acknowledged. The later answer is the greater side."""
    for name, origin in ledgers.items():
        for other_name, other in ledgers.items():
            if other_name == name:
                continue
            held = [account.tail for account in other.accounts.get(origin.own, ())]
            for shard, (tail, written) in enumerate(zip(held, origin.tails.get(origin.own, ()), strict=False)):
                if tail > written:
                    what = f"{tail} entries are durable, but {name} has written {written}"
                    yield Fault(other_name, origin.own, shard, what)
            acked = origin.acked.get(other_name, ())
            durable = other.tails.get(origin.own) or (0,) * len(acked)
            for shard, (promised, there) in enumerate(zip(acked, durable, strict=False)):
                if promised > there:
                    what = f"{promised} entries were acknowledged to {name}, but {there} are durable"
                    yield Fault(other_name, origin.own, shard, what)


def _between_chains(ledgers: Mapping[str, SiteLedger]) -> Iterator[Fault]:
    """Sites that have applied as many entries have folded the same ones."""
    first: dict[tuple[JournalId, int, int], tuple[str, int]] = {}
    for name, ledger in ledgers.items():
        for journal, accounts in ledger.accounts.items():
            for shard, account in enumerate(accounts):
                other, chain = first.setdefault((journal, shard, account.applied), (name, account.chain))
                if chain != account.chain:
                    what = f"other entries were folded up to seq {account.applied} than at {other}"
                    yield Fault(name, journal, shard, what)


@dataclass(frozen=True, slots=True)
class Balance:
    """The sums of one journal at one site, over its shards.

    Attributes:
        written: what the origin told of its tails, None if it did not: then `in_flight` and `missing` are unknown too.
        in_flight: what the origin has sent beyond what is durable here.
        missing: what it has written beyond what it has sent.
    """

    written: int | None
    durable: int
    in_flight: int | None
    missing: int | None
    applied: int
    current: int
    lost: int
    superseded: int
    dead_letters: int


def balance(site: str, journal: JournalId, ledgers: Mapping[str, SiteLedger]) -> Balance:
    """The sums of a journal at a site, for people."""
    accounts = ledgers[site].accounts[journal]
    written = in_flight = missing = None
    origin = next(((name, ledger) for name, ledger in ledgers.items() if ledger.own == journal), None)
    if origin is not None:
        tails = origin[1].tails.get(journal) or (0,) * len(accounts)
        durable = [account.durable for account in accounts]
        sent = durable if origin[0] == site else origin[1].sent.get(site) or durable
        reached = _each_max(durable, sent)
        written, in_flight = sum(tails), sum(reached) - sum(durable)
        missing = sum(_each_max(tails, reached)) - sum(reached)
    return Balance(
        written=written,
        durable=sum(account.durable for account in accounts),
        in_flight=in_flight,
        missing=missing,
        applied=sum(account.applied for account in accounts),
        current=sum(account.current for account in accounts),
        lost=sum(account.lost for account in accounts),
        superseded=sum(account.superseded for account in accounts),
        dead_letters=sum(account.dead_letters for account in accounts),
    )


def _each_max(one: Iterable[int], other: Iterable[int]) -> list[int]:
    return [max(pair) for pair in zip(one, other, strict=True)]
