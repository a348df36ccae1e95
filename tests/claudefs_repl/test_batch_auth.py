"""Batch tags against RFC 4231, a from-scratch HMAC, and forgers."""

from __future__ import annotations

import copy
import hashlib
import hmac
import pickle
import struct
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from claudefs_repl.batch_auth import VALID, AuthResult, BatchAuthenticator, BatchAuthKey, BatchTag
from claudefs_repl.block import Block, NewRow
from claudefs_repl.checkpoint import encode_cursors
from claudefs_repl.journal import Inode, JournalEntry, Op, Shard, SiteId

ALPHA, BETA = SiteId(1), SiteId(2)
SECRET = bytes(range(32))


# The oracle: the seed's own SHA-256 and HMAC, from nothing but integers.
def _primes(count):
    found = []
    candidate = 2
    while len(found) < count:
        if all(candidate % prime for prime in found):
            found.append(candidate)
        candidate += 1
    return found


def _root_bits(number, power):
    # the first 32 bits of the fraction of a square or cube root, by integer search
    low, high = 0, number << 33
    while low + 1 < high:
        middle = (low + high) // 2
        if middle**power <= number << (32 * power):
            low = middle
        else:
            high = middle
    return low & 0xFFFF_FFFF


_K = [_root_bits(prime, 3) for prime in _primes(64)]
_H = [_root_bits(prime, 2) for prime in _primes(8)]


def _rotate(word, by):
    return (word >> by | word << (32 - by)) & 0xFFFF_FFFF


def sha256_from_scratch(data):
    state = list(_H)
    message = data + b"\x80" + bytes((55 - len(data)) % 64) + struct.pack(">Q", 8 * len(data))
    for at in range(0, len(message), 64):
        w = list(struct.unpack_from(">16I", message, at))
        for i in range(16, 64):
            s0 = _rotate(w[i - 15], 7) ^ _rotate(w[i - 15], 18) ^ w[i - 15] >> 3
            s1 = _rotate(w[i - 2], 17) ^ _rotate(w[i - 2], 19) ^ w[i - 2] >> 10
            w.append((w[i - 16] + s0 + w[i - 7] + s1) & 0xFFFF_FFFF)
        a, b, c, d, e, f, g, h = state
        for i in range(64):
            s1 = _rotate(e, 6) ^ _rotate(e, 11) ^ _rotate(e, 25)
            first = (h + s1 + (e & f ^ ~e & g) + _K[i] + w[i]) & 0xFFFF_FFFF
            s0 = _rotate(a, 2) ^ _rotate(a, 13) ^ _rotate(a, 22)
            second = (s0 + (a & b ^ a & c ^ b & c)) & 0xFFFF_FFFF
            a, b, c, d, e, f, g, h = (first + second) & 0xFFFF_FFFF, a, b, c, (d + first) & 0xFFFF_FFFF, e, f, g
        state = [(old + new) & 0xFFFF_FFFF for old, new in zip(state, (a, b, c, d, e, f, g, h), strict=True)]
    return struct.pack(">8I", *state)


def hmac_from_scratch(key, message):
    padded = (sha256_from_scratch(key) if len(key) > 64 else key).ljust(64, b"\0")
    inner = sha256_from_scratch(bytes(byte ^ 0x36 for byte in padded) + message)
    return sha256_from_scratch(bytes(byte ^ 0x5C for byte in padded) + inner)


RFC_4231 = [
    (b"\x0b" * 20, b"Hi There", "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7"),
    (b"Jefe", b"what do ya want for nothing?", "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"),
    (b"\xaa" * 20, b"\xdd" * 50, "773ea91e36800e46854db8ebd09181a72959098b3ef8c122d9635514ced565fe"),
    (bytes(range(1, 26)), b"\xcd" * 50, "82558a389a443c0ea4cc819899f2083a85f0faa3e578f8077a2e3ff46729665b"),
    (
        b"\xaa" * 131,
        b"Test Using Larger Than Block-Size Key - Hash Key First",
        "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54",
    ),
    (
        b"\xaa" * 131,
        b"This is a test using a larger than block-size key and a larger than block-size data. The key needs to be "
        b"hashed before being used by the HMAC algorithm.",
        "9b09ffa71b942fcb27635fbcd5b0e944bfdc63644f0713938a7f51535c3a35e2",
    ),
]


