"""What durable_saves.py is made of: an IO with its folders, saves in forked children, and kills within a save.

The parent has torch and Lightning imported, so a child costs a fork. It tells over a pipe when a save begins and ends
and each step on files in between, so what the parent says about a kill is what the child had come to.
"""

import errno
import json
import os
import random
import shutil
import signal
import statistics
import sys
import tempfile
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, TextIO

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from stagewise.callbacks import DurableCheckpointIO

IOS = {"durable": DurableCheckpointIO, "lightning": TorchCheckpointIO}
KEPT = {"run.ckpt", "run.previous.ckpt"}  # the last save, and the one before it that DurableCheckpointIO documents
STEPS = {"open", "os.rename", "os.link", "os.remove", "os.chmod", "os.utime"}
HARM = ("unreadable", "older than the last completed", "wrong content", "file itself not whole")
AT_ONCE, RESTARTED = "orphans at once", "orphans after the restart"
TENSORS, TRIES = 8, 40
Figures = dict[str, Any]


@dataclass(frozen=True)
class Place:
    """An IO with its folders."""

    io: str
    folder: Path
    tmp: Path
    megabytes: int

    @property
    def path(self) -> Path:
        """Of the checkpoint."""
        return self.folder / "run.ckpt"

    def content(self, number: int, times: int = 1) -> Figures:
        """Of that save, ``times`` as large as others."""
        size = self.megabytes * times * 2**20 // 4 // TENSORS
        return {"number": number, "tensors": [torch.full((size,), float(number)) for _ in range(TENSORS)]}

    def save(self, content: Figures) -> None:
        """By the IO."""
        IOS[self.io]().save_checkpoint(content, self.path)

    def read(self, by_io: bool) -> int | str:
        """The number of the save, by the IO or from the file as it is; words where there is no whole one."""
        load = IOS[self.io]().load_checkpoint if by_io else torch.load
        try:
            content = load(self.path, weights_only=True)
        except Exception as error:
            return name_of(error)
        whole = all(bool((tensor == content["number"]).all()) for tensor in content["tensors"])
        return content["number"] if whole and len(content["tensors"]) == TENSORS else "mixed"

    def look(self) -> tuple[int | str, int | str]:
        """Both ways of reading, in a copy: the IO may tidy up."""
        copy = replace(self, folder=self.folder.with_name("copy"))
        shutil.copytree(self.folder, copy.folder, copy_function=os.link)
        try:
            return copy.read(by_io=False), copy.read(by_io=True)
        finally:
            shutil.rmtree(copy.folder)

    def orphans(self) -> list[Path]:
        """What nobody asked for, in the target folder and in TMPDIR."""
        return [p for p in self.folder.glob("*") if p.name not in KEPT] + list(self.tmp.glob("*"))


def place_of(io: str, root: Path, elsewhere: Path, megabytes: int) -> Place:
    """Empty folders that every user may go through: the target under ``root``, TMPDIR under ``elsewhere``."""
    place = Place(io, Path(tempfile.mkdtemp(dir=root)) / "target", Path(tempfile.mkdtemp(dir=elsewhere)), megabytes)
    place.folder.mkdir()
    place.folder.parent.chmod(0o755)
    place.tmp.chmod(0o777)
    return place


def name_of(error: Exception) -> str:
    """Its type and, of an error of the system, the code."""
    code = errno.errorcode.get(getattr(error, "errno", None) or 0)
    return type(error).__name__ + (f" {code}" if code else "")


def fork(work: Callable[[int], Any], place: Place) -> tuple[int, TextIO]:
    """Calls ``work(pipe)`` in a child whose TMPDIR is the place's; its process id and the other end."""
    reading, writing = os.pipe()
    if pid := os.fork():
        os.close(writing)
        return pid, os.fdopen(reading)
    try:
        os.close(reading)
        tempfile.tempdir = os.environ["TMPDIR"] = str(place.tmp)
        work(writing)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(0)


def answer(place: Place, work: Callable[[], Any]) -> Any:
    """What ``work()`` returns in a child."""
    pid, pipe = fork(lambda end: os.write(end, json.dumps(work()).encode()), place)
    with pipe:
        text = pipe.read()
    os.waitpid(pid, 0)
    return json.loads(text)


