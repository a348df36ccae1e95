"""Cursor vectors against a model in which a cursor is the set of entries that have passed."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from claudefs_repl.checkpoint import (
    JOURNALS_MAX,
    covers,
    cursor_of,
    decode_cursors,
    distance,
    encode_cursors,
    encoded_cursors_length,
    equal,
    join,
    meet,
)
from claudefs_repl.journal import Incarnation, JournalId, SiteId

SHARDS = 3
A, B, C = (JournalId(SiteId(site), Incarnation(site * 11)) for site in (1, 2, 3))

seqs = st.tuples(*[st.integers(0, 4)] * SHARDS)
vectors = st.dictionaries(st.sampled_from([A, B, C]), seqs)
wide_seqs = st.tuples(*[st.integers(0, (1 << 63) - 1)] * SHARDS)
wide_journals = st.builds(JournalId, st.integers(1, 2047), st.integers(0, (1 << 64) - 1))
wide_vectors = st.dictionaries(wide_journals, wide_seqs, max_size=6)


def entries_of(cursors):
    return {
        (journal, shard, seq)
        for journal, tails in cursors.items()
        for shard, tail in enumerate(tails)
        for seq in range(1, tail + 1)
    }


@given(vectors, vectors)
def test_covers_is_containment(upper, lower):
    """One vector covers another when everything that passed the one has passed the other."""
    assert covers(upper, lower) == (entries_of(upper) >= entries_of(lower))


@given(vectors, vectors)
def test_equal_is_equality_of_entries(one, other):
    """Vectors are equal when the same entries passed, whether zeros are written or left out."""
    assert equal(one, other) == (entries_of(one) == entries_of(other))


@given(st.lists(vectors, min_size=1, max_size=4))
def test_meet_is_what_passed_all(several):
    """The meet is what has passed every one of the vectors."""
    common = set.intersection(*map(entries_of, several))
    for journal in (A, B, C):
        met = meet(several, journal, SHARDS)
        assert entries_of({journal: met}) == {entry for entry in common if entry[0] == journal}


def test_meet_of_nothing_is_refused():
    """The minimum over no vectors would be everything: that is an error, not a number."""
    with pytest.raises(ValueError, match="unbounded"):
        meet([], A, SHARDS)


@given(seqs, seqs)
def test_join_only_moves_forward(one, other):
    """The join has what passed either."""
    joined = join(one, other)
    assert entries_of({A: joined}) == entries_of({A: one}) | entries_of({A: other})


@given(seqs, seqs)
def test_distance_counts_entries(ahead, behind):
    """The distance is the number of entries that one has and the other lacks, summed over the shards."""
    assert distance(ahead, behind) == len(entries_of({A: ahead}) - entries_of({A: behind}))


def test_absent_journal_is_zeros():
    """A journal that a vector does not name has passed nothing."""
    assert cursor_of({}, A, SHARDS) == (0, 0, 0)
    assert cursor_of({A: (1, 2, 3)}, A, SHARDS) == (1, 2, 3)


def test_other_shard_counts_are_an_error():
    """Vectors of clusters with other shard counts are never compared as if they fitted."""
    with pytest.raises(ValueError):
        covers({A: (1, 2)}, {A: (1, 2, 3)})
    with pytest.raises(ValueError):
        distance((1, 2), (1, 2, 3))


def test_encoding_golden_vector():
    """The layout, which logs and peers keep, never changes."""
    encoded = encode_cursors({B: (0, 0, 7), A: (1, 2, 3), C: (0, 0, 0)}, SHARDS)
    assert encoded.hex() == (
        "0200" + "0300"
        "0100000000000000" + "0b00000000000000" + "0100000000000000" + "0200000000000000" + "0300000000000000"
        "0200000000000000" + "1600000000000000" + "0000000000000000" + "0000000000000000" + "0700000000000000"
    )  # fmt: skip


@given(wide_vectors)
def test_encoding_round_trips(cursors):
    """What is decoded is what was encoded, without its all-zero journals."""
    decoded = decode_cursors(encode_cursors(cursors, SHARDS))
    assert decoded == {journal: tails for journal, tails in cursors.items() if any(tails)}
    assert list(decoded) == sorted(decoded)


@given(wide_vectors)
def test_equal_vectors_have_equal_bytes(cursors):
    """The bytes do not depend on the order in which journals were added, nor on zeros that are written out."""
    turned = dict(reversed(cursors.items())) | {C: cursors.get(C, (0, 0, 0))}
    assert encode_cursors(turned, SHARDS) == encode_cursors(cursors, SHARDS)


@given(wide_vectors, st.binary(max_size=20))
def test_length_is_told_by_the_head(cursors, rest):
    """The length of a vector is known before it is read, wherever it begins."""
    encoded = encode_cursors(cursors, SHARDS)
    assert encoded_cursors_length(rest + encoded + rest, len(rest)) == len(encoded)


@pytest.mark.parametrize("length", range(4))
def test_cut_off_head_is_refused(length):
    """A head that is cut off tells no length."""
    with pytest.raises(ValueError, match="cut off"):
        encoded_cursors_length(bytes(length), 0)
    with pytest.raises(ValueError):
        decode_cursors(bytes(length))


@given(wide_vectors.filter(bool), st.data())
def test_truncated_or_longer_vector_is_refused(cursors, data):
    """Every prefix of a vector, and every vector with bytes behind it, is a ValueError."""
    encoded = encode_cursors(cursors, SHARDS)
    with pytest.raises(ValueError):
        decode_cursors(encoded[: data.draw(st.integers(0, len(encoded) - 1))])
    with pytest.raises(ValueError):
        decode_cursors(encoded + data.draw(st.binary(min_size=1, max_size=30)))


@given(wide_vectors, st.data())
def test_only_canonical_bytes_are_accepted(cursors, data):
    """A mutated vector is a ValueError, or the very bytes that encoding its value gives."""
    encoded = bytearray(encode_cursors(cursors, SHARDS))
    at = data.draw(st.integers(0, len(encoded) - 1))
    encoded[at] ^= data.draw(st.integers(1, 255))
    try:
        decoded = decode_cursors(bytes(encoded))
    except ValueError:
        return
    shards = struct.unpack_from("<H", encoded, 2)[0]
    assert encode_cursors(decoded, shards) == encoded


def journal_bytes(origin, incarnation, *tails):
    return struct.pack(f"<QQ{len(tails)}Q", origin, incarnation, *tails)


@pytest.mark.parametrize(
    "encoded",
    [
        pytest.param(struct.pack("<HH", 1, 0) + journal_bytes(1, 1), id="a journal without shards"),
        pytest.param(struct.pack("<HH", 1, 1) + journal_bytes(1, 1, 0), id="all zeros"),
        pytest.param(struct.pack("<HH", 1, 1) + journal_bytes(0, 1, 1), id="site 0"),
        pytest.param(struct.pack("<HH", 1, 1) + journal_bytes(2048, 1, 1), id="site 2048"),
        pytest.param(struct.pack("<HH", 1, 1) + journal_bytes(1, 1, 1 << 63), id="seq 2^63"),
        pytest.param(struct.pack("<HH", 2, 1) + journal_bytes(1, 1, 1) * 2, id="twice"),
        pytest.param(struct.pack("<HH", 2, 1) + journal_bytes(2, 1, 1) + journal_bytes(1, 1, 1), id="out of order"),
        pytest.param(struct.pack("<HH", JOURNALS_MAX + 1, 1), id="too many journals"),
        pytest.param(struct.pack("<HH", 65535, 65535), id="huge numbers, no bytes"),
    ],
)
def test_what_is_never_written_is_refused(encoded):
    """Vectors that no encoder writes are refused, so that two readers cannot take them for different things."""
    with pytest.raises(ValueError):
        decode_cursors(encoded)
