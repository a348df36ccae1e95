from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import stat
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from claudefs_repl.error import ConfigInvalid
from claudefs_repl.topology import ClusterConfig
from nodes.config import load_cluster, write_cluster
from nodes.key_files import load_keys, make_keys, write_keys
from nodes.key_rotation import add_keys, list_keys, retire_keys, take_keys, use_keys
from protocol.keys import KeyRing


def make(place: Path, sites: int = 3) -> ClusterConfig:
    made = load_cluster(write_cluster(place, sites))
    write_keys(made.keys_dir, make_keys(made.sites, random.Random(7).randbytes))
    return made


@pytest.fixture
def cluster(tmp_path: Path) -> ClusterConfig:
    return make(tmp_path / "here")


@pytest.fixture
def two_machines(tmp_path: Path) -> tuple[ClusterConfig, ClusterConfig]:
    """One cluster: alpha's and beta's files are here, gamma's is there."""
    here = make(tmp_path / "here")
    (tmp_path / "there" / "keys").mkdir(parents=True, mode=0o700)
    shutil.copy(here.path, tmp_path / "there")
    there = load_cluster(tmp_path / "there" / "cluster.toml")
    shutil.move(here.key_file(here.site("gamma")), there.key_file(there.site("gamma")))
    return here, there


def entropy(count: int) -> bytes:
    return os.urandom(count)


def contents(cluster: ClusterConfig) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in cluster.keys_dir.iterdir()}


def document(cluster: ClusterConfig, name: str) -> Any:
    return json.loads(cluster.key_file(cluster.site(name)).read_text())


def rewrite(cluster: ClusterConfig, name: str, found: Any) -> None:
    cluster.key_file(cluster.site(name)).write_text(json.dumps(found))


def rings(*clusters: ClusterConfig) -> dict[int, KeyRing]:
    """Every site's ring, from whichever machine has its file."""
    return {
        site.site_id: load_keys(cluster.key_file(site), site)
        for cluster in clusters
        for site in cluster.sites
        if cluster.key_file(site).exists()
    }


def check_files(*clusters: ClusterConfig) -> None:
    """Every file loads and is private; what a site dials with, its peer has; no file has another pair's key."""
    found = rings(*clusters)
    for dialer, listener in itertools.permutations(found, 2):
        key = found[dialer].to_use(listener)
        assert found[listener].find(key.key_id, dialer=dialer, listener=listener) == key
    secrets: dict[str, tuple[str, int, int]] = {}
    for cluster in clusters:
        for site in cluster.sites:
            path = cluster.key_file(site)
            if path.exists():
                assert stat.S_IMODE(path.stat().st_mode) == 0o600
                for key in json.loads(path.read_text())["keys"]:
                    assert site.site_id in (key["dialer"], key["listener"])
                    identity = (key["key_id"], key["dialer"], key["listener"])
                    assert secrets.setdefault(key["secret"], identity) == identity
        assert not [path for path in cluster.keys_dir.iterdir() if path.name.startswith(".")]