def make_entry(seq=1, inode=55, payload=b"payload", **changes):
    fields = {"shard_id": Shard(0), "site_id": ALPHA, "timestamp_us": 1_000 + seq, "op": Op.WRITE} | changes
    return JournalEntry.make(seq=seq, inode=Inode(inode), payload=payload, **fields)


def make_authenticator(site=ALPHA, secret=SECRET):
    return BatchAuthenticator(BatchAuthKey.from_bytes(secret), site)


@pytest.fixture
def signer():
    return make_authenticator(ALPHA)


@pytest.fixture
def verifier():
    return make_authenticator(BETA)


@pytest.mark.parametrize(("key", "message", "expected"), RFC_4231)
def test_oracle_is_hmac_sha256(key, message, expected):
    """The from-scratch HMAC and the library's give what RFC 4231 prints."""
    assert hmac_from_scratch(key, message).hex() == expected
    assert hmac.digest(key, message, "sha256").hex() == expected


@pytest.mark.parametrize("length", [0, 1, 55, 56, 57, 63, 64, 65, 119, 120, 1000])
def test_oracle_is_sha256_at_block_borders(length):
    """The from-scratch SHA-256 pads as the standard asks at every border of its blocks."""
    data = bytes(i % 251 for i in range(length))
    assert sha256_from_scratch(data) == hashlib.sha256(data).digest()


def test_tag_has_the_seeds_message(signer):
    """The tag is an HMAC over source, batch_seq, and each entry's seq, inode, payload, all little endian."""
    entries = [make_entry(3, 7, b"ab"), make_entry(4, 8, b"")]
    message = struct.pack("<QQ", 1, 9) + struct.pack("<QQ", 3, 7) + b"ab" + struct.pack("<QQ", 4, 8)
    assert signer.sign_batch(ALPHA, 9, entries).bytes == hmac_from_scratch(SECRET, message)


def test_tag_golden_vector(signer):
    """The tag of a known batch never changes: sites of different versions must agree on it."""
    tag = signer.sign_batch(ALPHA, 1, [make_entry(1, 55, b"payload")])
    assert tag.bytes.hex() == "6e01ae4cc1db795b7498a7cfec0dd1df1e83af98eb693beea2330dd338635ff9"


entries_lists = st.lists(st.tuples(st.integers(1, (1 << 63) - 1), st.binary(max_size=80)), max_size=6)


@given(
    first=st.integers(1, 1 << 40), rows=entries_lists, source=st.integers(1, 2047), batch_seq=st.integers(1, 1 << 62)
)
def test_tag_agrees_with_oracle(first, rows, source, batch_seq):
    """For every batch the tag is what the from-scratch HMAC gives over the message."""
    entries = [make_entry(first + i, inode, payload) for i, (inode, payload) in enumerate(rows)]
    message = struct.pack("<QQ", source, batch_seq)
    message += b"".join(struct.pack("<QQ", entry.seq, entry.inode) + entry.payload for entry in entries)
    assert make_authenticator().sign_batch(SiteId(source), batch_seq, entries).bytes == hmac_from_scratch(
        SECRET, message
    )


@given(rows=entries_lists.filter(bool))
def test_block_form_is_the_same_tag(rows):
    """The tag over a block's body is the tag over its entries."""
    new_rows = [NewRow(1_000 + i, Op.WRITE, Inode(inode), payload, 0) for i, (inode, payload) in enumerate(rows)]
    block = Block.build(shard=Shard(2), first_seq=40, rows=new_rows, seen=encode_cursors({}, 4))
    signer, verifier = make_authenticator(ALPHA), make_authenticator(BETA)
    tag = signer.sign_body(ALPHA, 5, block.body)
    assert tag == signer.sign_batch(ALPHA, 5, list(block.entries(ALPHA)))
    assert verifier.verify_body(tag, ALPHA, 5, block.body) is VALID


def test_signed_batch_is_valid_elsewhere(signer, verifier):
    """Who has the same key accepts the tag."""
    entries = [make_entry(1), make_entry(2)]
    assert verifier.verify_batch(signer.sign_batch(ALPHA, 1, entries), ALPHA, 1, entries) == VALID


def test_empty_batch_can_be_signed(signer, verifier):
    """A batch without entries has a tag like any other."""
    tag = signer.sign_batch(ALPHA, 1, [])
    assert verifier.verify_batch(tag, ALPHA, 1, []).valid
    assert not verifier.verify_batch(tag, ALPHA, 1, [make_entry()]).valid


def test_signing_is_deterministic(signer):
    """The same batch has the same tag each time."""
    assert signer.sign_batch(ALPHA, 1, [make_entry()]) == signer.sign_batch(ALPHA, 1, [make_entry()])


