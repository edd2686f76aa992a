"""The libraries for rasters and maps are an extra: most users of the package never need them."""

from importlib.util import find_spec

from ..errors import StagewiseError


def require(*packages: str) -> None:
    """Refuses to go on without a library.

    Raises:
        StagewiseError: names it and the command that installs it.

    >>> require("torch")
    >>> require("no_such_library")  # doctest: +IGNORE_EXCEPTION_DETAIL
    Traceback (most recent call last):
    ...
    stagewise.datamodules.errors.StagewiseError: this needs no_such_library; run: pip install 'stagewise[geo]'
    """
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        raise StagewiseError(f"this needs {', '.join(missing)}; run: pip install 'stagewise[geo]'")
