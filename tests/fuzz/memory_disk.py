"""The disk seam over a dictionary: what a decoder of files needs, and nothing that can fail."""

from __future__ import annotations

from collections.abc import Coroutine, Sequence
from typing import Any


class MemoryFile:
    """A file as `nodes.seams.File` wants it."""

    def __init__(self, path: str, content: bytearray) -> None:
        self.path = path
        self._content = content

    async def read(self, offset: int, length: int) -> bytes:
        return bytes(self._content[offset : offset + length])

    async def write(self, offset: int, buffers: Sequence[Any], *, sync: bool) -> None:
        data = b"".join(map(bytes, buffers))
        assert offset + len(data) <= len(self._content), "only what is allocated is written"
        self._content[offset : offset + len(data)] = data

    async def sync(self) -> None:
        return

    async def close(self) -> None:
        return


class MemoryStorage:
    """A data directory as `nodes.seams.Storage` wants it, all of it in memory; nothing it does waits."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = {path: bytearray(content) for path, content in files.items()}

    async def create(self, path: str, size: int) -> MemoryFile:
        self.files[path] = bytearray(size)
        return MemoryFile(path, self.files[path])

    async def open(self, path: str) -> MemoryFile:
        if path not in self.files:
            raise FileNotFoundError(path)
        return MemoryFile(path, self.files[path])

    async def read_file(self, path: str) -> bytes | None:
        content = self.files.get(path)
        return None if content is None else bytes(content)

    async def replace_file(self, path: str, content: bytes) -> None:
        self.files[path] = bytearray(content)

    async def names(self, path: str) -> list[str]:
        inside = [name.removeprefix(f"{path}/") for name in self.files if name.startswith(f"{path}/")]
        return sorted({name.split("/")[0] for name in inside})

    async def size(self, path: str) -> int:
        if path not in self.files:
            raise FileNotFoundError(path)
        return len(self.files[path])

    async def make_dir(self, path: str) -> None:
        return

    async def remove(self, path: str) -> None:
        for name in [name for name in self.files if name == path or name.startswith(f"{path}/")]:
            del self.files[name]

    async def rename(self, old: str, new: str) -> None:
        for name in [name for name in self.files if name == old or name.startswith(f"{old}/")]:
            self.files[new + name.removeprefix(old)] = self.files.pop(name)

    async def copy(self, source: str, target: str) -> None:
        self.files[target] = bytearray(self.files[source])

    async def sync_dir(self, path: str) -> None:
        return


def run_now(work: Coroutine[Any, Any, Any]) -> Any:
    """The result of a coroutine that waits for nothing, without an event loop."""
    try:
        work.send(None)
    except StopIteration as done:
        return done.value
    finally:
        work.close()
    raise AssertionError("it waits for something")
