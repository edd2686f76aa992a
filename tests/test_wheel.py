"""The wheel: built, installed elsewhere, imported and composed from another folder."""

import subprocess
import sys
import zipfile

FROM_ANOTHER_PROJECT = """
import sys
import hydra
from hydra import compose, initialize_config_dir
import stagewise
from stagewise.callbacks import BestMedianCheckpoint, LossRamp, RareClassCollapseStopping, StagedUnfreezing
from stagewise.datamodules import GroupBalancedBatchSampler
from stagewise.lightning_modules import GeolocationModule, GroupedOptimizer

import callbacks  # the other project's own
assert callbacks.MINE == 1
assert stagewise.__file__.startswith(sys.argv[1]), stagewise.__file__
with initialize_config_dir(sys.argv[2], version_base="1.3"):
    cfg = compose("mine")
assert cfg.trainer._target_ == "lightning.Trainer" and cfg.trainer.max_epochs == 3
assert cfg.optimizer.groups.clip.lr == 1e-5
print("composed")
"""


def test_the_wheel_holds_the_package_and_nothing_beside_it(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {t for t in tops if not t.endswith(".dist-info")} == {"stagewise"}
    assert {"stagewise/py.typed", "stagewise/conf/train.yaml", "stagewise/conf/experiment/geopak_phase2.yaml"} <= set(
        names
    )
    assert not [n for n in names if n.startswith(("stagewise/tests", "stagewise/benchmarks"))]


def test_another_project_imports_it_and_composes_its_configs(wheel, tmp_path):
    site, project = tmp_path / "site", tmp_path / "project"
    zipfile.ZipFile(wheel).extractall(site)
    (project / "conf").mkdir(parents=True)
    (project / "callbacks").mkdir()
    (project / "callbacks" / "__init__.py").write_text("MINE = 1\n")
    (project / "conf" / "mine.yaml").write_text(
        "hydra: {searchpath: ['pkg://stagewise.conf']}\n"
        "defaults: [_self_, {trainer: cpu}, {optimizer: geopak}, {override_mine: short}]\nrun_dir: runs\n"
    )
    (project / "conf" / "override_mine").mkdir()
    (project / "conf" / "override_mine" / "short.yaml").write_text("# @package _global_\ntrainer: {max_epochs: 3}\n")
    (project / "use.py").write_text(FROM_ANOTHER_PROJECT)
    command = [sys.executable, "use.py", str(site), str(project / "conf")]
    environment = {"PYTHONPATH": str(site), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "composed" in done.stdout
