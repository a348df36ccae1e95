"""Entries that an older program could not decode, on real processes: told, listed, and applied after the upgrade."""

from __future__ import annotations

from typing import Any

import pytest

from nodes.site_process import rebuild_site
from nodes.store import fold
from protocol.payload import PayloadInvalid, decode_payload

pytestmark = pytest.mark.cluster


async def made_by_an_older_program(lab: Any, name: str, unknown: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a stopped site's view made by a program that does not know the payloads in which some bytes occur."""

    def decode(op: int, payload: bytes) -> object:
        if unknown in payload:
            raise PayloadInvalid("payload version 2 is not known")
        return decode_payload(op, payload)

    monkeypatch.setattr(fold, "decode_payload", decode)
    await rebuild_site(lab.cluster, name)
    monkeypatch.setattr(fold, "decode_payload", decode_payload)


async def test_what_an_older_program_put_aside_is_applied_by_a_newer_one(
    make_lab: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Status, verify and the list tell of the dead letters and the command; after the retry the sites have converged."""
    lab = await make_lab(2)
    await lab.ok("write", "alpha:/before", stdin=b"before")
    await lab.ok("mkdir", "alpha:/strange")
    await lab.ok("write", "alpha:/strange/file", stdin=b"content")
    await lab.ok("chmod", "0701", "alpha:/strange")
    await lab.ok("verify", "--wait", "60")
    await lab.launcher.stop("beta")
    await made_by_an_older_program(lab, "beta", b"strange", monkeypatch)
    assert next(event["reason"] for event in lab.events("beta", "dead_letter")) == "payload version 2 is not known"
    await lab.start("beta")

    assert (await lab.ok("ls", "beta:/")).out == b"before\n"
    told = await lab.cli("status")
    assert "beta has dead letters; see: claudefs-repl deadletters list beta" in told.out.decode()
    verdict = await lab.cli("verify")
    assert (verdict.code, "dead letters are open at beta" in verdict.out.decode()) == (1, True)
    letters = (await lab.ok("deadletters", "list", "beta", "--json")).json["letters"]
    assert [letter["op"] for letter in letters] == ["mkdir", "set_attr"]
    assert letters[1]["reason"].startswith("waits for entry ")
    assert letters[0]["entry"] in (await lab.ok("deadletters", "list", "beta")).out.decode()
    assert (await lab.cli("deadletters", "retry", "beta", "--entry", "alpha/0/999")).code == 1
    assert (await lab.cli("deadletters", "retry", "beta", "--entry", "alpha/zero")).code == 2

    done = (await lab.ok("deadletters", "retry", "beta", "--entry", letters[0]["entry"], "--json")).json
    assert done == {"site": "beta", "applied": 2, "left": 0, "open": 0}
    await lab.until_event("beta", "dead_letters_applied", entries=2, left=0)
    assert (await lab.ok("ls", "-R", "beta:/")).out.split() == [b"before", b"strange", b"strange/file"]
    assert (await lab.ok("stat", "--json", "beta:/strange")).json["mode"] == "0701"
    assert (await lab.ok("deadletters", "list", "beta")).out == b"site beta has no dead letters\n"
    await lab.ok("verify")