def test_large_batch(signer, verifier):
    """Entries by the thousand are covered, the last as well as the first."""
    entries = [make_entry(seq, payload=bytes(200)) for seq in range(1, 3000)]
    tag = signer.sign_batch(ALPHA, 1, entries)
    assert verifier.verify_batch(tag, ALPHA, 1, entries).valid
    entries[-1] = replace(entries[-1], payload=bytes(199) + b"\1")
    assert not verifier.verify_batch(tag, ALPHA, 1, entries).valid


BATCH = [make_entry(1, 10, b"one"), make_entry(2, 11, b"two"), make_entry(3, 12, b"three")]


@pytest.mark.parametrize(
    ("source", "batch_seq", "entries"),
    [
        pytest.param(BETA, 7, BATCH, id="another source"),
        pytest.param(ALPHA, 8, BATCH, id="another batch_seq"),
        pytest.param(ALPHA, 7, BATCH[:2], id="an entry dropped"),
        pytest.param(ALPHA, 7, [*BATCH, make_entry(4)], id="an entry added"),
        pytest.param(ALPHA, 7, [BATCH[1], BATCH[0], BATCH[2]], id="entries reordered"),
        pytest.param(ALPHA, 7, [BATCH[0], *BATCH], id="an entry doubled"),
        pytest.param(ALPHA, 7, [replace(BATCH[0], seq=9), *BATCH[1:]], id="another seq"),
        pytest.param(ALPHA, 7, [replace(BATCH[0], inode=Inode(9)), *BATCH[1:]], id="another inode"),
        pytest.param(ALPHA, 7, [replace(BATCH[0], payload=b"onf"), *BATCH[1:]], id="another payload"),
        pytest.param(ALPHA, 7, [replace(BATCH[0], payload=b""), *BATCH[1:]], id="a payload emptied"),
        pytest.param(ALPHA, 7, [], id="all entries dropped"),
    ],
)
def test_altered_batch_is_invalid(signer, verifier, source, batch_seq, entries):
    """A tag is worth nothing for any other batch, and the refusal says so."""
    tag = signer.sign_batch(ALPHA, 7, BATCH)
    result = verifier.verify_batch(tag, source, batch_seq, entries)
    assert not result.valid
    assert "tag mismatch" in result.reason


@pytest.mark.parametrize("bit", range(256))
def test_each_bit_of_the_tag_counts(signer, verifier, bit):
    """A tag with any one bit changed is refused."""
    tag = int.from_bytes(signer.sign_batch(ALPHA, 1, BATCH).bytes, "big") ^ 1 << bit
    assert not verifier.verify_batch(BatchTag(tag.to_bytes(32, "big")), ALPHA, 1, BATCH).valid


@pytest.mark.parametrize("forged", [bytes(32), b"\xff" * 32, hashlib.sha256(b"").digest()])
def test_made_up_tag_is_invalid(verifier, forged):
    """A tag made without the key is refused."""
    assert not verifier.verify_batch(BatchTag(forged), ALPHA, 1, BATCH).valid


def test_other_key_is_invalid(signer):
    """Another key's tag is refused, and the reason shows neither key nor tag."""
    other = make_authenticator(BETA, b"\x77" * 32)
    tag = signer.sign_batch(ALPHA, 1, BATCH)
    result = other.verify_batch(tag, ALPHA, 1, BATCH)
    assert not result.valid
    assert "site 2" in result.reason
    for secret in (SECRET.hex(), "77777777", tag.bytes.hex()[:8]):
        assert secret not in result.reason


def test_body_with_one_bit_changed_is_invalid(signer, verifier):
    """The block form refuses an altered body."""
    body = bytearray(b"".join(struct.pack("<QQ", entry.seq, entry.inode) + entry.payload for entry in BATCH))
    tag = signer.sign_body(ALPHA, 1, bytes(body))
    for at in range(len(body)):
        body[at] ^= 1
        assert not verifier.verify_body(tag, ALPHA, 1, memoryview(body)).valid
        body[at] ^= 1
    assert verifier.verify_body(tag, ALPHA, 1, memoryview(body)).valid


def test_known_weakness_no_lengths(signer):
    """The tag alone lets an entry be hidden in the payload before it, so the frame must be authenticated as a whole."""
    honest = [make_entry(1, 10, b"a"), make_entry(2, 11, b"b")]
    swallowed = [make_entry(1, 10, b"a" + struct.pack("<QQ", 2, 11) + b"b")]
    assert signer.sign_batch(ALPHA, 1, honest) == signer.sign_batch(ALPHA, 1, swallowed)


