"""Key files: `keys/SITE.json` holds the keys that one site shares with its peers, and nobody else may read it.

| field   | content                                                                                  |
|---------|------------------------------------------------------------------------------------------|
| version | 1                                                                                        |
| site_id | whose file this is                                                                       |
| use     | listener's site id -> the id of the key with which this site dials it                    |
| keys    | list of {key_id, dialer, listener (site ids), secret (64 hexadecimal digits)}            |

Each ordered pair of sites has a key of its own, random, in both sites' files and in no other: nothing derives from a
secret of the whole cluster, so no site can speak as another.

The keys that were made together, one for each pair, are a *generation* and have one key id. Files hold two of them while
keys are rotated: see `nodes.key_rotation`.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from claudefs_repl.error import ConfigInvalid
from claudefs_repl.journal import SITE_ID_MAX, SiteId
from claudefs_repl.topology import SiteConfig
from nodes.seams import Entropy
from protocol.keys import SECRET_BYTES, KeyRing, PairKey

KEY_FILE_VERSION = 1
FIRST_KEY_ID = "k1"
KEY_FILE_BYTES_MAX = 4 << 20
"""Room for two keys with each of 2,047 sites in both directions."""

_Id = Annotated[int, Field(ge=1, le=SITE_ID_MAX, description=f"a whole number from 1 to {SITE_ID_MAX}")]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Key(_Table):
    key_id: str
    dialer: _Id
    listener: _Id
    secret: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", repr=False)]


class KeyTable(_Table):
    """A key file's content, of the right shape; `ring_of` checks what it says."""

    version: int
    site_id: _Id
    use: dict[Annotated[str, Field(pattern=r"^[1-9][0-9]{0,3}$")], str]
    keys: list[_Key]


def make_keys(sites: Sequence[SiteConfig], entropy: Entropy, key_id: str = FIRST_KEY_ID) -> dict[str, str]:
    """A generation of fresh keys, one for every ordered pair of sites: the content of each site's file, by its name."""
    keys: dict[SiteId, list[dict[str, object]]] = {site.site_id: [] for site in sites}
    use: dict[SiteId, dict[str, str]] = {site.site_id: {} for site in sites}
    for dialer in sites:
        for listener in sites:
            if dialer is listener:
                continue
            key: dict[str, object] = {
                "key_id": key_id,
                "dialer": dialer.site_id,
                "listener": listener.site_id,
                "secret": entropy(SECRET_BYTES).hex(),
            }
            keys[dialer.site_id].append(key)
            keys[listener.site_id].append(key)
            use[dialer.site_id][str(listener.site_id)] = key_id
    return {
        site.name: json.dumps(
            {
                "version": KEY_FILE_VERSION,
                "site_id": site.site_id,
                "use": use[site.site_id],
                "keys": keys[site.site_id],
            },
            indent=1,
        )
        + "\n"
        for site in sites
    }


def write_keys(directory: Path, contents: Mapping[str, str]) -> list[Path]:
    """Write each site's file, mode 0600. A file that is there already is never overwritten.

    Raises:
        ConfigInvalid: one is there, or cannot be written.
    """
    paths = [directory / f"{name}.json" for name in contents]
    present = [f"{path}: is there already; it is left as it is" for path in paths if path.exists()]
    if present:
        raise ConfigInvalid(present)
    for path, content in zip(paths, contents.values(), strict=True):
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with open(descriptor, "w", encoding="ascii") as file:
                file.write(content)
        except OSError as error:
            raise ConfigInvalid([f"{path}: cannot be written: {error.strerror}"]) from error
    return paths


def load_keys(path: Path, site: SiteConfig) -> KeyRing:
    """The keys of one site.

    Raises:
        ConfigInvalid: with one line for each problem; secrets are never shown.
    """
    return ring_of(path, site, read_key_file(path))


def read_key_file(path: Path) -> KeyTable:
    """A key file's content, if only its owner may read it.

    Raises:
        ConfigInvalid: with one line for each problem; secrets are never shown.
    """
    try:
        return KeyTable.model_validate_json(_read_private(path))
    except ValidationError as invalid:
        raise ConfigInvalid([_explain(path, error["loc"], error["msg"]) for error in invalid.errors()]) from None


