"""Checking one table of `cluster.toml` against a model: what is wrong is told by file key and expectation."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError


class Table(BaseModel):
    """A table of the file: no unknown keys, no conversions. Every field's description says what is expected."""

    model_config = ConfigDict(extra="forbid", strict=True)


def check_table(model: type[BaseModel], values: object, where: str, problems: list[str]) -> dict[str, Any] | None:
    """One table's values with defaults filled in, or None and its problems appended."""
    if not isinstance(values, dict):
        problems.append(f"{where}: expected a table, got {values!r}")
        return None
    try:
        return model.model_validate(values).model_dump()
    except ValidationError as invalid:
        fields = model.model_fields
        for error in invalid.errors():
            key = str(error["loc"][0])
            if error["type"] == "extra_forbidden":
                problems.append(f"{where}.{key}: unknown key; there are: {', '.join(fields)}")
            elif error["type"] == "missing":
                problems.append(f"{where}.{key}: missing; expected {fields[key].description}")
            else:
                problems.append(f"{where}.{key}: expected {fields[key].description}, got {values[key]!r}")
        return None
