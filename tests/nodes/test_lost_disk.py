"""An empty data directory: when its site takes writes, and what it says until then."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from claudefs_repl.error import NotWritable
from claudefs_repl.failover import SiteMode
from claudefs_repl.journal import Incarnation, JournalId, SiteId
from claudefs_repl.topology import SiteConfig
from nodes.config import load_cluster, write_cluster
from nodes.events import make_logger
from nodes.evidence import Evidence, read_evidence, write_evidence
from nodes.lost_disk import has_its_past
from nodes.peers import PeerRecord
from nodes.recovery import recover
from nodes.runtime import NEW_NAME, SystemClock, mark_new
from nodes.storage import DiskStorage
from nodes.write_gate import LOST, WriteGate

OWN, PAST, BETA, GAMMA = (JournalId(SiteId(i), Incarnation(n)) for i, n in ((1, 9), (1, 1), (2, 2), (3, 3)))


class Alpha:
    """A site that began with an empty directory, and its two peers, of which it has heard nothing."""

    def __init__(self, directory):
        self.applied = {}
        self.gate = WriteGate("alpha", SiteMode.STANDBY_READ_ONLY)
        self.gate.close(LOST, "empty")
        self.beta, self.gamma = (
            PeerRecord(SiteConfig(name, SiteId(i), f"127.0.0.{i}", i, Path(name)))
            for i, name in ((2, "beta"), (3, "gamma"))
        )
        self.path = directory / "events.jsonl"
        self.logger = make_logger(self.path, "alpha", SystemClock())

    def hear(self, record, applied, told=None):
        """A pong, the first or a later one."""
        if record.first_tails is None:
            record.first_tails, record.first_received, record.first_applied = {}, applied, applied
        record.note_all(received=applied, applied=applied, told=told or {})

    def has_its_past(self):
        found = has_its_past(OWN, self.applied, [self.beta, self.gamma], self.gate, self.logger)
        assert found != self.gate.is_closed(LOST)
        return found

    def refusal(self):
        assert not self.has_its_past()
        with pytest.raises(NotWritable) as refused:
            self.gate.check_write()
        return str(refused.value)

    def events(self):
        return [json.loads(line) for line in self.path.read_text().splitlines()]


@pytest.fixture
def alpha(tmp_path):
    return Alpha(tmp_path)


def test_as_long_as_a_peer_has_not_answered_nothing_is_known(alpha):
    """The refusal names the peers that are waited for, and what to do if they stay away."""
    assert "answer of site beta and for an answer of site gamma" in alpha.refusal()
    alpha.hear(alpha.beta, {})
    refusal = alpha.refusal()
    assert "for an answer of site gamma" in refusal
    assert "site beta" not in refusal
    assert "claudefs-repl bootstrap alpha --from gamma" in refusal
    assert "if it is new, let it begin without that: claudefs-repl mode alpha active --pin" in refusal


def test_a_site_of_which_nobody_knows_is_new(alpha):
    """It says so once, and what its peers write from then on closes nothing again."""
    for record in (alpha.beta, alpha.gamma):
        alpha.hear(record, {})
    assert alpha.has_its_past()
    alpha.hear(alpha.beta, {BETA: (3, 3)})
    assert alpha.has_its_past()
    assert [(event["event"], event["had_past"]) for event in alpha.events()] == [("past_known", False)]


def test_what_each_peer_had_applied_is_waited_for(alpha):
    """Also what one has of another's journal, and of the former one; not what they apply after they were met."""
    alpha.hear(alpha.beta, {PAST: (4, 0), BETA: (2, 2), GAMMA: (1, 0)})
    alpha.hear(alpha.gamma, {PAST: (4, 1), BETA: (2, 2)})
    alpha.hear(alpha.gamma, {PAST: (4, 1), BETA: (7, 7)})
    alpha.applied = {PAST: (4, 1), BETA: (2, 2)}
    refusal = alpha.refusal()
    assert "its disk was lost" in refusal
    assert "what site beta has applied, and goes on by itself" in refusal
    assert "bootstrap alpha --from beta" in refusal
    assert "--pin" not in refusal
    alpha.applied[GAMMA] = (1, 0)
    assert alpha.has_its_past()
    assert alpha.events()[-1]["had_past"]


