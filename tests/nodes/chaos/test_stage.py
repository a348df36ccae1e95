"""The hands that break a cluster: what overlaps, what nobody did, and that sites find each other through the proxies."""

from __future__ import annotations

import os
import signal

import pytest
import trio

from nodes.chaos.scenario import parse_scenario
from nodes.chaos.settle import heal, settle
from nodes.chaos.stage import open_stage
from nodes.config import load_cluster

pytestmark = pytest.mark.cluster
LIMIT_S = 60.0
TWO = 'title = "t"\n[cluster]\nsites = 2\nshards = 1\n'


async def test_faults_that_overlap_leave_a_site_down_until_the_last_is_over(tmp_path):
    """A site that is killed again while it starts comes up once, and is not said to have ended by itself."""
    with trio.fail_after(LIMIT_S):
        async with open_stage(parse_scenario("x", TWO, "x"), tmp_path) as stage:
            await stage.start_all()
            await stage.kill("beta")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(stage.bring_up, "beta")
                await trio.sleep(0.15)
                await stage.kill("beta")
                await stage.kill("beta")
            stage.look_for_ended()
            assert not stage.lives("beta")
            await stage.bring_up("beta")
            assert not stage.lives("beta"), "one of two faults is left"
            await stage.bring_up("beta")
            assert stage.lives("beta")
            stage.look_for_ended()
            assert [note for note in stage.notes if note.is_failure] == []


async def test_a_site_that_nobody_ended_is_told_once_and_started_again_at_the_end(tmp_path):
    """What somebody else killed is a failure of the run; afterwards the cluster is level all the same."""
    with trio.fail_after(LIMIT_S):
        async with open_stage(parse_scenario("x", TWO, "x"), tmp_path) as stage:
            await stage.start_all()
            os.kill(stage.launcher.pid("alpha"), signal.SIGKILL)
            while stage.lives("alpha"):
                await trio.sleep(0.02)
            stage.look_for_ended()
            stage.look_for_ended()
            [told] = [note for note in stage.notes if note.is_failure]
            assert (told.site, "ended by itself" in told.text, "SIGKILL" in told.text) == ("alpha", True, True)
            await heal(stage)
            settled = await settle(stage, 30.0)
            assert settled.took_s is not None, settled.missing
            assert len(set(settled.digests.values())) == 1


async def test_every_site_sees_its_peers_at_their_addresses_and_its_proxies_ports(tmp_path):
    """Only ports differ between the sites' configurations; every connection between sites passes a proxy."""
    with trio.fail_after(LIMIT_S):
        async with open_stage(parse_scenario("x", TWO, "x"), tmp_path) as stage:
            seen = {name: load_cluster(tmp_path / f"{name}.toml") for name in stage.names}
            for name, cluster in seen.items():
                for site in cluster.sites:
                    real = stage.cluster.site(site.name)
                    assert (site.address, site.data_dir) == (real.address, real.data_dir)
                    assert (site.port == real.port) is (site.name == name)
            await stage.start_all()
            assert (await settle(stage, 30.0)).took_s is not None
            assert all(proxy.counters.connections for proxy in stage.mesh.proxies.values())
            assert all(wire.counters.bytes_passed for wire in stage.mesh.wires.values())
    assert not [process for process in stage.launcher.processes.values() if process.poll() is None]
