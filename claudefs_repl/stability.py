"""Causal stability: the entries that every site has shown to have applied, so that nothing more is concurrent with them.

A site shows what it has applied in its probes, together with where its own journals end. What it journaled up to there may
not have seen all of that; what it journals afterwards has. So its word counts as soon as everything up to there is
applied here as well: then whatever still comes from it has seen what it showed.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from dataclasses import dataclass

from claudefs_repl.checkpoint import Cursors, covers, meet
from claudefs_repl.journal import SiteId


@dataclass(frozen=True, slots=True)
class Word:
    """What a site told of itself at one moment.

    Attributes:
        applied: its applied cursors.
        tails: where its own journal ended, and what it held of all others: of a former one others may have to get it yet.
    """

    applied: Cursors
    tails: Cursors


class StableFrontier:
    """What the peers of a site have shown. Owned by the site's housekeeper."""

    def __init__(self, peers: Iterable[SiteId]) -> None:
        self._shown: dict[SiteId, Cursors | None] = dict.fromkeys(peers)
        self._waiting: dict[SiteId, list[Word]] = {site: [] for site in self._shown}
        self._newest: dict[SiteId, Word] = {}
        self._stale: dict[SiteId, Word] = {}

    def hear(self, site: SiteId, word: Word) -> None:
        """Take a peer's word. The oldest that waits to count is kept, and the newest: the site may never stop writing."""
        if word is self._stale.get(site):
            return
        self._newest[site] = word
        waiting = self._waiting[site]
        if not waiting or waiting[-1] is not word:
            self._waiting[site] = [*waiting[:1], word]

    def restart(self) -> None:
        """Take back what was shown, and wait for words that come after this: a site has begun another journal.

        What it wrote in the former one, and some other site holds, may still come here, and has not seen what the site shows
        from now on. Whoever holds it says so in the words that come.
        """
        self._shown = dict.fromkeys(self._shown)
        self._waiting = {site: [] for site in self._shown}
        self._stale = dict(self._newest)

    def advance(self, applied: Cursors, *, cut_off: Container[SiteId] = ()) -> Cursors:
        """The causally stable cursors, given what is applied here; empty while a peer that counts has shown nothing.

        Args:
            applied: this site's own applied cursors.
            cut_off: peers that do not count, because they must begin anew.
        """
        for site, waiting in self._waiting.items():
            while waiting and covers(applied, waiting[0].tails):
                self._shown[site] = waiting.pop(0).applied
        shown = [cursors for site, cursors in self._shown.items() if site not in cut_off]
        if None in shown:
            return {}
        vectors = [applied, *(cursors for cursors in shown if cursors is not None)]
        return {journal: meet(vectors, journal, len(seqs)) for journal, seqs in applied.items()}
