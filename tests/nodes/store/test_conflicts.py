"""The conflict list is exact, and a function of the set of entries folded: against a model that looks at every pair."""

from __future__ import annotations

import random

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nodes.store import local
from nodes.store.conflict_view import count_open, lost_ranges, page_conflicts
from nodes.store.conflicts import Facet
from tests.nodes.store.conflict_model import ConflictModel, Found
from tests.nodes.store.history import SHARDS, act, deliver_at_random, facts_of, local_actions, tree_of

BRISK = settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
RIVALRY = (0, 3, 5, 6, 7, 8, 8, 8, 9, 9, 9, 10, 10, 10, 11, 11, 11, 11, 12, 12, 13, 13, 14, 14, 16)
"""Actions by what makes conflicts of every kind: moves and changes of what is there, seldom something new."""
KINDS = {
    "content", "attribute", "xattr", "name", "move", "move_delete", "delete_modify", "rmdir_create", "cycle",
}  # fmt: skip


def found_by(site) -> list[Found]:
    found = []
    for conflict in page_conflicts(site.connection, None, 10_000):
        ranges: list[tuple] = []
        for lost in lost_ranges(site.connection, bytes.fromhex(conflict.id)):
            if ranges and ranges[-1][1:] == (lost.low, lost.winner):
                ranges[-1] = ranges[-1][0], lost.high, lost.winner
            else:
                ranges.append((lost.low, lost.high, lost.winner))
        found.append(Found(conflict.kind, conflict.object, conflict.loser, conflict.winner, tuple(ranges)))
    return sorted(found)


def facts_of_all(sites) -> list:
    return [fact for site in sites for blocks in site.blocks.values() for fact in facts_of(site.journal, blocks)]


def deliver_everything(sites, chance: random.Random) -> None:
    for site in sites:
        deliver_at_random(site, {other.journal: other.blocks for other in sites if other.blocks}, chance)


@BRISK
@given(actions=local_actions, seed=st.integers(0, 1 << 32))
def test_every_site_lists_what_the_rules_tell(memory_site, actions, seed):
    """Whatever three sites do and hear in between, in whatever order it reaches them, they list the same conflicts."""
    sites = [memory_site(number) for number in (1, 2, 3)]
    for action in actions:
        act(sites, action)
    everywhere = [*sites, memory_site(99)]
    deliver_everything(everywhere, random.Random(seed))
    expected = sorted(ConflictModel(facts_of_all(sites)).found)
    ids = [[conflict.id for conflict in page_conflicts(site.connection, None, 10_000)] for site in everywhere]
    assert [found_by(site) for site in everywhere] == [expected] * 4
    assert ids[1:] == ids[:-1]
    assert all(sum(count_open(site.connection).values()) == len(expected) for site in everywhere)
    for site in everywhere:
        site.close()


def run_rivalry(memory_site, seed: int, *, steps: int) -> list[Found]:
    """A tree that all know, then changes of it at three sites that hear little of each other, and forget what is stable."""
    chance = random.Random(seed)
    sites = [memory_site(number) for number in (1, 2, 3)]
    for name in (b"a", b"b", b"c"):
        (made,) = sites[0].do(local.MakeDir(1, name, 0o700, 0, 0, 0))
        sites[0].do(local.MakeDir(made.inode, b"a", 0o700, 0, 0, 0))
        sites[0].do(local.CreateFile(made.inode, b"b", 0o600, 0, 0, 0), local.WriteData(-1, 0, b"0123456789"))
    for site in sites[1:]:
        site.pull(sites[0])
    for _ in range(steps):
        if chance.random() < 0.2:
            forget(chance.choice(sites), sites, chance)
        else:
            what, *numbers = chance.choice(RIVALRY), *(chance.randrange(1 << 16) for _ in range(3))
            act(sites, (chance.randrange(3), what, *numbers))
    deliver_everything(sites, chance)
    model = ConflictModel(facts_of_all(sites))
    expected = sorted(model.found)
    for _ in range(2):
        for site in sites:
            assert found_by(site) == expected
            assert tree_of(site.view) == model.tree.tree()
            forget(site, sites, chance, is_all=True)
    for site in sites:
        check_all_forgotten(site)
        site.close()
    return expected


def forget(site, sites, chance: random.Random, *, is_all: bool = False) -> None:
    others = [other for other in sites if other is not site]
    site.hear_and_forget(others, heard=[is_all or chance.random() < 0.7 for _ in others])


def check_all_forgotten(site) -> None:
    """When everything is stable, no more is left than what open conflicts and removed directories that show need."""
    counts = {
        table: site.connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in ("tomb", "seen_run")
    }
    assert counts == {"tomb": 0, "seen_run": 0}
    facets = {facet for (facet,) in site.connection.execute("SELECT DISTINCT facet FROM recent")}
    assert facets <= {Facet.REMOVED, Facet.EMPTY}
    moves = site.connection.execute("SELECT count(*) FROM move WHERE is_rename OR skipped").fetchone()[0]
    assert moves == 0


@BRISK
@given(seed=st.integers(0, 1 << 32), steps=st.integers(5, 40))
def test_rivals_agree_with_the_rules_and_forget_what_is_stable(memory_site, seed, steps):
    """Conflicts of every kind are exact although each site forgets, at moments of its own, what is causally stable."""
    run_rivalry(memory_site, seed, steps=steps)


def test_the_histories_have_conflicts_of_every_kind(memory_site):
    """The property above meets each kind: it cannot pass because nothing happens."""
    found = {conflict.kind for seed in range(40) for conflict in run_rivalry(memory_site, seed, steps=40)}
    assert found == KINDS


