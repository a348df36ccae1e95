from __future__ import annotations

import itertools
import json
import random
import stat
from pathlib import Path
from typing import Any

import pytest

from claudefs_repl.error import ConfigInvalid, PeerRefused
from claudefs_repl.topology import ClusterConfig
from nodes.config import load_cluster, write_cluster
from nodes.key_files import load_keys, make_keys, write_keys


@pytest.fixture
def cluster(tmp_path: Path) -> ClusterConfig:
    made = load_cluster(write_cluster(tmp_path))
    write_keys(made.keys_dir, make_keys(made.sites, random.Random(7).randbytes))
    return made


def edit(cluster: ClusterConfig, change: Any) -> Path:
    path = cluster.key_file(cluster.sites[0])
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    return path


def test_both_sites_of_each_ordered_pair_have_its_key_and_nobody_else(cluster: ClusterConfig) -> None:
    """A key that a dialler uses is known at its listener, and absent at every third site."""
    rings = {site.site_id: load_keys(cluster.key_file(site), site) for site in cluster.sites}
    secrets = set()
    for dialer, listener in itertools.permutations(rings, 2):
        key = rings[dialer].to_use(listener)
        secrets.add(key.secret)
        for site_id, ring in rings.items():
            found = ring.find(key.key_id, dialer=dialer, listener=listener)
            assert found == (key if site_id in (dialer, listener) else None)
    assert len(secrets) == 6


def test_all_pairs_of_a_generation_have_one_short_id(cluster: ClusterConfig) -> None:
    """The keys that `init` makes are all called k1, in `keys` and in `use`."""
    for site in cluster.sites:
        document = json.loads(cluster.key_file(site).read_text())
        assert {key["key_id"] for key in document["keys"]} == {"k1"}
        assert set(document["use"].values()) == {"k1"}


def test_no_secret_is_in_a_file_of_a_site_that_has_no_part_in_it(cluster: ClusterConfig) -> None:
    """What one site's file holds does not let it speak as another."""
    texts = {site.name: cluster.key_file(site).read_text() for site in cluster.sites}
    for key in json.loads(texts["alpha"])["keys"]:
        holders = [name for name, text in texts.items() if key["secret"] in text]
        assert holders == [site.name for site in cluster.sites if site.site_id in (key["dialer"], key["listener"])]


def test_only_the_owner_may_read_key_files(cluster: ClusterConfig) -> None:
    """Files are 0600 in a directory of 0700."""
    assert stat.S_IMODE(cluster.keys_dir.stat().st_mode) == 0o700
    for site in cluster.sites:
        assert stat.S_IMODE(cluster.key_file(site).stat().st_mode) == 0o600


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o601])
def test_a_key_file_that_others_reach_is_refused_by_name(cluster: ClusterConfig, mode: int) -> None:
    """A mode that lets in group or others is an error that names the file and the remedy."""
    path = cluster.key_file(cluster.sites[0])
    path.chmod(mode)
    with pytest.raises(ConfigInvalid, match=f"{path}.*chmod 600"):
        load_keys(path, cluster.sites[0])


def test_keys_are_never_overwritten(cluster: ClusterConfig) -> None:
    """Where one key file is, none is written, not even a missing one."""
    cluster.key_file(cluster.sites[2]).unlink()
    before = cluster.key_file(cluster.sites[0]).read_bytes()
    with pytest.raises(ConfigInvalid) as caught:
        write_keys(cluster.keys_dir, make_keys(cluster.sites, random.Random(8).randbytes))
    assert len(caught.value.problems) == 2
    assert cluster.key_file(cluster.sites[0]).read_bytes() == before
    assert not cluster.key_file(cluster.sites[2]).exists()


def test_a_file_of_another_site_is_refused(cluster: ClusterConfig) -> None:
    """A key file is for the site that it names."""
    with pytest.raises(ConfigInvalid, match="site_id: expected 2"):
        load_keys(cluster.key_file(cluster.sites[0]), cluster.sites[1])


def test_a_missing_file_says_how_to_make_one(cluster: ClusterConfig) -> None:
    """Without keys the remedy is named."""
    cluster.key_file(cluster.sites[0]).unlink()
    with pytest.raises(ConfigInvalid, match="claudefs-repl init"):
        load_keys(cluster.key_file(cluster.sites[0]), cluster.sites[0])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda d: d.update(version=2), "version: expected 1, got 2"),
        (lambda d: d.update(extra=1), "extra"),
        (lambda d: d.pop("use"), "use"),
        (lambda d: d["keys"][0].update(secret="5e" * 31), "keys[0].secret"),
        (lambda d: d["keys"][0].update(dialer=True), "keys[0].dialer"),
        (lambda d: d["keys"][1].update(key_id="no spaces"), "keys[1]"),
        (lambda d: d["keys"][1].update(d["keys"][0]), "keys"),
        (lambda d: d["use"].update({"2": "another"}), "use.2"),
        (lambda d: d["use"].update({"x": "another"}), "use"),
    ],
)
def test_a_wrong_file_is_refused_with_the_key_that_is_wrong(cluster: ClusterConfig, change: Any, told: str) -> None:
    """Each mistake in a key file is told with its place, and no secret is shown."""
    path = edit(cluster, change)
    with pytest.raises(ConfigInvalid) as caught:
        load_keys(path, cluster.sites[0])
    assert f"{path}: " in str(caught.value)
    assert told in str(caught.value)
    for key in json.loads(path.read_text())["keys"]:
        assert key["secret"] not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xff", b'{"version":1}', b"[" * 100_000])
def test_whatever_the_file_has_the_error_is_one_for_the_user(cluster: ClusterConfig, content: bytes) -> None:
    """No content of a key file makes anything but ConfigInvalid."""
    path = cluster.key_file(cluster.sites[0])
    path.write_bytes(content)
    with pytest.raises(ConfigInvalid):
        load_keys(path, cluster.sites[0])


def test_a_directory_in_the_place_of_a_key_file_is_refused(cluster: ClusterConfig) -> None:
    """What cannot be read is told, not raised as an OSError."""
    path = cluster.key_file(cluster.sites[0])
    path.unlink()
    path.mkdir()
    with pytest.raises(ConfigInvalid):
        load_keys(path, cluster.sites[0])


def test_a_retired_key_is_still_known_but_not_used(cluster: ClusterConfig) -> None:
    """While keys are rotated a pair may have two; `use` tells which one dials."""

    def rotate(document: dict[str, Any]) -> None:
        old = next(key for key in document["keys"] if (key["dialer"], key["listener"]) == (1, 2))
        document["keys"].append({**old, "key_id": "new", "secret": "ab" * 32})
        document["use"]["2"] = "new"

    old_id = load_keys(cluster.key_file(cluster.sites[0]), cluster.sites[0]).to_use(cluster.sites[1].site_id).key_id
    ring = load_keys(edit(cluster, rotate), cluster.sites[0])
    assert ring.to_use(cluster.sites[1].site_id).secret == b"\xab" * 32
    assert ring.find(old_id, dialer=cluster.sites[0].site_id, listener=cluster.sites[1].site_id) is not None
    with pytest.raises(PeerRefused):
        ring.to_use(cluster.sites[0].site_id)