class Rotations(RuleBasedStateMachine):
    """After any changes all files load, both ends agree; refused ones change nothing. The model: the ids, the used id."""

    @initialize()
    def begin(self) -> None:
        self.place = Path(tempfile.mkdtemp())
        self.cluster = make(self.place, 3)
        self.ids = {"k1"}
        self.used = "k1"

    def teardown(self) -> None:
        if hasattr(self, "place"):
            shutil.rmtree(self.place)

    @rule(key_id=st.sampled_from(["k1", "k2", "k3", "x:y", None]))
    def add(self, key_id: str | None) -> None:
        if key_id in self.ids:
            self.refused(lambda: add_keys(self.cluster, entropy, key_id))
            return
        self.ids.add(add_keys(self.cluster, entropy, key_id).key_id)

    @rule(key_id=st.sampled_from(["k1", "k2", "k3", "x:y"]))
    def use(self, key_id: str) -> None:
        if key_id not in self.ids:
            self.refused(lambda: use_keys(self.cluster, key_id))
            return
        assert bool(use_keys(self.cluster, key_id).changed) == (key_id != self.used)
        self.used = key_id

    @rule(key_id=st.sampled_from(["k1", "k2", "k3", "x:y"]))
    def retire(self, key_id: str) -> None:
        if key_id not in self.ids or key_id == self.used:
            self.refused(lambda: retire_keys(self.cluster, key_id))
            return
        retire_keys(self.cluster, key_id)
        self.ids.remove(key_id)

    def refused(self, change: Any) -> None:
        before = contents(self.cluster)
        with pytest.raises(ConfigInvalid):
            change()
        assert contents(self.cluster) == before

    @invariant()
    def files_are_as_the_model(self) -> None:
        if not hasattr(self, "cluster"):
            return
        check_files(self.cluster)
        found = list_keys(self.cluster)
        pairs = set(itertools.permutations(["alpha", "beta", "gamma"], 2))
        for key_id in self.ids:
            rows = [row for row in found.rows if row.key_id == key_id]
            assert {(row.dialer, row.listener) for row in rows} == pairs
            assert {row.used for row in rows} == {key_id == self.used}
        assert {row.key_id for row in found.rows} == self.ids
        assert not found.problems


TestRotations = Rotations.TestCase
TestRotations.settings = settings(max_examples=20, stateful_step_count=12, deadline=None)


def test_the_next_id_counts_on(cluster: ClusterConfig) -> None:
    """Without an id the new generation is k and the number after the highest there is."""
    add_keys(cluster, entropy, "k9")
    add_keys(cluster, entropy, "k08")
    assert add_keys(cluster, entropy).key_id == "k10"


@pytest.mark.parametrize("key_id", ["", "a b", "../x", ".x", "é", "k" * 65])
def test_what_is_no_id_is_refused(cluster: ClusterConfig, key_id: str) -> None:
    """An id that could not be sent or be part of a file's name adds nothing."""
    before = contents(cluster)
    with pytest.raises(ConfigInvalid, match="a key id has 1 to 64"):
        add_keys(cluster, entropy, key_id)
    assert contents(cluster) == before


def test_an_id_that_a_peer_lacks_is_not_used(cluster: ClusterConfig) -> None:
    """A dialler never changes to a key that its peer's file does not have yet; the file and the pair are named."""
    add_keys(cluster, entropy, "k2")
    found = document(cluster, "beta")
    found["keys"] = [key for key in found["keys"] if key["key_id"] == "k1"]
    rewrite(cluster, "beta", found)
    before = contents(cluster)
    with pytest.raises(ConfigInvalid, match=r"beta\.json: has no key k2 for connections from site alpha to site beta"):
        use_keys(cluster, "k2")
    assert contents(cluster) == before
    assert any("beta.json: has no key k2" in problem for problem in list_keys(cluster).problems)


def test_keys_that_differ_at_the_two_ends_are_not_used(cluster: ClusterConfig) -> None:
    """Two machines that each made their own keys of one id are found out where both files are seen."""
    add_keys(cluster, entropy, "k2")
    found = document(cluster, "beta")
    for key in found["keys"]:
        if (key["key_id"], key["dialer"], key["listener"]) == ("k2", 1, 2):
            key["secret"] = "5e" * 32
    rewrite(cluster, "beta", found)
    with pytest.raises(ConfigInvalid, match="from site alpha to site beta differ") as caught:
        use_keys(cluster, "k2")
    assert len(caught.value.problems) == 1
    assert "5e5e" not in str(caught.value)


def test_the_key_in_use_is_not_retired(cluster: ClusterConfig) -> None:
    """A site that still dials with an id, even to one peer only, keeps it everywhere."""
    add_keys(cluster, entropy, "k2")
    use_keys(cluster, "k2")
    found = document(cluster, "gamma")
    found["use"]["1"] = "k1"
    rewrite(cluster, "gamma", found)
    before = contents(cluster)
    with pytest.raises(ConfigInvalid) as caught:
        retire_keys(cluster, "k1")
    (problem,) = caught.value.problems
    assert "gamma.json: k1 is in use for connections to alpha" in problem
    assert contents(cluster) == before


