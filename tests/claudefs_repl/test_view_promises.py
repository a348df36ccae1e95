"""The checker of forgery: what counts as told."""

from __future__ import annotations

from dataclasses import replace

import pytest

from claudefs_repl.observations import Rejection
from claudefs_repl.promises import broken, judge
from tests.claudefs_repl.good_run import GOOD, S


@pytest.mark.parametrize(
    ("told_s", "site", "is_found"), [(36, "beta", False), (33, "beta", True), (41, "gamma", False)]
)
def test_refusals_that_are_told_in_numbers_tell_of_those_that_follow(told_s, site, is_found):
    """A forged frame is told by its receiver or by who saw it in its place, also if one of its kind was told just before."""
    (forged,) = GOOD.tampering
    tampering = (replace(forged, tellers=("gamma",)),)
    seen = replace(GOOD, tampering=tampering, rejections=(Rejection(told_s * S, site, "bad_proof"),))
    assert bool(broken(judge(seen, ["P6"]))) is is_found
