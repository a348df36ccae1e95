"""The rogue's tricks fail against a listener as it is, and what is answered wrongly is told."""

from __future__ import annotations

import os

import pytest

from claudefs_repl.batch_auth import VALID, BatchAuthenticator
from claudefs_repl.conduit import ReceiveProgress, Verdict
from nodes.entry_log import EntryLog
from nodes.runtime import SystemClock
from protocol.frames import FrameOpener
from protocol.messages import Ack, Welcome
from tests.nodes.test_hostile_wire import batch, identity, ring
from tests.nodes.test_hostile_wire import site as hostile_site
from tests.simulation.rogue import Trick, play

A = 1
site = hostile_site


async def no_crcs(*_, **__):
    return {}


def pass_over_gaps(progress, journal, block, take=ReceiveProgress.take):
    """Of the rogue's journal; the honest peer's batches are taken as ever."""
    return (Verdict.DUPLICATE, None) if journal.origin == A else take(progress, journal, block)


MUTED = {
    Trick.WRONG_TAG: (BatchAuthenticator, "verify_body", lambda *_: VALID),
    Trick.ALTERED: (FrameOpener, "open", lambda self, frame: memoryview(frame)[:-32]),
    Trick.REPLAYED: (FrameOpener, "open", lambda self, frame: memoryview(frame)[:-32]),
    Trick.BATCH_SKIPPED: (ReceiveProgress, "check_batch_seq", lambda *_: None),
    Trick.GAP: (ReceiveProgress, "take", pass_over_gaps),
    Trick.ANOTHER_PAST: (EntryLog, "crcs", no_crcs),
}
"""What a site is made to leave undone, so that a trick works."""


async def feed(site):
    link = await site.dial()
    await link.expect(Welcome)
    await link.send(batch(link))
    await link.expect(Ack)
    await link.aclose()


async def play_on(site, trick):
    return await play(
        trick,
        identity=identity(A),
        keys=ring(A),
        local_address="127.0.0.1",
        peer=site.config,
        now_us=SystemClock().now_us(),
        entropy=os.urandom,
    )


@pytest.mark.parametrize("trick", Trick)
async def test_a_sound_site_answers_every_trick_as_it_must(site, trick):
    """Nothing is taken, and the answer is the one that is due."""
    await feed(site)
    assert await play_on(site, trick) is None
    assert site.received() == (3, 0)


@pytest.mark.parametrize("trick", MUTED)
async def test_a_site_that_does_not_look_is_found_out(site, trick, monkeypatch):
    """With its check left out, each trick shows."""
    await feed(site)
    monkeypatch.setattr(*MUTED[trick])
    assert trick.value in (await play_on(site, trick) or "")
