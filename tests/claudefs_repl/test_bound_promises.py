"""The checker of work: what a site is made anew for."""

from __future__ import annotations

from dataclasses import replace

import pytest

from claudefs_repl.observations import Bootstrap
from claudefs_repl.promises import broken, judge
from tests.claudefs_repl.good_run import GOOD, S


@pytest.mark.parametrize(
    ("causes", "is_found"), [(["its stamps were refused"], False), (["it was cut off", None], True)]
)
def test_a_site_that_had_to_be_made_anew_is_no_needless_work(causes, is_found):
    """Besides a lost disk there may be another cause, and each excuses one time."""
    made = [Bootstrap((80 + at) * S, "beta", cause) for at, cause in enumerate(causes)]
    assert bool(broken(judge(replace(GOOD, bootstraps=(*GOOD.bootstraps, *made)), ["I18"]))) is is_found
