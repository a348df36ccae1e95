"""Rotation of keys on a running cluster: what is done to the key files that are on this machine.

A *generation* is one key for each ordered pair of sites, all under one id. A rotation goes: the new generation is added
everywhere, all sites reload, it is used everywhere, all reload, the old one is retired everywhere, all reload. So at
every moment a dialler uses a key that its listener has, and no batch is lost: links are made anew, one by one.

Files of sites on other machines cannot be changed here. Their new keys are written beside the files here, each only with
its own site's pairs, as `SITE.ID.json`, to be carried there and taken in by `take_keys`. The files that are here change
together or not at all, as far as a file system can do that.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from claudefs_repl.error import ConfigInvalid
from claudefs_repl.topology import ClusterConfig, SiteConfig
from nodes.key_files import (
    KEY_FILE_BYTES_MAX,
    KeyTable,
    key_file_text,
    make_keys,
    read_key_file,
    replace_files,
    ring_of,
)
from nodes.seams import Entropy
from protocol.keys import KEY_ID_BYTES_MAX, is_key_id


@dataclass(frozen=True, slots=True)
class KeyChange:
    """What a change of the key files on this machine did.

    Attributes:
        key_id: the generation that was added, used or retired.
        changed: the files that are not as before.
        absent: the sites whose files are not on this machine.
        deliveries: by the name of an absent site, a file with its new keys, to be carried to its machine.
    """

    key_id: str
    changed: tuple[Path, ...]
    absent: tuple[SiteConfig, ...]
    deliveries: Mapping[str, Path]


@dataclass(frozen=True, slots=True)
class KeyRow:
    """One key, without its secret.

    Attributes:
        dialer: the name of the site that opens connections with it, or its id if the configuration lacks it.
        listener: the site to which it does, likewise.
        used: whether the dialler dials with it; None if that site's file is not on this machine.
        held_by: the sites whose files on this machine have it.
    """

    key_id: str
    dialer: str
    listener: str
    used: bool | None
    held_by: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class KeyList:
    """All keys in the files on this machine, and what is wrong between them, a line for each problem."""

    rows: tuple[KeyRow, ...]
    absent: tuple[SiteConfig, ...]
    problems: tuple[str, ...]


def add_keys(cluster: ClusterConfig, entropy: Entropy, key_id: str | None = None) -> KeyChange:
    """Add a generation to every site's keys; nothing dials with it yet. Without an id it gets the next of k1, k2, ...

    Raises:
        ConfigInvalid: the id is none or there already, or a file cannot be read or written; nothing was changed.
    """
    with _opened(cluster) as files:
        new_id = files.next_id() if key_id is None else key_id
        if not is_key_id(new_id):
            raise ConfigInvalid(
                [
                    f"{new_id!r:.80}: a key id has 1 to {KEY_ID_BYTES_MAX} letters, digits and . _ : - "
                    "and begins with a letter or digit"
                ]
            )
        made = make_keys(cluster.sites, entropy, new_id)
        deliveries = {site.name: cluster.keys_dir / f"{site.name}.{new_id}.json" for site in files.absent}
        problems = [
            f"{path}: is there already; carry it to its machine, or remove it"
            for path in deliveries.values()
            if path.exists()
        ]
        for site, table in files.tables.items():
            problems += files.merge(site, table, KeyTable.model_validate_json(made[site.name]))
        if problems:
            raise ConfigInvalid(problems)
        changed = files.save({path: made[name] for name, path in deliveries.items()})
        return KeyChange(new_id, changed, files.absent, deliveries)


def take_keys(cluster: ClusterConfig, delivery: Path) -> KeyChange:
    """Take in the keys that `add_keys` made on another machine for a site of this one.

    A site that has no file here gets the delivery as its file, and dials with these keys.

    Raises:
        ConfigInvalid: the delivery or the site's file cannot be used, or has keys of this id; nothing was changed.
    """
    brought = read_key_file(delivery)
    site = cluster.by_id(brought.site_id)
    if site is None:
        raise ConfigInvalid([f"{delivery}: site_id: the configuration has no site {brought.site_id}"])
    ring_of(delivery, site, brought)
    key_ids = {key.key_id for key in brought.keys}
    if len(key_ids) != 1:
        raise ConfigInvalid([f"{delivery}: keys: expected keys of one id, got {', '.join(sorted(key_ids)) or 'none'}"])
    with _opened(cluster, may_be_empty=True) as files:
        created: dict[Path, str] = {}
        if site in files.tables:
            problems = files.merge(site, files.tables[site], brought)
            if problems:
                raise ConfigInvalid(problems)
        else:
            created[cluster.key_file(site)] = key_file_text(brought)
        changed = files.save(created)
        return KeyChange(key_ids.pop(), changed, tuple(other for other in files.absent if other is not site), {})


def use_keys(cluster: ClusterConfig, key_id: str) -> KeyChange:
    """Let every site whose file is here dial with a generation from now on. Nothing happens if it does.

    Raises:
        ConfigInvalid: a site or a peer of it has no such key in its file yet; nothing was changed.
    """
    with _opened(cluster) as files:
        files.check_known(key_id)
        problems: list[str] = []
        for site, table in files.tables.items():
            for peer in cluster.peers_of(site.site_id):
                problems += files.lacking(key_id, dialer=site, listener=peer)
                table.use[str(peer.site_id)] = key_id
        if problems:
            raise ConfigInvalid(problems)
        return KeyChange(key_id, files.save(), files.absent, {})


def retire_keys(cluster: ClusterConfig, key_id: str) -> KeyChange:
    """Remove a generation from the files that have it; a connection that was made with it ends when its site reloads.

    Raises:
        ConfigInvalid: it is in use, or is the only one of some pair; nothing was changed.
    """
    with _opened(cluster) as files:
        files.check_known(key_id)
        problems: list[str] = []
        for site, table in files.tables.items():
            problems += files.needing(key_id, site, table)
            table.keys = [key for key in table.keys if key.key_id != key_id]
            # What is left are sites that the configuration no longer has.
            table.use = {listener: used for listener, used in table.use.items() if used != key_id}
        if problems:
            raise ConfigInvalid(problems)
        return KeyChange(key_id, files.save(), files.absent, {})


def list_keys(cluster: ClusterConfig) -> KeyList:
    """The keys in the files on this machine.

    Raises:
        ConfigInvalid: there is none, or one cannot be used.
    """
    with _opened(cluster) as files:
        holders: dict[tuple[str, int, int], list[SiteConfig]] = {}
        for site, table in files.tables.items():
            for key in table.keys:
                holders.setdefault((key.key_id, key.dialer, key.listener), []).append(site)
        rows: list[KeyRow] = []
        problems: list[str] = []
        for (key_id, dialer_id, listener_id), held_by in sorted(holders.items()):
            dialer, listener = cluster.by_id(dialer_id), cluster.by_id(listener_id)
            table_of_dialer = files.tables.get(dialer) if dialer is not None else None
            used = None if table_of_dialer is None else table_of_dialer.use.get(str(listener_id)) == key_id
            rows.append(
                KeyRow(
                    key_id,
                    dialer.name if dialer else str(dialer_id),
                    listener.name if listener else str(listener_id),
                    used,
                    tuple(site.name for site in held_by),
                )
            )
            if dialer is not None and listener is not None:
                problems += files.lacking(key_id, dialer=dialer, listener=listener)
        for site, table in files.tables.items():
            problems += [
                f"{cluster.key_file(site)}: no key is in use for connections to site {peer.name}"
                for peer in cluster.peers_of(site.site_id)
                if str(peer.site_id) not in table.use
            ]
        return KeyList(tuple(rows), files.absent, tuple(problems))


class _OpenFiles:
    """The key files on this machine while nobody else changes them. Tables are edited in place and saved together.

    Attributes:
        tables: the content of each site's file that is here.
        absent: the sites whose files are not.
    """

    def __init__(self, cluster: ClusterConfig) -> None:
        self._cluster = cluster
        self.tables: dict[SiteConfig, KeyTable] = {}
        problems: list[str] = []
        for site in cluster.sites:
            path = cluster.key_file(site)
            if not os.path.lexists(path):
                continue
            try:
                found = read_key_file(path)
                ring_of(path, site, found)
                self.tables[site] = found
            except ConfigInvalid as invalid:
                problems += invalid.problems
        if problems:
            raise ConfigInvalid(problems)
        self.absent = tuple(site for site in cluster.sites if site not in self.tables)
        self._before = {site: key_file_text(table) for site, table in self.tables.items()}

    def key_ids(self) -> list[str]:
        return sorted({key.key_id for table in self.tables.values() for key in table.keys})

    def next_id(self) -> str:
        numbers = [int(key_id[1:]) for key_id in self.key_ids() if re.fullmatch(r"k[1-9][0-9]{0,8}", key_id)]
        return f"k{max(numbers, default=0) + 1}"

    def check_known(self, key_id: str) -> None:
        known = self.key_ids()
        if key_id not in known:
            raise ConfigInvalid(
                [f"{self._cluster.keys_dir}: no file here has a key {key_id!r:.80}; there are: {', '.join(known)}"]
            )

    def merge(self, site: SiteConfig, table: KeyTable, more: KeyTable) -> list[str]:
        """Add another table's keys to a site's; problems instead if it has keys of that id."""
        path = self._cluster.key_file(site)
        new_ids = {key.key_id for key in more.keys}
        present = sorted(new_ids & {key.key_id for key in table.keys})
        if present:
            return [f"{path}: has keys {key_id} already; take another id, or retire that one" for key_id in present]
        table.keys += more.keys
        return []

    def lacking(self, key_id: str, *, dialer: SiteConfig, listener: SiteConfig) -> list[str]:
        """Why a site could not dial another with a generation: a file that is here lacks the key, or has another."""
        problems: list[str] = []
        secrets = set()
        for site in (dialer, listener):
            table = self.tables.get(site)
            if table is None:
                continue
            identity = (key_id, dialer.site_id, listener.site_id)
            found = {key.secret for key in table.keys if (key.key_id, key.dialer, key.listener) == identity}
            secrets |= found
            if not found:
                problems.append(
                    f"{self._cluster.key_file(site)}: has no key {key_id} for connections from site {dialer.name} "
                    f"to site {listener.name}"
                )
        if len(secrets) > 1:
            problems.append(
                f"{self._cluster.keys_dir}: the keys {key_id} for connections from site {dialer.name} to site "
                f"{listener.name} differ in their files; retire {key_id}, and add another"
            )
        return problems

    def needing(self, key_id: str, site: SiteConfig, table: KeyTable) -> list[str]:
        """Why a generation may not go from a site's file."""
        path, peers = self._cluster.key_file(site), self._cluster.peers_of(site.site_id)
        users = [peer.name for peer in peers if table.use.get(str(peer.site_id)) == key_id]
        if users:
            return [
                f"{path}: {key_id} is in use for connections to {', '.join(users)}; first: claudefs-repl keys use ID"
            ]
        ids_of_dialers: dict[int, set[str]] = {}
        for key in table.keys:
            ids_of_dialers.setdefault(key.dialer, set()).add(key.key_id)
        alone = [peer.name for peer in peers if ids_of_dialers.get(peer.site_id) == {key_id}]
        if alone:
            return [
                f"{path}: {key_id} is the only key for connections from {', '.join(alone)}; first: claudefs-repl keys add"
            ]
        return []

    def save(self, more: Mapping[Path, str] | None = None) -> tuple[Path, ...]:
        """Write what has changed, and more files beside; the paths of the key files that are not as before."""
        contents: dict[Path, str] = {}
        for site, table in self.tables.items():
            text = key_file_text(table)
            if text != self._before[site]:
                path = self._cluster.key_file(site)
                ring_of(path, site, table)
                if len(text) > KEY_FILE_BYTES_MAX:
                    raise ConfigInvalid([f"{path}: would have over {KEY_FILE_BYTES_MAX} bytes; retire old keys first"])
                contents[path] = text
        changed = [*contents, *(path for path in more or {} if path in map(self._cluster.key_file, self.absent))]
        replace_files({**contents, **(more or {})})
        return tuple(changed)


@contextlib.contextmanager
def _opened(cluster: ClusterConfig, *, may_be_empty: bool = False) -> Iterator[_OpenFiles]:
    """The key files, with a lock on their directory that another command waits for."""
    remedy = f"make keys for all sites with: claudefs-repl init {cluster.path.parent}"
    try:
        if may_be_empty:
            cluster.keys_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(cluster.keys_dir, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise ConfigInvalid([f"{cluster.keys_dir}: cannot be read: {error.strerror}; {remedy}"]) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        files = _OpenFiles(cluster)
        if not files.tables and not may_be_empty:
            raise ConfigInvalid([f"{cluster.keys_dir}: has no key file of a site of this cluster; {remedy}"])
        yield files
    finally:
        os.close(descriptor)
