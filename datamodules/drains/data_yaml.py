"""``data.yaml`` of a YOLO folder: the classes, and where the pictures of each split lie."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ..errors import DatasetNotFoundError, StagewiseError
from .vocabulary import CLASS_NAMES, parse_class

_NO_SPLIT = ("path", "nc", "names", "download", "roboflow")
_USUAL = ("train", "val", "valid", "validation", "test")  # of these a missing folder is an error


@dataclass(frozen=True)
class DataYaml:
    """What the file says.

    Args:
        class_of_id: class 0..8 of each id in the label files.
        folders: split -> folders with pictures.
    """

    class_of_id: tuple[int, ...]
    folders: dict[str, tuple[Path, ...]]


def read_data_yaml(root: str | Path) -> DataYaml:
    """Reads ``root/data.yaml``.

    Raises:
        DatasetNotFoundError: there is no such file, or a folder that it names is missing.
        StagewiseError: it is no YAML, or its classes are not the nine of drains.
    """
    path = Path(root) / "data.yaml"
    if not path.is_file():
        raise DatasetNotFoundError(f"no data.yaml under root='{root}'; pass datamodule.root=FOLDER of a YOLO data set.")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise StagewiseError(f"'{path}' is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, Mapping):
        raise StagewiseError(f"'{path}' holds no `names` and splits; write e.g. `train: images` and `names: […]`.")
    base = Path(root) / str(content.get("path") or ".")
    folders = {
        str(key): found
        for key, value in content.items()
        if key not in _NO_SPLIT and (found := _folders(path, base, str(key), value))
    }
    if not folders:
        raise StagewiseError(f"'{path}' names no folder of pictures; write e.g. `train: images`.")
    return DataYaml(_classes(path, content), folders)


def _folders(path: Path, base: Path, name: str, value: Any) -> tuple[Path, ...]:
    """The folders of a split; none for a key that says something else."""
    given = value if isinstance(value, list) else [value]
    if not all(isinstance(text, str) and text for text in given):
        return ()
    folders = []
    for text in given:
        # Roboflow writes `../train/images` for a folder that lies beside the file
        tried = [base / text, base / text.removeprefix("../"), path.parent / text]
        found = next((folder for folder in tried if folder.is_dir()), None)
        if found is not None:
            folders.append(found.resolve())
        elif name in _USUAL:
            raise DatasetNotFoundError(f"'{path}': `{name}` names the folder '{text}', which is not there.")
    return tuple(folders)


def _classes(path: Path, content: Mapping[str, Any]) -> tuple[int, ...]:
    """(ids) -> class; any order, each of the nine once."""
    names = content.get("names")
    if isinstance(names, Mapping):
        if set(names) != set(range(len(names))):
            raise StagewiseError(f"'{path}': `names` has the ids {list(names)}; number them from 0 without a gap.")
        names = [names[i] for i in range(len(names))]
    if not isinstance(names, list):
        raise StagewiseError(f"'{path}' has no `names`; the classes are {', '.join(CLASS_NAMES)}.")
    if "nc" in content and content["nc"] != len(names):
        raise StagewiseError(f"'{path}': nc is {content['nc']}, but `names` has {len(names)}; they must agree.")
    try:
        classes = tuple(parse_class(name) for name in names)
    except StagewiseError as error:
        raise StagewiseError(f"'{path}': {error}") from None
    counts = {name: classes.count(i) for i, name in enumerate(CLASS_NAMES)}
    wrong = [f"'{name}' {'twice' if n else 'not at all'}" for name, n in counts.items() if n != 1]
    if wrong:
        raise StagewiseError(f"'{path}': `names` must hold each of the nine classes once, but has {', '.join(wrong)}.")
    return classes
