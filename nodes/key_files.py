"""Key files: `keys/SITE.json` holds the keys that one site shares with its peers, and nobody else may read it.

| field   | content                                                                                  |
|---------|------------------------------------------------------------------------------------------|
| version | 1                                                                                        |
| site_id | whose file this is                                                                       |
| use     | listener's site id -> the id of the key with which this site dials it                    |
| keys    | list of {key_id, dialer, listener (site ids), secret (64 hexadecimal digits)}            |

Each ordered pair of sites has a key of its own, random, in both sites' files and in no other: nothing derives from a
secret of the whole cluster, so no site can speak as another. A pair may have several keys, while they are rotated.
"""

from __future__ import annotations

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
KEY_FILE_BYTES_MAX = 4 << 20
"""Room for two keys with each of 2,047 sites in both directions."""

_Id = Annotated[int, Field(ge=1, le=SITE_ID_MAX, description=f"a whole number from 1 to {SITE_ID_MAX}")]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _KeyTable(_Table):
    key_id: str
    dialer: _Id
    listener: _Id
    secret: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", repr=False)]


class _KeyFile(_Table):
    version: int
    site_id: _Id
    use: dict[Annotated[str, Field(pattern=r"^[1-9][0-9]{0,3}$")], str]
    keys: list[_KeyTable]


def make_keys(sites: Sequence[SiteConfig], entropy: Entropy) -> dict[str, str]:
    """Fresh keys for every ordered pair of sites: the content of each site's file, by the site's name."""
    keys: dict[SiteId, list[dict[str, object]]] = {site.site_id: [] for site in sites}
    use: dict[SiteId, dict[str, str]] = {site.site_id: {} for site in sites}
    for dialer in sites:
        for listener in sites:
            if dialer is listener:
                continue
            key_id = f"{dialer.site_id}-{listener.site_id}-{entropy(4).hex()}"
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
    try:
        found = _KeyFile.model_validate_json(_read_private(path))
    except ValidationError as invalid:
        raise ConfigInvalid([_explain(path, error["loc"], error["msg"]) for error in invalid.errors()]) from None
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
        remedy = f"make keys for all sites with: claudefs-repl init {path.absolute().parent.parent}"
        raise ConfigInvalid([f"{path}: there is no such key file; {remedy}"]) from None
    except OSError as error:
        raise ConfigInvalid([f"{path}: cannot be read: {error.strerror}"]) from error
    if len(content) > KEY_FILE_BYTES_MAX:
        raise ConfigInvalid([f"{path}: expected at most {KEY_FILE_BYTES_MAX} bytes"])
    return content


def _explain(path: Path, where: tuple[int | str, ...], message: str) -> str:
    key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in where).lstrip(".")
    return f"{path}: {key or 'content'}: {message.replace('Input should be', 'expected')}"
