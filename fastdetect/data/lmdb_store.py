"""Pictures in an LMDB folder, by the keys that DeepfakeBench's script gives them."""

from pathlib import Path
from typing import Any

from fastdetect.errors import DataError, MissingDependencyError


class LmdbStore:
    """A read-only LMDB folder.

    Args:
        folder: holds data.mdb.
    Raises:
        MissingDependencyError: the package lmdb is not installed.
        DataError: it is no LMDB folder.
    """

    def __init__(self, folder: Path) -> None:
        try:
            import lmdb
        except ImportError as error:
            raise MissingDependencyError(
                f"reading {folder} needs the package lmdb: pip install 'fastdetect[train]'"
            ) from error
        self.folder, self._error = folder, lmdb.Error
        try:
            # no lock: the folder may be on a read-only or network disk; no readahead: reads are in random order
            self._env: Any = lmdb.open(str(folder), readonly=True, create=False, lock=False, readahead=False)
        except lmdb.Error as error:
            raise DataError(f"{folder} is not a readable LMDB folder: {error}") from error

    def get(self, key: str) -> bytes | None:
        """The value of a key, None where there is none; DataError where the folder is damaged."""
        try:
            with self._env.begin() as txn:
                value: bytes | None = txn.get(key.encode())
        except self._error as error:
            raise DataError(f"{self.folder}: {key!r} cannot be read: {error}") from error
        return value

    def key_of(self, name: str) -> str | None:
        """The key under which `SET/a/b.png` is stored, None where it is not.

        DeepfakeBench joins the set's name with a back-slash and the rest as the writer's system does: so a
        folder made on Windows has back-slashes only, one made on Linux a mixture.
        """
        head, _, rest = name.partition("/")
        for key in (f"{head}\\{rest}", name.replace("/", "\\"), name):
            with self._env.begin() as txn:
                if txn.cursor().set_key(key.encode()):
                    return key
        return None

    def close(self) -> None:
        """Let go of the folder."""
        self._env.close()
