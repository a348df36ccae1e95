"""JSON of the small files in a data directory: whatever lies in one, it is a value or one kind of error."""

from __future__ import annotations

import json
from typing import Any, NoReturn


def parse_json(content: bytes) -> Any:
    """The value of a file's content.

    Raises:
        ValueError: not JSON, nested deeper than any file of ours, or with a number that JSON does not have.
    """
    try:
        return json.loads(content, parse_constant=_refuse)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number of JSON")
