"""Causal stability: a site's word counts once everything that it had journaled by then is applied here."""

from __future__ import annotations

from claudefs_repl.journal import Incarnation, JournalId, SiteId
from claudefs_repl.stability import StableFrontier, Word

A, B, C = (JournalId(SiteId(number), Incarnation(number)) for number in (1, 2, 3))


def word(applied, tail=0, journal=B):
    return Word(applied, {journal: (tail,)})


def test_nothing_is_stable_until_every_peer_has_shown_something():
    """One silent site may still write something that is concurrent with everything."""
    frontier = StableFrontier([2, 3])
    frontier.hear(2, word({A: (9,)}))
    assert frontier.advance({A: (9,)}) == {}
    frontier.hear(3, word({A: (7,)}, journal=C))
    assert frontier.advance({A: (9,)}) == {A: (7,)}


def test_a_word_waits_for_what_its_site_had_journaled():
    """An entry on its way may not have seen what its writer showed later."""
    frontier = StableFrontier([2])
    frontier.hear(2, word({A: (9,)}, tail=5))
    assert frontier.advance({A: (9,), B: (4,)}) == {}
    assert frontier.advance({A: (9,), B: (5,)}) == {A: (9,), B: (0,)}


def test_a_site_that_never_stops_writing_does_not_hold_stability_up():
    """The oldest word that waits is kept until it counts; then the newest takes its place."""
    frontier = StableFrontier([2])
    for step in range(1, 6):
        frontier.hear(2, word({A: (step,)}, tail=step))
    assert frontier.advance({A: (9,), B: (1,)}) == {A: (1,), B: (0,)}
    assert frontier.advance({A: (9,), B: (4,)}) == {A: (1,), B: (0,)}
    assert frontier.advance({A: (9,), B: (5,)}) == {A: (5,), B: (0,)}


def test_a_peer_that_is_cut_off_does_not_count():
    """It must begin anew, so nothing of what it writes now will be heard."""
    frontier = StableFrontier([2, 3])
    frontier.hear(2, word({A: (6,)}))
    assert frontier.advance({A: (9,)}, cut_off=[3]) == {A: (6,)}


def test_what_is_not_applied_here_is_not_stable():
    """Peers may be ahead of this site."""
    frontier = StableFrontier([2])
    frontier.hear(2, word({A: (9,), C: (4,)}))
    assert frontier.advance({A: (3,)}) == {A: (3,)}


def test_after_a_site_has_begun_another_journal_only_what_comes_later_counts():
    """Its former entries may be on their way from others, who tell what they hold of them in their next words."""
    again, former = JournalId(B.origin, Incarnation(22)), B
    frontier = StableFrontier([2, 3])
    old = {2: word({A: (4,)}), 3: word({A: (9,)}, journal=C)}
    for site, one in old.items():
        frontier.hear(site, one)
    applied = {A: (9,), former: (5,)}
    assert frontier.advance(applied) == {A: (4,), former: (0,)}
    frontier.restart()
    for site, one in old.items():
        frontier.hear(site, one)
    assert frontier.advance(applied) == {}, "words of before do not count"
    frontier.hear(2, word({A: (9,)}, journal=again))
    frontier.hear(3, Word({A: (9,)}, {C: (0,), former: (8,)}))
    assert frontier.advance(applied) == {}, "site 3 holds former entries that are not here yet"
    assert frontier.advance({A: (9,), former: (8,)}) == {A: (9,), former: (0,)}
