"""What a campaign must have reached: every kind of conflict, and something that each promise is about."""

from __future__ import annotations

from claudefs_repl.promises import CHECKERS
from nodes.store.conflicts import ConflictKind
from tests.simulation.campaign import COMPLETE_FROM, Campaign
from tests.simulation.sometimes import required


def test_every_kind_of_conflict_and_every_promise_must_be_reached():
    """A campaign that lacks one of them is told to be incomplete."""
    assert {f"conflict of kind {kind.name.lower()}" for kind in ConflictKind} <= required()
    assert {name.partition(":")[0] for name in required() if ": " in name} == set(CHECKERS)


def test_a_campaign_that_never_looked_at_a_promise_is_incomplete():
    """It does not pass, although nothing was violated; a short one may miss what is rare."""
    campaign = Campaign(count=COMPLETE_FROM)
    campaign.reached.update(required() - {"I13: disturbances that are too short to matter"})
    assert campaign.missing == ["I13: disturbances that are too short to matter"]
    assert not campaign.is_good
    campaign.count -= 1
    assert campaign.is_good