def test_what_a_crash_left_half_added_can_be_retired(cluster: ClusterConfig) -> None:
    """An id that only some files have is refused to be added or used, and goes by retiring it."""
    before = contents(cluster)
    add_keys(cluster, entropy, "k2")
    (cluster.keys_dir / "beta.json").write_bytes(before["beta.json"])
    for change in (lambda: add_keys(cluster, entropy, "k2"), lambda: use_keys(cluster, "k2")):
        with pytest.raises(ConfigInvalid):
            change()
    assert len(retire_keys(cluster, "k2").changed) == 2
    assert {name: json.loads(text) for name, text in contents(cluster).items()} == {
        name: json.loads(text) for name, text in before.items()
    }


@pytest.mark.parametrize("failing", [1, 2, 3])
def test_a_file_that_cannot_be_replaced_leaves_all_as_they_were(
    cluster: ClusterConfig, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    """When one of the files cannot be changed, those before it get back what they had, and nothing else lies there."""
    before, calls, replace = contents(cluster), [], os.replace

    def fail_once(source: Path, target: Path) -> None:
        calls.append(target)
        if len(calls) == failing:
            raise OSError(28, "No space left on device", str(target))
        replace(source, target)

    monkeypatch.setattr("nodes.key_files.os.replace", fail_once)
    with pytest.raises(ConfigInvalid, match=r"json: cannot be written: No space left on device"):
        add_keys(cluster, entropy, "k2")
    assert contents(cluster) == before


def test_a_wrong_file_is_told_and_stops_every_change(cluster: ClusterConfig) -> None:
    """Nothing is changed while a file is not private, and the file is named."""
    cluster.key_file(cluster.site("beta")).chmod(0o644)
    before = contents(cluster)
    for change in (add_keys, lambda c, _: use_keys(c, "k1"), lambda c, _: list_keys(c)):
        with pytest.raises(ConfigInvalid, match=r"beta\.json: expected mode 0600"):
            change(cluster, entropy)
    assert contents(cluster) == before


def test_without_any_file_the_remedy_is_told(cluster: ClusterConfig) -> None:
    """Where no key file is, there is nothing to rotate: the command that makes keys is named."""
    shutil.rmtree(cluster.keys_dir)
    with pytest.raises(ConfigInvalid, match="claudefs-repl init"):
        list_keys(cluster)
    cluster.keys_dir.mkdir()
    with pytest.raises(ConfigInvalid, match="claudefs-repl init"):
        add_keys(cluster, entropy)


def test_a_linked_key_file_stays_linked(cluster: ClusterConfig, tmp_path: Path) -> None:
    """A key file that is kept elsewhere and linked to is changed where it is."""
    path = cluster.key_file(cluster.site("alpha"))
    kept = tmp_path / "kept.json"
    path.rename(kept)
    path.symlink_to(kept)
    add_keys(cluster, entropy, "k2")
    assert path.is_symlink()
    assert "k2" in kept.read_text()
    check_files(cluster)


def test_a_rotation_over_two_machines(two_machines: tuple[ClusterConfig, ClusterConfig]) -> None:
    """Keys made on one machine reach the other by a file that only has its own site's pairs; then both can change."""
    here, there = two_machines
    added = add_keys(here, entropy)
    assert [path.name for path in added.changed] == ["alpha.json", "beta.json"]
    assert [site.name for site in added.absent] == ["gamma"]
    delivery = added.deliveries["gamma"]
    assert stat.S_IMODE(delivery.stat().st_mode) == 0o600
    assert {3} == set.intersection(*({k["dialer"], k["listener"]} for k in json.loads(delivery.read_text())["keys"]))
    taken = take_keys(there, delivery)
    assert (taken.key_id, [path.name for path in taken.changed]) == ("k2", ["gamma.json"])
    delivery.unlink()
    check_files(here, there)
    for cluster in (here, there):
        use_keys(cluster, "k2")
        check_files(here, there)
    for cluster in (here, there):
        retire_keys(cluster, "k1")
        check_files(here, there)
    assert {row.used for row in list_keys(there).rows} == {True, None}


def test_a_delivery_is_taken_once_and_whole(two_machines: tuple[ClusterConfig, ClusterConfig]) -> None:
    """Keys of an id that is there already, of several ids, or of a site that is none are not taken."""
    here, there = two_machines
    delivery = add_keys(here, entropy).deliveries["gamma"]
    with pytest.raises(ConfigInvalid, match="has keys k2 already"):
        add_keys(here, entropy, "k2")
    take_keys(there, delivery)
    before = contents(there)
    brought = json.loads(delivery.read_text())
    for wrong in (
        brought,
        {**brought, "keys": [*brought["keys"], {**brought["keys"][0], "key_id": "k7"}]},
        {**brought, "keys": [], "use": {}},
        {**brought, "site_id": 9},
        {**brought, "version": 2},
    ):
        delivery.write_text(json.dumps(wrong))
        with pytest.raises(ConfigInvalid) as caught:
            take_keys(there, delivery)
        assert not any(key["secret"] in str(caught.value) for key in brought["keys"])
    assert contents(there) == before


def test_a_delivery_that_waits_is_not_overwritten(two_machines: tuple[ClusterConfig, ClusterConfig]) -> None:
    """Keys that are still to be carried are not replaced by others."""
    here, _ = two_machines
    delivery = add_keys(here, entropy, "k2").deliveries["gamma"]
    retire_keys(here, "k2")
    before = contents(here)
    with pytest.raises(ConfigInvalid, match="is there already; carry it"):
        add_keys(here, entropy, "k2")
    assert delivery.name in before
    assert contents(here) == before


def test_the_only_key_of_an_absent_dialer_is_not_retired(two_machines: tuple[ClusterConfig, ClusterConfig]) -> None:
    """A site whose own file is elsewhere is not shut out here for lack of any key."""
    here, _ = two_machines
    add_keys(here, entropy, "k2")
    use_keys(here, "k2")
    found = document(here, "alpha")
    found["keys"] = [key for key in found["keys"] if (key["key_id"], key["dialer"]) != ("k2", 3)]
    rewrite(here, "alpha", found)
    with pytest.raises(ConfigInvalid, match=r"alpha\.json: k1 is the only key for connections from gamma"):
        retire_keys(here, "k1")


def test_a_site_that_joins_gets_its_first_keys_by_a_rotation(tmp_path: Path) -> None:
    """For a site that is new in the configuration a generation is added, taken in as its file, and used by all."""
    old = make(tmp_path / "old", 2)
    new = load_cluster(write_cluster(tmp_path / "new", 3))
    shutil.copytree(old.keys_dir, new.keys_dir)
    assert any("no key is in use for connections to site gamma" in line for line in list_keys(new).problems)
    delivery = add_keys(new, entropy).deliveries["gamma"]
    assert take_keys(new, delivery).changed == (new.key_file(new.site("gamma")),)
    with pytest.raises(ConfigInvalid):
        use_keys(new, "k1")
    use_keys(new, "k2")
    retire_keys(new, "k1")
    check_files(new)
    assert not list_keys(new).problems


def test_a_site_that_left_holds_nothing_up(tmp_path: Path) -> None:
    """Keys and uses of a site that the configuration no longer has are shown by its id, and go when they are retired."""
    old = make(tmp_path / "old", 3)
    new = load_cluster(write_cluster(tmp_path / "new", 2))
    new.keys_dir.mkdir(mode=0o700)
    for name in ("alpha", "beta"):
        shutil.copy(old.key_file(old.site(name)), new.keys_dir)
    assert {row.listener for row in list_keys(new).rows} == {"alpha", "beta", "3"}
    add_keys(new, entropy)
    use_keys(new, "k2")
    retire_keys(new, "k1")
    check_files(new)
    assert {row.listener for row in list_keys(new).rows} == {"alpha", "beta"}
