"""A run of a sweep that takes several processes: a program of its own, which the sweep outlives.

Lightning starts the other processes of a run with the command line of the first, which in a sweep is the whole sweep,
and kills the first where another one fails. So the run gets a command line that names its settings, in a file.
"""

import json
import logging.config
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from stagewise.command_line import PREEMPTED, cause_of, is_users_error
from stagewise.run_processes import started_by_launcher, takes_several

_SETTINGS, _LOGGING = "run.yaml", "logging.yaml"
_OF_HYDRA = re.compile(r"\$\{hydra:[^{}]*\}")


def must_run_apart(cfg: DictConfig) -> bool:
    """Whether this is a job of a multirun whose run starts processes."""
    is_job = HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN
    return is_job and takes_several(cfg) and not started_by_launcher(cfg)


def run_apart(cfg: DictConfig) -> float | None:
    """:func:`stagewise.train.run` in processes of its own.

    SIGTERM reaches the run, which saves and leaves; it does so as well when this process is killed.

    Args:
        cfg: of the run.

    Raises:
        Exception: of the type and with the words of the first one that ended a process of the run; its traceback is a
            note.
        SystemExit: the run was preempted.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        plain = OmegaConf.to_container(cfg)  # not resolved: a run that comes before this one changes some of it
        OmegaConf.save(OmegaConf.create(_without_hydra(plain)), folder / _SETTINGS)
        OmegaConf.save(HydraConfig.get().job_logging, folder / _LOGGING, resolve=True)
        command = [sys.executable, "-m", "stagewise.run_apart", name]
        with subprocess.Popen(command, stdin=subprocess.PIPE) as program, _ending_on_sigterm(program.stdin):
            code = program.wait()
        return _outcome(folder, code)


def _without_hydra(node: Any) -> Any:
    """What only this program knows, as values."""
    if isinstance(node, dict):
        return {key: _without_hydra(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_without_hydra(value) for value in node]
    if isinstance(node, str):
        return _OF_HYDRA.sub(lambda found: str(OmegaConf.create({"value": found[0]}).value), node)
    return node


@contextmanager
def _ending_on_sigterm(line: IO[bytes] | None) -> Iterator[None]:
    """The run ends where its input does; outside of the main thread, where no signal arrives, that is left to it."""
    if line is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: line.close())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _outcome(folder: Path, code: int) -> float | None:
    if code == PREEMPTED:
        raise SystemExit(code)
    files = sorted(folder.glob("*.json"), key=lambda one: one.stat().st_mtime_ns)
    told = [json.loads(path.read_text()) for path in files]
    if code == 0:
        return next(one["score"] for one in told if "score" in one)
    errors = [one for one in told if "type" in one]
    if not errors:  # killed, or never started
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"left with code {code}"
        raise RuntimeError(f"the run {how} and could not say why; its output may")
    first = errors[0]
    base = ValueError if first["is_users"] else RuntimeError  # as which it is shown
    error: Exception = type(first["type"], (base,), {})(first["message"])
    error.add_note(first["traceback"])
    raise error


def _tell(folder: Path, **outcome: Any) -> None:
    rank = os.environ.get("LOCAL_RANK", "0")
    (folder / f"{rank}.json").write_text(json.dumps(outcome))


def _end_with_sweep() -> None:
    """SIGTERM to this process when the sweep's is gone."""
    os.read(sys.stdin.fileno(), 1)  # not sys.stdin.read, whose lock a thread must not hold at the end of the program
    os.kill(os.getpid(), signal.SIGTERM)


def main(name: str) -> None:
    """Each process of the run: leaves its score, or what ended it, in the folder ``name``."""
    from stagewise.train import run

    folder = Path(name)
    threading.Thread(target=_end_with_sweep, daemon=True).start()
    logging.config.dictConfig(OmegaConf.to_container(OmegaConf.load(folder / _LOGGING)))  # type: ignore[arg-type]
    try:
        _tell(folder, score=run(OmegaConf.load(folder / _SETTINGS)))  # type: ignore[arg-type]
    except Exception as error:
        cause = cause_of(error)
        words = {"type": type(cause).__name__, "message": str(cause), "is_users": is_users_error(error)}
        _tell(folder, **words, traceback=traceback.format_exc())
        raise SystemExit(1) from None


if __name__ == "__main__":
    main(sys.argv[1])
