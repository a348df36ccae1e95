"""Text from a peer that ends in logs and on terminals: stable words for programs, one short line for people."""

from __future__ import annotations

import re

CODE_BYTES_MAX = 32
DETAIL_BYTES_MAX = 512
"""One line of a log, with room for two names of the longest kind."""
_CODE = re.compile(r"[a-z][a-z0-9_]{0,31}")


def is_code(text: str) -> bool:
    """Whether this is a stable word such as `key_unknown`."""
    return _CODE.fullmatch(text) is not None


def cut_detail(text: str) -> str:
    """A line of at most DETAIL_BYTES_MAX bytes of UTF-8 in which nothing can move a terminal's cursor."""
    shown = "".join(c if c.isprintable() else "?" for c in text[:DETAIL_BYTES_MAX])
    return shown.encode()[:DETAIL_BYTES_MAX].decode(errors="ignore")