def test_known_weakness_boundary_can_move(signer):
    """The tag alone lets bytes move over the border of two entries, so the frame must be authenticated as a whole."""
    honest = [make_entry(1, 10, b""), make_entry(2, 11, bytes(16))]
    moved = [make_entry(1, 10, struct.pack("<QQ", 2, 11)), make_entry(0, 0, b"")]
    assert signer.sign_batch(ALPHA, 1, honest) == signer.sign_batch(ALPHA, 1, moved)


@pytest.mark.parametrize(
    "changed", [{"op": Op.UNLINK}, {"timestamp_us": 1}, {"shard_id": Shard(3)}, {"site_id": BETA}, {"crc32": 0}]
)
def test_known_weakness_uncovered_fields(signer, changed):
    """The tag alone does not cover op, timestamp, shard, origin and checksum: the frame's MAC does."""
    assert signer.sign_batch(ALPHA, 1, BATCH) == signer.sign_batch(ALPHA, 1, [replace(BATCH[0], **changed), *BATCH[1:]])


@pytest.mark.parametrize("length", [0, 31, 33, 64])
def test_key_has_32_bytes(length):
    """A key of another length is refused, not padded or hashed."""
    with pytest.raises(ValueError, match="32 bytes"):
        BatchAuthKey.from_bytes(bytes(length))


@pytest.mark.parametrize("tag", [b"", bytes(31), bytes(33), bytearray(32), None])
def test_tag_has_32_bytes(tag):
    """A tag is 32 immutable bytes or it is not a tag."""
    with pytest.raises(ValueError, match="32 bytes"):
        BatchTag(tag)


def test_generated_key_is_the_entropy():
    """A fresh key is exactly 32 bytes of the source that is handed in."""
    asked = []
    key = BatchAuthKey.generate(lambda count: asked.append(count) or b"\x05" * count)
    assert asked == [32]
    assert key.as_bytes() == b"\x05" * 32


def test_key_round_trip():
    """The bytes that go in come out."""
    assert BatchAuthKey.from_bytes(SECRET).as_bytes() == SECRET


def test_key_is_a_copy():
    """A key does not change with the buffer that it was made from."""
    buffer = bytearray(SECRET)
    key = BatchAuthKey.from_bytes(buffer)
    buffer[0] ^= 1
    assert key.as_bytes() == SECRET


def test_closed_key_is_wiped_and_useless():
    """Closing overwrites the secret, may be repeated, and nothing can be signed afterwards."""
    key = BatchAuthKey.from_bytes(SECRET)
    held = key._secret
    authenticator = BatchAuthenticator(key, ALPHA)
    key.close()
    key.close()
    assert SECRET[:4] not in held
    assert key.closed
    for use in (key.as_bytes, lambda: authenticator.sign_batch(ALPHA, 1, [])):
        with pytest.raises(ValueError, match="closed"):
            use()


def test_collected_key_is_wiped():
    """A key that is dropped without being closed leaves no secret behind."""
    key = BatchAuthKey.from_bytes(SECRET)
    wiped = []

    class Watched(bytearray):
        def __setitem__(self, where, value):
            wiped.append(bytes(value))
            super().__setitem__(where, value)

    key._secret = Watched(SECRET)
    del key
    assert wiped == [bytes(32)]


def test_key_is_never_shown():
    """No text form of a key or of what holds it contains the secret."""
    key = BatchAuthKey.from_bytes(b"SECRETSECRETSECRETSECRETSECRETSE")
    texts = [repr(key), str(key), f"{key}", repr(BatchAuthenticator(key, ALPHA)), repr({"key": key})]
    for text in texts:
        assert "SECRET" not in text
        assert key.as_bytes().hex() not in text


def test_key_is_not_copied_or_pickled():
    """A key cannot slip into a pickle or a copy that nobody wipes."""
    key = BatchAuthKey.from_bytes(SECRET)
    for spread in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError):
            spread(key)


def test_values_are_frozen():
    """Tags and results cannot be altered after they were made."""
    with pytest.raises(AttributeError):
        BatchTag(bytes(32)).bytes = bytes(32)
    with pytest.raises(AttributeError):
        VALID.valid = False
    assert AuthResult.invalid("why") == AuthResult(valid=False, reason="why")
    assert VALID.reason is None
