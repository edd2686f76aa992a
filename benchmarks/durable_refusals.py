"""Saves that are refused, for durable_saves.py: a full disk, a folder that takes no files."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from durable_kills import Figures, Place, answer, name_of, place_of

NOBODY = 65534


@dataclass(frozen=True)
class Refusal:
    """A save that has no room, or no permission."""

    times: int = 1  # as large as the save before
    disk: bool = False  # a tmpfs that holds one and a half saves
    tmp_there: bool = False  # TMPDIR is on the filesystem of the target
    lock: Callable[[Place], Any] = lambda place: None
    nobody: bool = False  # as another user than root, to whom permissions do not apply


def read_only(place: Place) -> None:
    subprocess.run(["mount", "-o", "remount,ro", place.folder.parents[1]], check=True, capture_output=True)


def no_permission(place: Place) -> None:
    place.folder.chmod(0o555)


def empty_without_permission(place: Place) -> None:
    place.path.unlink()
    place.folder.chmod(0o555)


def a_file(place: Place) -> None:
    shutil.rmtree(place.folder)
    place.folder.write_text("where the folder should be")


REFUSALS = {
    "full disk, TMPDIR on it": Refusal(times=2, disk=True, tmp_there=True),
    "full disk, TMPDIR elsewhere": Refusal(times=2, disk=True),
    "disk with room for half a save, TMPDIR elsewhere": Refusal(disk=True),
    "parent is a file": Refusal(lock=a_file),
    "read-only filesystem": Refusal(disk=True, lock=read_only),
    "no permission, TMPDIR elsewhere": Refusal(lock=no_permission, nobody=True),
    "no permission, TMPDIR beside": Refusal(lock=no_permission, nobody=True, tmp_there=True),
    "no permission, first save, TMPDIR elsewhere": Refusal(lock=empty_without_permission, nobody=True),
    "no permission, first save, TMPDIR beside": Refusal(lock=empty_without_permission, nobody=True, tmp_there=True),
}


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[None]:
    """A tmpfs of that size at ``folder``; PermissionError where this may not be mounted."""
    options = f"size={megabytes}m,mode=755"
    if not shutil.which("mount"):
        raise PermissionError("there is no mount here")
    if code := subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True).returncode:
        raise PermissionError(f"mount is not permitted (exit status {code})")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def provoke(refusal: Refusal, io: str, base: Path, elsewhere: Path, megabytes: int) -> Figures:
    """A good save, and then one that is refused."""
    root = Path(tempfile.mkdtemp(dir=base))
    root.chmod(0o755)
    if not refusal.disk:
        return _refused(refusal, place_of(io, root, root if refusal.tmp_there else elsewhere, megabytes))
    try:
        with small_disk(root, megabytes * 3 // 2):
            return _refused(refusal, place_of(io, root, root if refusal.tmp_there else elsewhere, megabytes))
    except PermissionError as reason:
        return {"skipped": str(reason)}


def _refused(refusal: Refusal, place: Place) -> Figures:
    answer(place, lambda: place.save(place.content(1)))
    refusal.lock(place)
    return answer(place, partial(_attempt, refusal, place))


def _attempt(refusal: Refusal, place: Place) -> Figures:
    content = place.content(2, refusal.times)
    if refusal.nobody and os.geteuid() == 0:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        if not os.access(place.folder.parent, os.X_OK) or not os.access(place.tmp, os.W_OK):
            return {"skipped": "the temporary folder is closed to other users"}
    seen: Figures = {"before": place.read(by_io=False), "error": None}
    try:
        place.save(content)
    except Exception as error:
        seen["error"] = name_of(error)
    seen["orphans"] = len(place.orphans())  # before a load, which may tidy up
    return seen | {"file": place.read(by_io=False), "loaded": place.read(by_io=True)}


def problems_of(seen: Figures) -> list[str]:
    """What an outcome should not have."""
    good = (1, 2)
    return [
        text
        for text, holds in {
            "NO ERROR, NOT SAVED": not seen["error"] and seen["file"] != 2,
            f"last one LOST ({seen['file']})": seen["before"] == 1 and seen["file"] not in good,
            f"the IO reads {seen['loaded']}": seen["file"] in good and seen["loaded"] != seen["file"],
            f"orphans: {seen['orphans']}": seen["orphans"] > 0,
        }.items()
        if holds
    ]


def told(seen: Figures) -> str:
    """A cell."""
    if "skipped" in seen:
        return f"skipped: {seen['skipped']}"
    state = {1: ["last one whole"], 2: ["saved"]}.get(seen["file"], [])
    return ", ".join([seen["error"] or "no error", *state, *problems_of(seen)])


def filesystem(folder: Path) -> str:
    """Its type."""
    device = folder.stat().st_dev
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        if fields[2] == f"{os.major(device)}:{os.minor(device)}":
            return fields[fields.index("-") + 1]
    return "of unknown type"
