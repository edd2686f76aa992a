"""What the programs say to a command that cannot work: one line, and for a mistyped key the nearest names."""

import difflib
import errno
import functools
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from hydra import compose, initialize_config_module
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import ConfigCompositionException, InstantiationException
from omegaconf import DictConfig, ListConfig, OmegaConf

PREEMPTED = 75  # exit code of a run that ExactResume saved after SIGTERM: run the command again
OWN_FOLDER = "run_dir=${hydra:runtime.output_dir}"
_PLUGIN = re.compile(r"Could not find 'hydra/(?:sweeper|launcher)/(\w+)'")
_NO_KEY = re.compile(r"Could not override '(.+?)'")


def cause_of(error: BaseException) -> BaseException:
    """What went wrong, without the words of Hydra's ``instantiate`` around it."""
    return error.__cause__ if isinstance(error, InstantiationException) and error.__cause__ else error


_USERS = (ValueError, OSError, InstantiationException)


def is_users_error(error: BaseException) -> bool:
    """Whether it is of a kind that a user can mend."""
    return isinstance(error, _USERS)


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Ends the program with the message alone; HYDRA_FULL_ERROR=1 shows where it came from."""
    try:
        yield
    except _USERS as error:
        if os.environ.get("HYDRA_FULL_ERROR"):
            raise
        cause = cause_of(error)
        full = isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        hint = "; free some space, or pass paths.checkpoints=FOLDER on another disk" if full else ""
        print(f"error: {cause}{hint}", file=sys.stderr)
        raise SystemExit(2) from error


def parsed(overrides: list[str]) -> list[Override]:
    """The overrides of a command line as Hydra reads them."""
    found: list[Override] = OverridesParser.create().parse_overrides(overrides)
    return found


def swept_keys(overrides: list[str]) -> list[str]:
    """Keys with more than one value.

    >>> swept_keys(["experiment=a,b", "seed=1", "optimizer.groups.clip.lr=1e-5,3e-6"])
    ['experiment', 'optimizer.groups.clip.lr']
    """
    return [o.get_key_element() for o in parsed(overrides) if o.is_sweep_override()]


def is_one_of_many() -> bool:
    """Whether the present run is one of a sweep, whose others go on when it fails; a chain of phases is none."""
    return HydraConfig.initialized() and has_own_folder(HydraConfig.get().overrides.task)


def has_own_folder(overrides: Iterable[str]) -> bool:
    r"""Whether :data:`OWN_FOLDER` is among them, also as a sweeper writes it.

    >>> has_own_folder(["seed=1", r"run_dir=$\{hydra\:runtime.output_dir\}"])
    True
    """
    return any(one.replace("\\", "") == OWN_FOLDER for one in overrides)


def check_swept(config: DictConfig, overrides: list[str]) -> None:
    """Refuses a sweep over a key that is not there, before any run.

    A sweep over a config group is left to Hydra: which keys there are depends on the group.

    Raises:
        ValueError: with the nearest names.
    """
    groups = set(config.hydra.runtime.choices)
    swept = [o for o in parsed(overrides) if o.is_sweep_override() and o.type == OverrideType.CHANGE]
    if groups & {o.key_or_group for o in swept}:
        return
    for one in swept:
        if not _has(config, one.key_or_group):
            raise ValueError(f"there is no {one.key_or_group} to sweep; {nearest(one.key_or_group, config)}")


def nearest(key: str, config: DictConfig) -> str:
    """A remedy: the names in ``config`` that are most like ``key``.

    >>> nearest("groups.clipp.lr", OmegaConf.create({"groups": {"clip": {"lr": 1.0}}, "seed": 0}))
    'the nearest: groups.clip.lr, groups.clip (+groups.clipp.lr=… would add it).'
    """
    names = [name for name in _names(OmegaConf.to_container(config)) if not name.startswith("hydra.")]
    ends = [name for name in names if name.endswith(f".{key}")]
    found = (ends + difflib.get_close_matches(key, names, n=3))[:3]
    return f"the nearest: {', '.join(dict.fromkeys(found)) or 'none'} (+{key}=… would add it)."


def offering_names(config_name: str) -> Callable[[Callable[[], Any]], Callable[[], Any]]:
    """For a program of Hydra's: its last line on a mistyped key, a missing plugin or a failed study says the remedy."""

    def wrapped(program: Callable[[], Any]) -> Callable[[], Any]:
        @functools.wraps(program)
        def main(*arguments: Any) -> Any:
            try:
                return program(*arguments)
            except SystemExit as end:
                if line := _remedy(str(end.__context__), config_name):
                    print(f"error: {line}", file=sys.stderr)
                    raise SystemExit(2) from None
                raise

        return main

    return wrapped


def _remedy(message: str, config_name: str) -> str | None:
    if found := _PLUGIN.search(message):
        return f"{found[1]} is a plugin of Hydra's that is not installed; pip install 'stagewise[sweeps]'."
    if "No trials are completed yet" in message:  # Optuna, asked for the best of none
        return "every run of the sweep failed; sweep.csv in its folder has the errors."
    if not (found := _NO_KEY.search(message)):
        return None
    key, given = found[1], [a for a in sys.argv[1:] if "=" in a and not a.startswith(("-", "hydra", f"{found[1]}="))]
    kept = [_one_value(one) for one in parsed(given) if not one.is_interval_sweep()]
    try:
        with initialize_config_module("stagewise.conf", version_base="1.3"):
            config = compose(config_name, kept)
    except ConfigCompositionException:  # another one is wrong too
        return f"there is no {key}."
    return f"there is no {key}; {nearest(key, config)}"


def _has(config: DictConfig, key: str) -> bool:
    parent, _, name = key.rpartition(".")
    node = OmegaConf.select(config, parent, throw_on_missing=False) if parent else config
    return isinstance(node, ListConfig) or (isinstance(node, DictConfig) and name in node.keys())  # also one of ???


def _one_value(one: Override) -> str:
    first = next(iter(one.sweep_string_iterator())) if one.is_sweep_override() else None
    return str(one.input_line) if first is None else f"{one.get_key_element()}={first}"


def _names(node: Any, before: str = "") -> Iterator[str]:
    """Dotted names of all that is in ``node``."""
    for key, inner in node.items() if isinstance(node, dict) else ():
        yield f"{before}{key}"
        yield from _names(inner, f"{before}{key}.")