def save_on(place: Place, numbers: range, fatal: int | None, pipe: int) -> None:
    """Saves one number after the other and tells of every step; dies just before step ``fatal``."""
    steps = count()

    def mark(kind: str, label: str = "") -> None:
        os.write(pipe, json.dumps([kind, number, time.monotonic(), label]).encode() + b"\n")
        if kind == "step" and next(steps) == fatal:
            os.kill(os.getpid(), signal.SIGKILL)

    watch(place, partial(mark, "step"))
    for number in numbers:
        content = place.content(number)
        mark("begin", "the beginning")
        place.save(content)
        mark("end")


def watch(place: Place, mark: Callable[[str], None]) -> None:
    """Calls ``mark`` before everything that this process does to files of the place."""

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in STEPS and (event != "open" or arguments[2] & (os.O_WRONLY | os.O_RDWR)):
            path = Path(str(arguments[0]))
            if path.parent in (place.folder, place.tmp):
                mark(f"{event} {'in TMPDIR' if path.parent == place.tmp else path.name}")

    fsync = os.fsync
    os.fsync = lambda descriptor: (mark("os.fsync"), fsync(descriptor))[1]
    sys.addaudithook(hook)


class Trial:
    """Saves at one place that are killed, and what is found after each kill."""

    def __init__(self, place: Place) -> None:
        self.place, self.begun, self.completed, self.late = place, 0, 0, 0
        self.lengths: deque[float] = deque(maxlen=9)
        self.found = Counter(dict.fromkeys((*HARM, AT_ONCE, RESTARTED), 0))
        self.kills: list[Figures] = []
        self.shoot(6)

    def shoot(self, saves: int, part: float | None = None, fatal: int | None = None) -> bool:
        """Lets a child save; whether it died within the last of these saves."""
        numbers = range(self.begun + 1, self.begun + 1 + saves)
        pid, pipe = fork(partial(save_on, self.place, numbers, fatal), self.place)
        marks, moment = [], None
        with pipe:
            for line in pipe:
                marks.append(json.loads(line))
                if part is not None and marks[-1][:2] == ["begin", numbers[-1]]:
                    moment = self._strike(pid, marks[-1][2], part)
        signalled = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
        self._note(marks)
        if not signalled and self.completed < numbers[-1]:
            raise SystemExit("a child failed; its error is above.")
        within = signalled and self.completed < numbers[-1]
        if within:
            self.kills.append({"part": moment, "after": marks[-1][3]})
        self.late += part is not None and not within
        return within

    def figures(self) -> Figures:
        """Everything that was found."""
        return {"found": self.found, "kills": self.kills, "too late": self.late, "last seconds": list(self.lengths)}

    def _strike(self, pid: int, began: float, part: float) -> float:
        length = statistics.median(self.lengths)
        time.sleep(max(0.0, began + part * length - time.monotonic()))
        moment = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        return (moment - began) / length

    def _note(self, marks: list[Any]) -> None:
        begins, ends = ({n: at for kind, n, at, _ in marks if kind == wanted} for wanted in ("begin", "end"))
        self.lengths += [at - begins[number] for number, at in ends.items()]
        self.begun, self.completed = max(begins), max(ends, default=self.completed)

    def examine(self) -> None:
        """Counts what the kill left, restarts, counts again, and tidies up for the next kill."""
        place, left = self.place, self.place.orphans()
        file, loaded = answer(place, place.look)
        number = loaded if isinstance(loaded, int) else self.completed
        harm = (
            isinstance(loaded, str) and loaded != "mixed",
            number < self.completed,
            loaded == "mixed" or number > self.begun,
            isinstance(file, str),
        )
        self.shoot(1)
        self.found.update(dict(zip((*HARM, AT_ONCE, RESTARTED), (*harm, bool(left), bool(place.orphans())))))
        for orphan in place.orphans():
            orphan.unlink()


def timed(place: Place, kills: int, draw: random.Random) -> Trial:
    """Kills after a part of a save's time."""
    trial = Trial(place)
    for part in range(kills):
        for _ in range(TRIES):
            if trial.shoot(draw.randint(1, 3), part=(part + draw.random()) / kills):
                trial.examine()
                break
        else:
            raise SystemExit(f"no kill of {TRIES} fell within part {part} of {kills} of a save.")
    return trial


def steps(place: Place) -> Trial:
    """A kill before each step of a save."""
    trial = Trial(place)
    for step in count():
        if not trial.shoot(1, fatal=step):
            return trial
        trial.examine()
