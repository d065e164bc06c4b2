"""Where image files lie: a folder or a zip archive, read by keys that cannot leave it."""

from __future__ import annotations

import errno
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Protocol

from longview.errors import InputError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm")
MAX_FILE_BYTES = 1 << 28  # of one image file or list, unpacked


class KeyRefusedError(ValueError):
    """A key that names nothing inside the store: it is absolute, or leads out of the root."""


class Store(Protocol):
    """Files by key; a key is a path below the root with `/` between its parts."""

    @property
    def path(self) -> Path: ...

    def read(self, key: str) -> bytes:
        """Return the content of a file.

        Raises:
            KeyRefusedError: the key leaves the root.
            OSError: no such file, or one that cannot be read.
        """

    def has(self, key: str) -> bool:
        """Return whether there is a file of that key."""

    def folders(self, under: str = "") -> list[str]:
        """Return the names of the folders directly in `under`, sorted."""

    def images(self, under: str = "") -> Iterator[str]:
        """Yield the keys of all files below `under` that are named like images, sorted within each folder.

        Raises:
            InputError: an archive with names that lead out of it, a folder with a symbolic link to a folder.
        """


def safe_key(key: str) -> str:
    """Return `key` with `/` between its parts and without `.` parts.

    Raises:
        KeyRefusedError: an absolute path, a drive, a part `..`, or a character that no path has.
    """
    parts = PurePosixPath(key.replace("\\", "/"))
    if parts.is_absolute() or ".." in parts.parts or (parts.parts and parts.parts[0].endswith(":")):
        raise KeyRefusedError("the path leaves the folder of the images")
    if "\0" in key or not parts.parts:
        raise KeyRefusedError("not a path")
    return str(parts)


class FolderStore:
    """Files below a folder. Symbolic links to files are followed as long as they stay inside it, those to folders not.

    A link to a folder may lead in a circle, or to far more than the user thinks of.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._root = path.resolve()

    def read(self, key: str) -> bytes:
        place = self._place(key)
        if place.stat().st_size > MAX_FILE_BYTES:
            raise OSError(f"the file is larger than {MAX_FILE_BYTES >> 20} MiB")
        return place.read_bytes()

    def has(self, key: str) -> bool:
        return self._place(key).is_file()

    def folders(self, under: str = "") -> list[str]:
        place = self._root / under
        inside = place.iterdir() if place.is_dir() else ()
        return sorted(p.name for p in inside if p.is_dir() and not p.is_symlink() and not _hidden(p.name))

    def images(self, under: str = "") -> Iterator[str]:
        """Yield the keys of the images, folder by folder; hidden files and folders are left out.

        Raises:
            InputError: a symbolic link to a folder.
        """
        for folder, inside, names in os.walk(self._root / under):
            inside[:] = sorted(name for name in inside if not _hidden(name))
            for name in inside:
                if (link := Path(folder) / name).is_symlink():
                    raise InputError(
                        f"{self.path}: {link.relative_to(self._root).as_posix()} is a symbolic link to a folder, which "
                        "is not followed: put the folder itself there, or list its images in a table of paths and "
                        "labels (--images, with --image root=FOLDER)"
                    )
            base = Path(folder).relative_to(self._root).as_posix()
            for name in sorted(names):
                if name.lower().endswith(SUFFIXES) and not _hidden(name):
                    yield name if base == "." else f"{base}/{name}"

    def _place(self, key: str) -> Path:
        try:
            place = (self._root / safe_key(key)).resolve()
        except RuntimeError:  # what Python 3.11 and 3.12 raise; later ones leave it to whoever opens the file
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP)) from None
        if not place.is_relative_to(self._root):
            raise KeyRefusedError("a symbolic link leads out of the folder of the images")
        return place


class ZipStore:
    """Members of a zip archive, read without unpacking. Each process opens the archive for itself."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._archive: zipfile.ZipFile | None = None
        self._process = -1
        self._open()

    def read(self, key: str) -> bytes:
        archive = self._open()
        try:
            member = archive.getinfo(safe_key(key))
            if member.file_size > MAX_FILE_BYTES:
                raise OSError(f"the file is larger than {MAX_FILE_BYTES >> 20} MiB")
            return archive.read(member)
        except KeyError:
            raise FileNotFoundError("no such file in the archive") from None
        except (zipfile.BadZipFile, RuntimeError, NotImplementedError, EOFError) as error:
            raise OSError(f"cannot be unpacked: {error}") from None

    def has(self, key: str) -> bool:
        return safe_key(key) in self._open().NameToInfo

    def folders(self, under: str = "") -> list[str]:
        prefix = f"{under}/" if under else ""
        inside = (name[len(prefix) :] for name in self._names() if name.startswith(prefix))
        return sorted({name.partition("/")[0] for name in inside if "/" in name} - {"", ".", ".."})

    def images(self, under: str = "") -> Iterator[str]:
        prefix = f"{under}/" if under else ""
        for name in sorted(self._names()):
            if name.startswith(prefix) and name.lower().endswith(SUFFIXES):
                try:
                    yield safe_key(name)
                except KeyRefusedError as error:
                    raise InputError(f"{self.path}: refused, the archive holds {name!r}: {error}") from None

    def _names(self) -> list[str]:
        names = self._open().namelist()
        return [name for name in names if not any(_hidden(part) for part in name.split("/"))]

    def _open(self) -> zipfile.ZipFile:
        if self._archive is None or self._process != os.getpid():
            try:
                self._archive, self._process = zipfile.ZipFile(self.path), os.getpid()
            except (zipfile.BadZipFile, EOFError) as error:
                raise InputError(f"{self.path}: not a readable zip archive ({error}); copy it again") from None
        return self._archive

    def __getstate__(self) -> dict[str, Path]:
        return {"path": self.path}

    def __setstate__(self, state: dict[str, Path]) -> None:
        self.path, self._archive, self._process = state["path"], None, -1


def open_store(path: Path) -> Store:
    """Open the folder or zip archive at `path`.

    Raises:
        InputError: nothing there, or neither of the two.
    """
    if path.is_dir():
        return FolderStore(path)
    if path.is_file():
        with path.open("rb") as file:
            if file.read(2) == b"PK":
                return ZipStore(path)
        raise InputError(f"{path}: neither a folder of images nor a zip archive")
    raise InputError(f"{path}: no such folder or archive of images")


def _hidden(name: str) -> bool:
    return name.startswith((".", "__MACOSX")) and name not in (".", "..")
