from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from claudefs_repl.uidmap import ID_MAX, NOBODY, IdRange, IdTable, Policy, check_ranges

IDS = st.one_of(st.integers(0, 40), st.integers(NOBODY - 20, NOBODY + 20), st.integers(ID_MAX - 20, ID_MAX))
RANGES = st.lists(st.builds(IdRange, IDS, IDS, st.integers(1, 12)), max_size=6)
POLICIES = st.sampled_from(Policy)


def sound(ranges: list[IdRange]) -> tuple[IdRange, ...]:
    """As many of some ranges as go together."""
    kept: list[IdRange] = []
    for one in ranges:
        if not check_ranges([*kept, one]):
            kept.append(one)
    return tuple(kept)


TABLES = st.builds(IdTable, RANGES.map(sound), POLICIES, POLICIES)


def pairs_of(ranges: list[IdRange] | tuple[IdRange, ...]) -> list[tuple[int, int]]:
    return [(one.source + i, one.target + i) for one in ranges for i in range(one.count)]


@given(RANGES)
def test_ranges_are_sound_when_no_id_is_mapped_twice_or_to_a_shared_one(ranges):
    """Ranges are refused exactly if two map one id, two show as one, or one shows as root, nobody or beyond."""
    pairs = pairs_of(ranges)
    sources, targets = [source for source, _ in pairs], [target for _, target in pairs]
    is_sound = (
        len(set(sources)) == len(sources)
        and len(set(targets)) == len(targets)
        and not {0, NOBODY} & set(targets)
        and max([*sources, *targets], default=0) <= ID_MAX
    )
    assert (not check_ranges(ranges)) == is_sound


@given(TABLES, IDS)
def test_map_follows_the_ranges_and_then_the_policies(table, written):
    """An id in a range shows shifted; any other by the policy for root or for the rest."""
    pairs = dict(pairs_of(table.ranges))
    shown = table.map(written)
    if written in pairs:
        assert shown == pairs[written]
    elif table.policy_for(written) is Policy.PASSTHROUGH:
        assert shown == (NOBODY if written in pairs.values() else written)
    else:
        assert shown == {Policy.NOBODY: NOBODY, Policy.REFUSE: None}[table.policy_for(written)]


@given(TABLES, IDS, IDS)
def test_no_two_ids_show_as_one_but_nobody(table, one, other):
    """The map is injective, whatever passes through beside the ranges."""
    if one != other and table.map(one) not in (None, NOBODY):
        assert table.map(one) != table.map(other)


@given(TABLES, IDS)
def test_unmap_is_the_inverse_of_map(table, number):
    """What shows as somebody's id leads back to the id that was written, and nothing else leads anywhere."""
    shown = table.map(number)
    if shown not in (None, NOBODY):
        assert table.unmap(shown) == number
    written = table.unmap(number)
    if written is None:
        assert number == NOBODY or table.map(number) != number
    else:
        assert table.map(written) == number


def test_root_has_a_policy_of_its_own_unless_a_range_names_it():
    """Id 0 follows `root` and not `unmapped`; a range from 0 comes before both."""
    assert IdTable((), Policy.PASSTHROUGH, Policy.NOBODY).map(0) == NOBODY
    assert IdTable((), Policy.REFUSE, Policy.PASSTHROUGH).map(0) == 0
    assert IdTable((), Policy.NOBODY, Policy.REFUSE).map(0) is None
    shifted = IdTable((IdRange(0, 100_000, 10),), Policy.REFUSE, Policy.REFUSE)
    assert (shifted.map(0), shifted.map(9), shifted.map(10)) == (100_000, 100_009, None)


def test_an_id_that_another_shows_as_does_not_pass_through():
    """With 1000 shown as 2000, the origin's own 2000 shows as nobody: two users never become one."""
    table = IdTable((IdRange(1000, 2000, 1),))
    assert (table.map(1000), table.map(2000), table.map(3000)) == (2000, NOBODY, 3000)
    assert (table.unmap(2000), table.unmap(1000), table.unmap(NOBODY)) == (1000, None, None)


def test_what_is_wrong_with_ranges_is_told_with_the_ranges():
    """Each problem shows the ranges that it is about, as the file has them, and what they do."""
    (problem,) = check_ranges([IdRange(10, 100, 5), IdRange(12, 200, 5)])
    assert problem == (
        "{ from = 10, to = 100, count = 5 } and { from = 12, to = 200, count = 5 } map an id twice: "
        "their from parts overlap"
    )
    (problem,) = check_ranges([IdRange(10, 100, 5), IdRange(20, 104, 5)])
    assert "their to parts overlap" in problem
