"""Lightning's checkpoints, durable."""

from typing import Any

from lightning.fabric.plugins import TorchCheckpointIO
from lightning.fabric.utilities.cloud_io import get_filesystem

from .durable_files import load_durably, save_durably, versions


class DurableCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint whole or not at all, and reads the one before where the last is damaged.

    The content goes to a temporary file in the target's folder, without a name as yet where the system has such, is
    flushed to the disk (``fsync``) and takes its name by one ``os.replace``; the file that had the name before stays
    beside it as ``NAME.previous.ckpt``. The checksum is the CRC-32 that the zip format of ``torch.save`` keeps of every
    record, which ``torch.load`` itself does not look at. Every error is raised and leaves the files as they were. What
    a killed save left behind goes with the next save of the same file; loading writes nothing, so it works beside a
    run that saves, and from a read-only disk.

    A plugin for ``lightning.Trainer(plugins=[DurableCheckpointIO()])``.

    Args:
        keep: versions of a file that stay, the newest included.

    Raises:
        ValueError: ``keep`` below 1, or a target that is not a local file.

    >>> import pathlib, tempfile
    >>> io, path = DurableCheckpointIO(), tempfile.mkdtemp() + "/run.ckpt"
    >>> for epoch in (1, 2):
    ...     io.save_checkpoint({"epoch": epoch}, path)
    >>> _ = pathlib.Path(path).write_bytes(b"half a file")
    >>> io.load_checkpoint(path)
    {'epoch': 1}
    """

    def __init__(self, keep: int = 2) -> None:
        if keep < 1:
            raise ValueError(f"`keep` must be at least 1, got {keep}.")
        self.keep = keep

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Writes a checkpoint.

        Args:
            checkpoint: what ``torch.save`` takes.
            path: of a local file; its folder is made if need be.
            storage_options: ``{"keep": versions}`` for this file, or ``None``.
        """
        if not is_local(path):
            raise ValueError(
                f"DurableCheckpointIO writes local files, got {path!r}; use lightning's TorchCheckpointIO."
            )
        save_durably(checkpoint, path, keep=(storage_options or {}).get("keep", self.keep))

    def load_checkpoint(self, path: Any, map_location: Any = "cpu", weights_only: bool | None = None) -> dict[str, Any]:
        """Reads a checkpoint, or the version before it with a warning that names both.

        Args:
            path: of a file; an address of another kind is read as Lightning reads it, without a check.
            map_location: as of ``torch.load``.
            weights_only: ``None`` is ``True``: nothing that the file holds is run.

        Raises:
            FileNotFoundError: there is no such file and no version of it.
            OSError: every version is damaged.
        """
        safe = weights_only is None or weights_only
        if not is_local(path):
            content: dict[str, Any] = super().load_checkpoint(path, map_location, weights_only=safe)
            return content
        return load_durably(path, map_location, weights_only=safe)

    def remove_checkpoint(self, path: Any) -> None:
        """Removes the file and its versions."""
        super().remove_checkpoint(path)
        for version in versions(path) if is_local(path) else ():
            version.unlink()


def is_local(path: Any) -> bool:
    """Whether a path is one of this machine's file system."""
    return type(get_filesystem(path)).__name__ == "LocalFileSystem"