def lists_by_order(memory_site, *deliveries) -> list[list[Found]]:
    """The conflict lists of fresh sites that get the same blocks of (site, shard), each in an order of its own."""
    found = []
    for order in deliveries:
        fresh = memory_site(99)
        for site, shard in order:
            fresh.take(site.journal, site.blocks[shard])
        found.append(found_by(fresh))
        fresh.close()
    return found


def test_a_claim_that_a_later_one_of_its_run_covers_may_come_after_it(memory_site, pair):
    """One site gives a name to two files, one after the other; whichever shard comes first, only the last claim loses."""
    alpha, beta = pair
    files = {}
    while len(files) < SHARDS:
        name = b"f%d" % alpha.wall_us
        (made,) = alpha.do(local.CreateFile(1, name, 0o600, 0, 0, 0))
        files[made.shard] = name
        alpha.wall_us += 1
    beta.pull(alpha)
    before = {shard: len(alpha.blocks[shard]) for shard in range(SHARDS)}
    beta.wall_us = alpha.wall_us + 1
    beta.do(*[local.Move(1, files[shard], 1, b"a", replace=True) for shard in range(SHARDS)])
    alpha.wall_us += 10
    alpha.do(local.CreateFile(1, b"a", 0o600, 0, 0, 0))
    assert any(len(alpha.blocks[shard]) > before[shard] for shard in range(SHARDS))
    alphas, betas = [(alpha, 0), (alpha, 1)], [(beta, 0), (beta, 1)]
    one, *others = lists_by_order(
        memory_site, [*alphas, *betas], [*alphas, *reversed(betas)], [*reversed(alphas), *reversed(betas)]
    )
    assert [conflict.kind for conflict in one] == ["name"]
    assert others == [one, one]


def test_bytes_that_their_own_run_cut_off_still_win_against_a_hole(memory_site, pair):
    """A write, and a truncate that takes it away, are one request; a concurrent truncate before both has lost to the write.

    It is no rival of the other truncate, so the write has to be remembered where it came first.
    """
    alpha, beta = pair
    (made,) = alpha.do(local.CreateFile(1, b"f", 0o600, 0, 0, 0))
    beta.pull(alpha)
    alpha.wall_us += 1
    alpha.do(local.TruncateFile(made.inode, 15))
    beta.wall_us = alpha.wall_us + 1
    beta.do(local.WriteData(made.inode, 14, b"x" * 10), local.TruncateFile(made.inode, 7))
    beta.pull(alpha)
    alpha.pull(beta)
    expected = sorted(ConflictModel(facts_of_all(pair)).found)
    assert [conflict.kind for conflict in expected] == ["content"]
    assert [found_by(site) for site in pair] == [expected, expected]


def test_a_claim_that_a_later_one_of_its_run_covers_still_wins_against_another(pair):
    """A name is given to one file, then to a second one that somebody else gave it too: that claim has lost to the first."""
    alpha, beta = pair
    first, second = alpha.do(
        local.CreateFile(1, b"first", 0o600, 0, 0, 0), local.CreateFile(1, b"second", 0o600, 0, 0, 0)
    )
    beta.pull(alpha)
    alpha.wall_us += 1
    alpha.do(local.MakeLink(second.inode, 1, b"a"))
    beta.wall_us = alpha.wall_us + 1
    beta.do(local.MakeLink(first.inode, 1, b"a"), local.Remove(1, b"a"), local.MakeLink(second.inode, 1, b"a"))
    beta.pull(alpha)
    alpha.pull(beta)
    expected = sorted(ConflictModel(facts_of_all(pair)).found)
    assert [conflict.kind for conflict in expected] == ["name"]
    assert [found_by(site) for site in pair] == [expected, expected]


def test_changes_of_several_requests_are_one_run_while_nothing_else_is_heard(pair):
    """Of twenty writes that had heard the same of other sites, only the last is told as the loser."""
    alpha, beta = pair
    (made,) = alpha.do(local.CreateFile(1, b"f", 0o600, 0, 0, 0))
    beta.pull(alpha)
    for number in range(20):
        alpha.do(local.WriteData(made.inode, 0, b"a%d" % (number % 10)))
    beta.wall_us = alpha.wall_us + 1000
    for number in range(20):
        beta.do(local.WriteData(made.inode, 0, b"b%d" % (number % 10)))
    alpha.pull(beta)
    beta.pull(alpha)
    assert len(found_by(alpha)) == 1
    assert found_by(beta) == found_by(alpha) == sorted(ConflictModel(facts_of_all(pair)).found)


def test_a_rename_that_closed_a_cycle_stays_listed_when_the_way_that_it_closed_is_forgotten(pair):
    """What a skipped rename lost to is told of it once, and not asked again of moves that one site has forgotten."""
    one, two = pair
    a, b = (one.do(local.MakeDir(1, name, 0o755, 0, 0, 0))[0].inode for name in (b"a", b"b"))
    two.pull(one)
    one.do(local.Move(1, b"a", b, b"a"))
    two.wall_us += 1000
    two.do(local.Move(1, b"b", a, b"b"))
    one.pull(two)
    two.pull(one)
    (told,) = found_by(two)
    assert told.kind == "cycle"
    one.wall_us += 2000
    one.do(local.Move(b, b"a", 1, b"a"))
    two.pull(one)
    two.do(local.Move(1, b"b", 1, b"c"))
    two.hear_and_forget([one], heard=[True])
    two.do(local.Move(1, b"c", 1, b"d"))
    one.pull(two)
    assert found_by(one) == found_by(two) == [told]
