"""Which incarnation of each site is its current one, as its own handshakes told, and which journals are former."""

from __future__ import annotations

from collections.abc import Mapping

from claudefs_repl.journal import Incarnation, JournalId, SiteId


class Incarnations:
    """What a site knows of its own and its peers' current incarnations. Owned by the site; its links teach it.

    Attributes:
        current: the incarnation of each origin that this site has ever shaken hands with, and its own; replaced as a whole
            when it changes.
    """

    def __init__(self, own: JournalId, known: Mapping[SiteId, Incarnation]) -> None:
        self.current: Mapping[SiteId, Incarnation] = {**known, own.origin: own.incarnation}

    def is_former(self, journal: JournalId) -> bool:
        """Whether its origin is known to have begun another journal since: then any peer may pass it on."""
        current = self.current.get(journal.origin)
        return current is not None and current != journal.incarnation

    def learn(self, origin: SiteId, incarnation: Incarnation) -> None:
        """Take what a site's handshake has proved of itself."""
        if self.current.get(origin) != incarnation:
            self.current = {**self.current, origin: incarnation}
