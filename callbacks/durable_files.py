"""Files of ``torch.save`` that are whole on disk, or not there at all."""

import logging
import os
import zipfile
import zlib
from collections.abc import Iterator
from itertools import count, pairwise
from pathlib import Path
from typing import IO, Any

import torch

log = logging.getLogger(__name__)

PART = ".part"
BAD_BYTES = (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, ValueError)  # of zipfile; all seen


def save_durably(content: Any, path: str | Path, keep: int = 1) -> None:
    """Writes ``content`` with ``torch.save``; the file has the old content or the new one at any moment.

    Args:
        content: what ``torch.save`` takes.
        path: target; its folder is made if need be.
        keep: versions that stay, the new one included.

    Raises:
        OSError: the disk is full, the folder is not writable; the files are as they were.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(path)
    part, unnamed = _part(path), _unnamed(path.parent)
    try:
        with open(part if unnamed is None else unnamed, "wb") as file:
            _write(content, file)
            _age(path, keep)  # takes its time, and while the new file has no name a kill leaves nothing
            if unnamed is not None and not _name(unnamed, part):
                with open(part, "wb") as named:
                    _write(content, named)
        os.replace(part, path)
    except BaseException:
        _remove_leftovers(path)
        raise
    _sync_folder(path.parent)


def load_durably(path: str | Path, map_location: Any = "cpu", weights_only: bool = True) -> Any:
    """Reads what :func:`save_durably` wrote, the newest version whose checksums are right.

    Args:
        path: of the newest version.
        map_location: as of ``torch.load``, and so is ``weights_only``.
        weights_only: refuses whatever would run code.

    Raises:
        FileNotFoundError: there is no version of it.
        OSError: every version is damaged; names all of them.
    """
    path, damage = Path(path), list[str]()
    for version in versions(path):
        problem = damage_of(version)
        if problem is None:
            try:
                content = torch.load(version, map_location=map_location, weights_only=weights_only)
            except (RuntimeError, EOFError, ValueError) as error:  # the zip's own lists have no checksum
                problem = f"{type(error).__name__}: {str(error).splitlines()[0][:80]}"
            else:
                if damage or version != path:
                    log.warning("%s; going on from the older '%s'", "; ".join(damage) or f"no '{path}'", version)
                return content
        damage.append(f"'{version}' is damaged ({problem})")
    if not damage:
        raise FileNotFoundError(f"no checkpoint at '{path}'; check the path.")
    raise OSError(f"{'; '.join(damage)}, and there is no older version; start from another checkpoint.")


def versions(path: str | Path) -> Iterator[Path]:
    """The file and its older versions, newest first, as far as they exist."""
    path = Path(path)
    if path.is_file():
        yield path
    for age in count(1):
        if not (version := older_version(path, age)).is_file():
            return
        yield version


def older_version(path: Path, age: int) -> Path:
    """Where the version of that age lies.

    >>> [older_version(Path("run.ckpt"), age).name for age in range(3)]
    ['run.ckpt', 'run.previous.ckpt', 'run.previous_2.ckpt']
    """
    if age == 0:
        return path
    return path.with_name(f"{path.stem}.previous{f'_{age}' if age > 1 else ''}{path.suffix}")


def damage_of(path: Path) -> str | None:
    """What is wrong with a file of ``torch.save``; ``None`` if every record has its checksum."""
    with open(path, "rb") as file:  # a file that cannot be opened is no damaged one
        try:
            with zipfile.ZipFile(file) as archive:
                record = archive.testzip()
        except BAD_BYTES as error:
            return str(error) or type(error).__name__
    return f"checksum of {record}" if record else None


class _KeepsError:
    """A file for ``torch.save``, which turns an error of the disk into a RuntimeError without its cause."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self.file.flush()


def _unnamed(folder: Path) -> int | None:
    """Opens a file that has no name until :func:`_name` gives it one, where the system has such."""
    if not hasattr(os, "O_TMPFILE"):  # Linux has it
        return None
    try:
        return os.open(folder, os.O_TMPFILE | os.O_WRONLY, 0o666)
    except OSError:  # not this file system; whatever else it is, opening a named file says it
        return None


def _name(descriptor: int, path: Path) -> bool:
    try:  # the second descriptor is not looked at, but makes Python follow the link
        os.link(f"/proc/self/fd/{descriptor}", path, src_dir_fd=descriptor, follow_symlinks=True)
    except OSError:  # no links here, or no /proc
        return False
    return True


def _write(content: Any, file: IO[bytes]) -> None:
    target: Any = _KeepsError(file)
    try:
        torch.save(content, target)
    except RuntimeError:
        if target.error is not None:
            raise target.error from None
        raise
    file.flush()
    os.fsync(file.fileno())


def _age(path: Path, keep: int) -> None:
    """Every version takes the name of the next older one; ``path`` itself stays, as a second link."""
    chain = [older_version(path, age) for age in range(keep)]
    if keep > 1 and _same(path, chain[1]):
        return  # a save that was killed had come as far as this
    for newer, older in reversed(list(pairwise(chain))):
        if newer.exists() and not _same(newer, older):
            _take_name(newer, older)


def _take_name(newer: Path, older: Path) -> None:
    try:
        os.link(newer, _part(older))
    except OSError:  # a file system without links: for a moment there is only the older name, which loading knows
        os.replace(newer, older)
    else:
        os.replace(_part(older), older)


def _same(first: Path, second: Path) -> bool:
    return first.exists() and second.exists() and first.samefile(second)


def _part(path: Path) -> Path:
    return path.with_name(path.name + PART)


def _remove_leftovers(path: Path) -> None:
    for age in range(len(list(versions(path))) + 2):
        _part(older_version(path, age)).unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Makes the new name last; where a folder cannot be opened (Windows) the system sees to it."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
