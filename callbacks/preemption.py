"""SIGTERM: what a cluster sends before it takes a machine away."""

import signal
import threading
from types import FrameType

EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: a temporary failure, run the command again


class Preempted(SystemExit):
    """Ends the program after SIGTERM once the run is saved.

    The exit code is 75 on the global rank 0, where the launcher looks, and 0 on the others: Lightning kills all
    processes when one of its children ends with another code.

    Args:
        rank: global rank of this process.
        path: the checkpoint to go on from; ``None`` before the first step, where there is nothing new to save.

    >>> Preempted(0, "runs/resume.ckpt").code
    75
    """

    def __init__(self, rank: int, path: str | None) -> None:
        super().__init__(EXIT_CODE if rank == 0 else 0)
        self.path = path
        self.reason = "preempted by SIGTERM, " + (f"saved as {path}" if path else "before the first step")

    def __str__(self) -> str:
        return self.reason


class PreemptionNotice:
    """Notes a SIGTERM instead of dying from it.

    Lightning puts the handlers of before back when its fit ends.
    """

    def __init__(self) -> None:
        self.received = False

    def listen(self) -> None:
        """Takes the signal over from Lightning, whose handler starts a collective in the middle of anything."""
        if threading.current_thread() is threading.main_thread():  # Python allows no other to
            signal.signal(signal.SIGTERM, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = True