def test_a_peer_that_does_not_answer_may_have_forgotten_what_the_others_have_not(alpha):
    """Who has a past waits for all of its peers, whatever is here by then."""
    alpha.hear(alpha.beta, {PAST: (4, 0)})
    alpha.applied = {PAST: (4, 0)}
    assert "for an answer of site gamma" in alpha.refusal()


def test_what_a_peer_lost_since_or_cannot_send_is_not_waited_for(alpha):
    """A disk may be lost after the peer was met, and a site in trouble holds up nobody."""
    alpha.hear(alpha.beta, {BETA: (2, 2)})
    alpha.hear(alpha.gamma, {GAMMA: (5, 5)})
    alpha.hear(alpha.beta, {})
    alpha.gamma.stamps_beyond_us = 1
    assert alpha.has_its_past()


@pytest.mark.parametrize(
    ("mode", "pinned", "told", "is_believed"),
    [
        (SiteMode.ACTIVE_READ_WRITE, True, {}, True),
        (SiteMode.ACTIVE_READ_WRITE, False, {}, False),
        (SiteMode.STANDBY_READ_ONLY, True, {}, False),
        (SiteMode.ACTIVE_READ_WRITE, True, {PAST: (4, 0)}, False),
    ],
)
def test_an_operator_is_believed_that_a_site_is_new_unless_a_peer_tells_otherwise(
    alpha, mode, pinned, told, is_believed
):
    """A writable mode that is pinned is his word."""
    alpha.hear(alpha.beta, {}, told)
    alpha.gate.mode, alpha.gate.pinned = mode, pinned
    assert alpha.has_its_past() == is_believed


class Directory:
    """A site's data directory, which is opened as a start does."""

    def __init__(self, tmp_path, sites):
        self.cluster = load_cluster(write_cluster(tmp_path / "cluster", sites, cluster_id="test"))
        self.site = self.cluster.sites[0]
        self.place = self.site.data_dir

    def storage(self):
        return DiskStorage(self.place)

    async def start(self):
        """Whether the site takes writes, as far as this goes."""
        gate = WriteGate(self.site.name, SiteMode.ACTIVE_READ_WRITE)
        self.place.mkdir(parents=True, exist_ok=True)
        recovered = await recover(
            cluster=self.cluster,
            site=self.site,
            storage=self.storage(),
            entropy=os.urandom,
            gate=gate,
            logger=make_logger(self.place / "events.jsonl", self.site.name, SystemClock()),
        )
        await recovered.close()
        return not gate.is_closed(LOST)


async def test_an_empty_directory_is_doubted_also_at_the_next_start(tmp_path):
    """A restart knows no more; what ends the doubt goes to the disk with the rest of the evidence."""
    directory = Directory(tmp_path, 2)
    assert not await directory.start()
    assert not await directory.start()
    evidence = await read_evidence(directory.storage())
    await write_evidence(directory.storage(), replace(evidence, refusing={}))
    assert await directory.start()


async def test_a_new_cluster_begins_without_asking(tmp_path):
    """The mark counts once: a directory that is emptied later has none."""
    directory = Directory(tmp_path, 2)
    mark_new(directory.cluster)
    assert await directory.start()
    assert not (directory.place / NEW_NAME).exists()
    assert await directory.start()
    assert (await read_evidence(directory.storage())) == Evidence()


async def test_a_site_without_peers_has_nobody_to_ask(tmp_path):
    """Nobody else can hold anything of it."""
    assert await Directory(tmp_path, 1).start()
