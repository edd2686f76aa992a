"""The run that another one starts from."""

from pathlib import Path

import pytest
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import OmegaConf

from stagewise import first_run
from stagewise.first_run import first_checkpoint, first_config


@pytest.fixture
def cfg(tmp_path):
    return OmegaConf.create(
        {
            "name": "${plan.name}",
            "plan": "${plans.${lightning_module.modality}}",
            "plans": {"both": {"name": "fusion"}, "one": {"name": "picture"}},
            "first": {"lightning_module": {"modality": "one"}, "optimizer": {"lr": 0.1}},
            "start_from": None,
            "resume": None,
            "run_dir": "${paths.checkpoints}/${name}",
            "paths": {"checkpoints": str(tmp_path / "runs"), "cache": "here"},
            "lightning_module": {"modality": "both"},
            "datamodule": {"fold": 0, "cache_dir": "${paths.cache}"},
            "optimizer": {"lr": 0.001},
            "trainer": {"default_root_dir": "${run_dir}", "max_epochs": 3},
        }
    )


@pytest.fixture
def made():
    def run(own):
        made.configs.append(own)
        folder = Path(own.run_dir)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{own.name}_best.ckpt").write_bytes(b"")
        (folder / "summary.json").write_text("{}")  # as of a run that was preempted
        if not made.finish:
            raise SystemExit(75)

    made = run
    made.configs, made.finish = [], True
    return made


def test_it_is_the_same_run_but_for_the_changes(cfg):
    own = first_config(cfg)
    assert (own.name, own.lightning_module.modality, own.optimizer.lr) == ("picture", "one", 0.1)
    assert own.first is None and own.resume == "auto" and own.trainer.default_root_dir == own.run_dir
    assert (cfg.name, cfg.optimizer.lr) == ("fusion", 0.001)


def test_it_is_trained_once_for_each_configuration(cfg, made):
    first = first_checkpoint(cfg, made)
    cfg.optimizer.lr, cfg.run_dir, cfg.paths.cache = 0.5, "elsewhere", "there"  # of the run that starts from it
    assert first_checkpoint(cfg, made) == first and len(made.configs) == 1
    cfg.datamodule.fold = 1
    assert first_checkpoint(cfg, made) != first and len(made.configs) == 2


def test_one_that_was_killed_goes_on(cfg, made):
    made.finish = False
    for _ in range(2):
        with pytest.raises(SystemExit):
            first_checkpoint(cfg, made)
    made.finish = True
    assert first_checkpoint(cfg, made) == first_checkpoint(cfg, made)
    assert [own.resume for own in made.configs] == ["auto"] * 3


def test_another_process_takes_it_and_does_not_wait_for_what_it_cannot_see(cfg, made, monkeypatch):
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    monkeypatch.setattr(first_run, "_UNSEEN_S", 0)
    with pytest.raises(OSError, match=r"no '.*\.lock' of process 0.*pass paths\.checkpoints=DIR on a disk that all"):
        first_checkpoint(cfg, made)
    monkeypatch.setattr(rank_zero_only, "rank", 0)
    first = first_checkpoint(cfg, made)
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    assert first_checkpoint(cfg, made) == first and len(made.configs) == 1