def ring_of(path: Path, site: SiteConfig, found: KeyTable) -> KeyRing:
    """The keys of a file's content.

    Raises:
        ConfigInvalid: it is another site's, or not all of its keys can be this site's.
    """
    problems = []
    if found.version != KEY_FILE_VERSION:
        problems.append(f"{path}: version: expected {KEY_FILE_VERSION}, got {found.version}")
    if found.site_id != site.site_id:
        problems.append(f"{path}: site_id: expected {site.site_id} (site {site.name}), got {found.site_id}")
    keys: list[PairKey] = []
    for index, key in enumerate(found.keys):
        try:
            keys.append(PairKey(key.key_id, SiteId(key.dialer), SiteId(key.listener), bytes.fromhex(key.secret)))
        except ValueError as error:
            problems.append(f"{path}: keys[{index}]: {error}")
    for listener, key_id in found.use.items():
        if not any((key.key_id, key.dialer, str(key.listener)) == (key_id, found.site_id, listener) for key in keys):
            problems.append(f"{path}: use.{listener}: expected the id of a key from {found.site_id} to {listener}")
    if problems:
        raise ConfigInvalid(problems)
    try:
        return KeyRing(site.site_id, keys, {SiteId(int(listener)): key_id for listener, key_id in found.use.items()})
    except ValueError as error:
        raise ConfigInvalid([f"{path}: keys: {error}"]) from error


def _read_private(path: Path) -> bytes:
    """A key file's bytes, if only its owner may read it. Checked on the open file, so that it is this file's mode."""
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise ConfigInvalid([f"{path}: expected a file"])
            if status.st_mode & 0o077:
                mode = stat.S_IMODE(status.st_mode)
                raise ConfigInvalid(
                    [f"{path}: expected mode 0600, got {mode:04o}: others could read the keys; run: chmod 600 {path}"]
                )
            content = file.read(KEY_FILE_BYTES_MAX + 1)
    except FileNotFoundError:
        remedy = (
            f"restore it from a copy; or, to begin with new keys for all sites, remove {path.parent}/*.json everywhere "
            f"and run: claudefs-repl init {path.absolute().parent.parent}"
        )
        raise ConfigInvalid([f"{path}: there is no such key file; {remedy}"]) from None
    except OSError as error:
        raise ConfigInvalid([f"{path}: cannot be read: {error.strerror}"]) from error
    if len(content) > KEY_FILE_BYTES_MAX:
        raise ConfigInvalid([f"{path}: expected at most {KEY_FILE_BYTES_MAX} bytes"])
    return content


def _explain(path: Path, where: tuple[int | str, ...], message: str) -> str:
    key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in where).lstrip(".")
    return f"{path}: {key or 'content'}: {message.replace('Input should be', 'expected')}"


def key_file_text(table: KeyTable) -> str:
    """A key file's content as it is written."""
    return json.dumps(table.model_dump(), indent=1) + "\n"


def replace_files(contents: Mapping[Path, str]) -> None:
    """Give files new content together, mode 0600, or none of them.

    All are on disk under other names before the first takes its place. If one cannot take its place, those before it get
    back what they had; a crash at that moment leaves some new and some old, each of them whole.

    Raises:
        ConfigInvalid: a file cannot be written; none was changed.
    """
    targets = {path.resolve(): content for path, content in contents.items()}
    former: dict[Path, bytes | None] = {}
    try:
        for target, content in targets.items():
            former[target] = target.read_bytes() if target.exists() else None
            _write_beside(target, content.encode())
        replaced: list[Path] = []
        try:
            for target in targets:
                os.replace(_beside(target), target)
                replaced.append(target)
            for directory in {target.parent for target in targets}:
                _sync_directory(directory)
        except OSError:
            for target in replaced:
                _put_back(target, former[target])
            raise
    except OSError as error:
        where = error.filename2 or error.filename or next(iter(targets))
        raise ConfigInvalid([f"{where}: cannot be written: {error.strerror}; no key file was changed"]) from error
    finally:
        for target in targets:
            with contextlib.suppress(OSError):  # gone already, or the directory is what cannot be written
                _beside(target).unlink()


def _beside(target: Path) -> Path:
    return target.with_name(f".{target.name}.new")


def _write_beside(target: Path, content: bytes) -> None:
    """Write and sync what will replace a file; its owner stays, so that a site of another user can still read it."""
    path = _beside(target)
    path.unlink(missing_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        if target.exists():
            owner = target.stat()
            os.fchown(file.fileno(), owner.st_uid, owner.st_gid)
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _put_back(target: Path, content: bytes | None) -> None:
    with contextlib.suppress(OSError):  # the error that led here is told
        if content is None:
            target.unlink()
        else:
            _write_beside(target, content)
            os.replace(_beside(target), target)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
