"""Keys of ordered pairs."""

from __future__ import annotations

import hmac

import pytest

from claudefs_repl.error import PeerRefused
from claudefs_repl.journal import SiteId
from protocol.keys import KeyRing, PairKey, derive

A, B, C = SiteId(1), SiteId(2), SiteId(3)


def key(key_id="k1", dialer=A, listener=B, secret=bytes(32)):
    return PairKey(key_id, dialer, listener, secret)


def test_dialling_uses_the_named_key():
    """The key that a site dials with is the one that its `use` names, for all listeners or for each."""
    keys = [key("k1"), key("k2"), key("k1", A, C)]
    assert KeyRing(A, keys, "k1").to_use(B) is keys[0]
    ring = KeyRing(A, keys, {B: "k2", C: "k1"})
    assert ring.to_use(B) is keys[1]
    assert ring.to_use(C) is keys[2]


@pytest.mark.parametrize("use", ["k9", {}, {C: "k1"}, {B: "k9"}])
def test_missing_key_is_refused(use):
    """Without a key for a listener there is nothing to dial with."""
    with pytest.raises(PeerRefused) as refused:
        KeyRing(A, [key(), key("k1", B, A)], use).to_use(B)
    assert refused.value.code == "key_missing"
    assert "site 2" in str(refused.value)


def test_pairs_are_ordered():
    """A key serves one direction only: the other direction of the same sites has another."""
    there, back = key("k1", A, B), key("k1", B, A)
    ring = KeyRing(A, [there, back], "k1")
    assert ring.find("k1", dialer=A, listener=B) is there
    assert ring.find("k1", dialer=B, listener=A) is back
    assert ring.find("k1", dialer=C, listener=A) is None
    assert ring.find("k2", dialer=A, listener=B) is None


def test_ring_holds_only_its_sites_keys():
    """A site never holds the key of two others: it could speak as either of them."""
    with pytest.raises(ValueError, match="not site 3's"):
        KeyRing(C, [key("k1", A, B)], "k1")


def test_doubled_key_is_refused():
    """Two keys of one id and pair would make it a matter of luck which is used."""
    with pytest.raises(ValueError, match="twice"):
        KeyRing(A, [key(), key()], "k1")


@pytest.mark.parametrize(
    "fields",
    [
        {"key_id": ""},
        {"key_id": "k" * 65},
        {"key_id": "a b"},
        {"key_id": "a\n"},
        {"key_id": "é"},
        {"key_id": None},
        {"dialer": 0},
        {"listener": 2048},
        {"dialer": True},
        {"dialer": B},
        {"secret": bytes(31)},
        {"secret": bytes(33)},
        {"secret": "x" * 32},
    ],
)
def test_impossible_key_is_refused(fields):
    """A key has an id that can be shown, two different sites, and 32 bytes."""
    with pytest.raises(ValueError):
        key(**fields)


def test_secret_is_never_shown():
    """No text form of a key or a ring contains the secret."""
    secret = b"SECRETSECRETSECRETSECRETSECRETSE"
    shown = repr(key(secret=secret)) + repr(KeyRing(A, [key(secret=secret)], "k1"))
    assert "SECRET" not in shown
    assert secret.hex() not in shown


def test_derive_is_hkdf():
    """Derived keys are HKDF-SHA256 of RFC 5869 with one block of output: its first test case, cut to 32 bytes."""
    salt, info = bytes(range(13)), bytes(range(0xF0, 0xFA))
    derived = derive(b"\x0b" * 22, salt, info)
    assert derived.hex() == "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf"
    assert derived == hmac.digest(hmac.digest(salt, b"\x0b" * 22, "sha256"), info + b"\1", "sha256")


def test_each_input_of_derive_matters():
    """Another secret, transcript or label gives another key."""
    secret, transcript = bytes(32), bytes(32)
    derived = {
        derive(secret, transcript, b"a"),
        derive(secret, transcript, b"b"),
        derive(secret, b"\1" * 32, b"a"),
        derive(b"\1" * 32, transcript, b"a"),
    }
    assert len(derived) == 4
