"""Where extracted faces go: tar files that webdataset reads, or plain files in folders."""

import os
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

_BLOCK = 512


class TarSink:
    """Appends samples to faces-000000.tar, faces-000001.tar, ...; a sample is never cut in two.

    The bytes are a plain POSIX tar, so that a shard that was torn by a kill can be cut back to the last whole
    sample and gone on with.

    Args:
        folder: where the shards are.
        max_bytes: a shard that has grown past this is ended.
        ends: of a resumed run: how far each shard is whole.
    """

    def __init__(self, folder: Path, max_bytes: int, ends: Mapping[str, int] | None = None) -> None:
        self.folder, self.max_bytes = folder, max_bytes
        ends = dict(ends or {})
        for path in folder.glob("faces-*.tar"):
            if path.name not in ends:  # nothing of it was told of: it was torn in its first sample
                path.unlink()
        self.number = max((int(name[6:-4]) for name in ends), default=0)
        self._file: IO[bytes] | None = None
        if ends:
            path = folder / self._name
            self._file = path.open("r+b")
            self._file.truncate(ends[path.name])
            self._file.seek(0, os.SEEK_END)

    @property
    def _name(self) -> str:
        return f"faces-{self.number:06d}.tar"

    def write(self, members: Sequence[tuple[str, bytes]]) -> tuple[str, int]:
        """Add one sample's files; returns the shard's name and its length, ("", 0) where there are none."""
        if not members:
            return "", 0
        if self._file is not None and self._file.tell() >= self.max_bytes:
            self._end()
            self.number += 1
        if self._file is None:
            self._file = (self.folder / self._name).open("w+b")
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(data), 0o644
            self._file.write(info.tobuf(tarfile.PAX_FORMAT))
            self._file.write(data + bytes(-len(data) % _BLOCK))
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._name, self._file.tell()

    def _end(self) -> None:
        if self._file is not None:
            self._file.write(bytes(2 * _BLOCK))  # the end mark of a tar
            self._file.close()
            self._file = None

    def close(self) -> None:
        """Write the end mark of the shard in hand."""
        self._end()


class FolderSink:
    """Writes every file to its own place below a folder; files that a kill left behind are written again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, members: Sequence[tuple[str, bytes]]) -> tuple[str, int]:
        """Write one sample's files; returns ("", 0): there is no shard."""
        for name, data in members:
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return "", 0

    def close(self) -> None:
        """Nothing is open."""
