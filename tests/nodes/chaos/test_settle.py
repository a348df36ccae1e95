"""The operator of an experiment: he helps a site that asks for him, but not one that gets over it by itself."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import trio

from nodes.chaos import settle as settle_module
from nodes.chaos.settle import PATIENCE_S, settle

ASKS = "it waits for what site beta holds; if that does not come: claudefs-repl bootstrap alpha --from beta"


@pytest.mark.parametrize(("asks_for_s", "helped"), [(PATIENCE_S / 2, False), (1e9, True)])
async def test_an_operator_waits_whether_a_site_gets_over_it_by_itself(monkeypatch, autojump_clock, asks_for_s, helped):
    """A reason that goes by itself is left alone; one that stays is answered with a bootstrap, once."""
    done: list[str] = []
    began_s = trio.current_time()

    async def ask_site(cluster, name, method, **args):
        asks = trio.current_time() - began_s < asks_for_s and "bootstrap alpha" not in done
        return {"refusing_writes": [ASKS] if asks else [], "mode": "ActiveReadWrite", "received": {}, "applied": {}}

    def step(what):
        async def do(name):
            done.append(f"{what} {name}")

        return do

    async def nothing(*args):
        return None

    monkeypatch.setattr(settle_module, "ask_site", ask_site)
    for name in ("_ask", "_ask_sums", "_ask_lost"):
        monkeypatch.setattr(settle_module, name, nothing)
    stage = SimpleNamespace(
        names=["alpha"], cluster=None, stop=step("stop"), bootstrap=step("bootstrap"), bring_up=step("start")
    )
    settled = await settle(stage, 60.0)
    assert settled.took_s is not None
    assert done == (["stop alpha", "bootstrap alpha", "start alpha"] if helped else [])
    assert [ASKS in each for each in settled.remedies] == [True] * helped
