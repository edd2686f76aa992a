"""Run by tests: the staged run on one process or two, resumed from every save, or killed at random moments.

The processes are forks of one that has everything imported, so an attempt costs its training and no start of Python.
"""

import json
import logging
import os
import random
import signal
import socket
import sys
import time
import warnings
from pathlib import Path

import lightning  # noqa: F401
from lightning.pytorch.strategies import DDPStrategy

sys.path.insert(0, str(Path(__file__).parent))
import exact


def start(world, work, *arguments):
    """Forks ``world`` processes that call ``work(*arguments)`` as ranks; returns their process ids."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pids = []
    for rank in range(world):
        pid = os.fork()
        if pid == 0:
            quiet()
            if world > 1:
                os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "WORLD_SIZE": str(world)}
                os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            code = 1
            try:
                work(rank, world, *arguments)
                code = 0
            except SystemExit as left:
                code = left.code
            finally:
                sys.stderr.flush()
                os._exit(code)
        pids.append(pid)
    return pids


def quiet():
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    sys.stdout = open(os.devnull, "w")


def wait(pids):
    """Exit codes; -9 is killed."""
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]


def options(world):
    if world == 1:
        return {}
    return {"devices": world, "strategy": DDPStrategy(process_group_backend="gloo")}


def train(rank, world, folder, **extra):
    result = exact.fit(folder, **options(world), **extra)
    (Path(folder) / f"result_{rank}.json").write_text(json.dumps(result))


def result_of(folder, rank=0):
    return json.loads((Path(folder) / f"result_{rank}.json").read_text())


def resume_everywhere(rank, world, folder):
    """Every save of one run, resumed: what each did otherwise, and whether the ranks ended with the same weights."""
    archive = exact.Archive(Path(folder) / "archive")
    whole = exact.fit(Path(folder) / "whole", io=archive, **options(world))
    rows = []
    for save in sorted((Path(folder) / "archive").iterdir()):
        where = exact.describe(save)
        again = exact.fit(save, **options(world))
        rows.append([*where, exact.differences(whole, again), again["weights"]])
    (Path(folder) / f"rows_{rank}.json").write_text(json.dumps(rows))


def resume_matrix(folder, world):
    codes = wait(start(world, resume_everywhere, folder))
    ranks = [json.loads((Path(folder) / f"rows_{rank}.json").read_text()) for rank in range(world)]
    apart = [number for number, rows in enumerate(zip(*ranks)) if any(row[3] != rows[0][3] for row in rows)]
    return {"codes": codes, "rows": [row[:3] for rows in ranks for row in rows], "ranks apart": apart}


def kill_at_random(folder, world, kills, seed):
    """SIGKILLs, each after a random part of the time that a whole run takes; then the run is let through."""
    draw, whole = random.Random(seed), Path(folder) / "whole"
    began = time.monotonic()
    assert set(wait(start(world, train, whole))) == {0}
    length = time.monotonic() - began
    done, completed, different, number = 0, 0, [], 0
    while done < kills or completed <= number:
        run = Path(folder) / f"run_{number}"
        pids = start(world, train, run)
        if done < kills:
            time.sleep(draw.uniform(0.1, 1.0) * length)
            struck(draw, pids)
        codes = wait(pids)
        done += -signal.SIGKILL in codes
        if set(codes) == {0}:
            different += [exact.differences(result_of(whole, rank), result_of(run, rank)) for rank in range(world)]
            completed, number = completed + 1, number + (done < kills)
    return {"kills": done, "completed": completed, "different": [row for row in different if row]}


def struck(draw, pids):
    """Kills all processes at once, or one first and the others soon after, as they hang on it or die of it."""
    first = draw.choice(pids)
    for pid in [first, *(pid for pid in pids if pid != first)]:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
        time.sleep(draw.choice([0.0, 0.2]))


def preempt(folder, world):
    """SIGTERM to the first process in the middle of the run, then on to the end."""
    whole, run = Path(folder) / "whole", Path(folder) / "run"
    assert set(wait(start(world, train, whole))) == {0}
    pids = start(world, train, run)
    while not (run / "resume.ckpt").exists():
        time.sleep(0.01)
    os.kill(pids[0], signal.SIGTERM)
    codes, resumed = wait(pids), wait(start(world, train, run))
    return {"codes": codes, "resumed": resumed, "different": exact.differences(result_of(whole), result_of(run))}


if __name__ == "__main__":
    task, folder, *numbers = sys.argv[1:]
    tasks = {"matrix": resume_matrix, "kills": kill_at_random, "preempt": preempt}
    print("RESULT " + json.dumps(tasks[task](folder, *map(int, numbers))))
