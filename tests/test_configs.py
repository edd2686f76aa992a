"""Every config composes, and every ``_target_`` in it resolves."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from hydra.core.hydra_config import HydraConfig
from hydra.utils import get_method, instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf

CONF = Path(__file__).resolve().parents[1] / "conf"
EXPERIMENTS = sorted(p.stem for p in (CONF / "experiment").glob("*.yaml"))
GROUPS = ("trainer", "logger", "datamodule", "lightning_module", "optimizer", "callbacks")
LEAVES = [(group, p.stem) for group in GROUPS for p in sorted((CONF / group).glob("*.yaml"))]


def composed(name: str = "train", **options: str) -> DictConfig:
    overrides = [f"{key}={value}" for key, value in options.items()]
    with initialize_config_module("stagewise.conf", version_base="1.3"):
        cfg = compose(name, overrides, return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    return cfg


def targets(node: object) -> list[str]:
    if isinstance(node, DictConfig):
        own = [node["_target_"]] if "_target_" in node else []
        return own + [t for key in node if key != "hydra" for t in targets(node.get(key))]
    return [t for item in node for t in targets(item)] if isinstance(node, ListConfig) else []


@pytest.mark.parametrize("demo", [{}, {"demo": "geopak"}], ids=["full", "demo"])
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_composes_and_its_targets_resolve(experiment, demo):
    cfg = composed(experiment=experiment, **demo)
    found = targets(cfg)
    assert len(found) > 8
    assert all(callable(get_method(t)) for t in found)
    plain = {k: v for k, v in OmegaConf.to_container(cfg, resolve=False).items() if k != "hydra"}
    assert OmegaConf.to_container(OmegaConf.create(plain), resolve=True)["name"] == experiment.removeprefix("geopak_")


@pytest.mark.parametrize(("group", "leaf"), LEAVES, ids=lambda x: x)
def test_every_leaf_composes(group, leaf):
    cfg = composed(experiment="geopak_phase2", **{group: leaf})
    assert targets(cfg[group])


@pytest.mark.parametrize("name", ["evaluate", "predict"])
def test_the_other_programs_compose(name):
    cfg = composed(name, checkpoint="a.ckpt", **({"input": "in", "output": "out"} if name == "predict" else {}))
    assert targets(cfg.module) == ["stagewise.lightning_modules.load_module"]


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_callbacks_and_optimizer_can_be_made(experiment):
    cfg = composed(experiment=experiment)
    made = {key: instantiate(value) for key, value in cfg.callbacks.items() if value}
    assert {"stages", "best", "report"} <= set(made)
    assert set(instantiate(cfg.optimizer).groups) == {"heads", "embeddings", "fusion", "clip", "scene"}


def test_the_recipe_is_in_the_configs():
    zero, one, two = (composed(experiment=e) for e in EXPERIMENTS)
    assert (zero.trainer.max_epochs, one.trainer.max_epochs, two.trainer.max_epochs) == (8, 30, 35)
    assert [c.optimizer.groups.heads.lr for c in (zero, one, two)] == [1e-4, 1e-3, 5e-4]
    assert (two.optimizer.groups.clip.lr, two.optimizer.groups.scene.lr) == (1e-5, 5e-6)
    assert all(c.optimizer.factory.weight_decay == 1e-5 for c in (zero, one, two))
    assert dict(one.lightning_module.loss.weights) == {"province": 0.5, "cell": 1.0, "offset": 1.0, "aux": 0.1}
    assert dict(zero.lightning_module.loss.weights) == {"province": 1.0, "cell": 0.0, "offset": 0.0, "aux": 0.0}
    quotas = [r.quota for r in two.datamodule.regions.values()]
    assert quotas == [16, 8, 8, 8, 8, 8, 8] and sum(quotas) == two.datamodule.loader.batch_size == 64
    assert two.datamodule.loader.batches_per_epoch == 1300
    assert dict(one.callbacks.ramp.weights.offset) == {
        "start": 0.2,
        "end": 1.0,
        "epochs": 5,
        "shape": "linear",
        "after": "fit",
    }
    assert two.callbacks.get("ramp") is None
    assert dict(two.encoder_tops.clip) == {"last": 0.3, "also": ["ln_post", "proj"]}
    assert two.optimizer.schedule.shape == "cosine"
    assert sum(s.epochs for s in two.callbacks.stages.stages.values()) == 35
