"""The house: who may import whom, and that the package list is the disk's."""

import ast
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("callbacks", "datamodules", "lightning_modules", "conf")
SCRIPTS = (
    "train.py",
    "evaluate.py",
    "predict.py",
    "export.py",
    "convert.py",
    "command_line.py",
    "run_apart.py",
    "sweep.py",
    "sweep_space.py",
    "sweep_table.py",
    "first_run.py",
    "run_processes.py",
)
VOCABULARY = (
    "datamodules.errors",
    "datamodules.images",
    "datamodules.geolocation.geocells",
    "datamodules.geolocation.geodesy",
    *(f"datamodules.drains.{name}" for name in ("boxes", "ceiling", "crops", "detections", "vocabulary")),
    *(f"datamodules.fusion.{name}" for name in ("new_rows", "pictures", "table")),
    *(
        f"datamodules.landslide.{name}"
        for name in ("areas", "channel_inputs", "channel_maker", "channels", "extras", "prepared", "rasters", "turning")
    ),
)


def imports_of(path: Path) -> set[str]:
    """Absolute dotted names: those of ours start with the folder, foreign ones with ``:``."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {f":{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level:
            base = [*parts[: len(parts) - node.level], *(node.module.split(".") if node.module else [])]
            found |= {".".join([*base, alias.name]) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(f":{node.module}")
    return found


def files(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def foreign(names: set[str]) -> set[str]:
    return {name[1:].split(".")[0] for name in names if name.startswith(":")}


@pytest.mark.parametrize("path", files("callbacks"), ids=lambda p: p.name)
def test_callbacks_know_only_lightning_and_torch(path):
    names = imports_of(path)
    ours = {n for n in names if not n.startswith(":") and not n.startswith("callbacks.")}
    assert not ours
    import sys

    allowed = {"lightning", "torch", "torchmetrics", "numpy", "matplotlib"} | set(sys.stdlib_module_names)
    assert foreign(names) <= allowed


@pytest.mark.parametrize("path", files("datamodules"), ids=lambda p: p.name)
def test_datamodules_import_nothing_of_ours_outside_their_folder(path):
    assert all(n.startswith((":", "datamodules.")) for n in imports_of(path))


@pytest.mark.parametrize("path", files("lightning_modules"), ids=lambda p: p.name)
def test_lightning_modules_import_only_the_vocabulary_of_datamodules(path):
    ours = {n for n in imports_of(path) if not n.startswith((":", "lightning_modules."))}
    assert all(n.startswith(VOCABULARY) for n in ours), ours


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_import_hydra_omegaconf_and_lightning(name):
    import sys

    names = imports_of(ROOT / name)
    known = {"hydra", "omegaconf", "lightning", "filelock", "stagewise"} | (
        {"torch"} if name == "run_processes.py" else set()
    )
    assert foreign(names) <= known | set(sys.stdlib_module_names)
    assert {n for n in names if n.startswith(":stagewise")} <= {f":stagewise.{Path(one).stem}" for one in SCRIPTS}


def test_every_script_is_known_here():
    assert {path.name for path in ROOT.glob("*.py")} == {*SCRIPTS, "__init__.py"}


def test_no_import_cycle_between_files():
    graph = {}
    for path in (p for folder in PACKAGES for p in files(folder)):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        top_level = {
            n
            for node in ast.parse(path.read_text()).body
            if isinstance(node, ast.ImportFrom)
            for n in imports_at(path, node)
        }
        graph[module] = top_level
    seen: dict[str, int] = {}

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " -> ".join([*trail, module])
        if seen.setdefault(module, 0) == 0:
            for other in graph.get(module, ()):
                visit(other, (*trail, module))
            seen[module] = 1

    for module in graph:
        visit(module, ())
    assert len(seen) >= len(graph)


def imports_at(path: Path, node: ast.ImportFrom) -> set[str]:
    if not node.level:
        return set()
    parts = path.relative_to(ROOT).with_suffix("").parts
    base = ".".join([*parts[: len(parts) - node.level], *(node.module.split(".") if node.module else [])])
    as_modules = {
        f"{base}.{a.name}" for a in node.names if (ROOT / (f"{base}.{a.name}".replace(".", "/") + ".py")).is_file()
    }
    return as_modules or ({base} if (ROOT / (base.replace(".", "/") + ".py")).is_file() else {f"{base}.__init__"})


def test_the_package_list_is_the_disks():
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    folders = {p.parent.relative_to(ROOT) for name in PACKAGES for p in (ROOT / name).rglob("__init__.py")}
    assert listed == {"stagewise"} | {f"stagewise.{'.'.join(f.parts)}" for f in folders}


def test_no_source_names_a_registry_or_a_machine():
    hosts = ("py" + "pi.org", "python" + "hosted")
    texts = [p for p in ROOT.glob("*") if p.is_file() and p.suffix in (".py", ".toml", ".lock", ".md", "")]
    assert texts
    assert not [p for p in texts if any(h in p.read_text(errors="ignore") for h in hosts)]
