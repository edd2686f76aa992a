"""Every config composes, and every ``_target_`` in it resolves."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.utils import get_method, instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf

from stagewise.first_run import first_config
from stagewise.sweep import SweepReport

CONF = Path(__file__).resolve().parents[1] / "conf"
EXPERIMENTS = sorted(p.stem for p in (CONF / "experiment").glob("*.yaml"))
GROUPS = ("trainer", "logger", "datamodule", "lightning_module", "optimizer", "callbacks")
OPTIMIZER_GROUPS = {
    "drains": {"vision"},
    "fusion": {"image"},
    "geopak": {"heads", "embeddings", "fusion", "clip", "scene"},
    "landslide": {"encoder", "attention", "decoder", "head"},
}
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


def family(experiment: str) -> str:
    return experiment.split("_")[0]


@pytest.mark.parametrize("demo", [False, True], ids=["full", "demo"])
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_composes_and_its_targets_resolve(experiment, demo):
    cfg = composed(experiment=experiment, **({"demo": family(experiment)} if demo else {}))
    found = targets(cfg)
    assert len(found) > 8
    assert all(callable(get_method(t)) for t in found)
    plain = {k: v for k, v in OmegaConf.to_container(cfg, resolve=False).items() if k != "hydra"}
    assert OmegaConf.to_container(OmegaConf.create(plain), resolve=True)["name"] == experiment.removeprefix("geopak_")


def test_the_launcher_says_how_many_machines_and_gpus_there_are(monkeypatch):
    def counts():
        trainer = composed(experiment="geopak_phase2", trainer="ddp_multinode").trainer
        return instantiate(trainer.num_nodes), instantiate(trainer.devices)

    numbers = {"GROUP_WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 8, "SLURM_NNODES": 3, "SLURM_NTASKS_PER_NODE": 4}
    for name, number in numbers.items():
        monkeypatch.setenv(name, str(number))
    assert counts() == (2, 8)  # torchrun in a job of SLURM
    for name in ("GROUP_WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name)
    assert counts() == (3, 4)
    monkeypatch.delenv("SLURM_NNODES")
    with pytest.raises(InstantiationException, match="none of GROUP_WORLD_SIZE, SLURM_NNODES is set"):
        counts()


def test_processes_that_wait_for_a_cache_wait_for_a_day():
    strategy = instantiate(composed(experiment="geopak_phase2", trainer="ddp").trainer.strategy)
    assert strategy._timeout.total_seconds() == 24 * 3600


@pytest.mark.parametrize(("group", "leaf"), LEAVES, ids=lambda x: x)
def test_every_leaf_composes(group, leaf):
    of_leaf = {"landslide": "landslide_v25", "drains": "drains_clip", "fusion": "fusion_v5"}
    cfg = composed(experiment=of_leaf.get(leaf, "geopak_phase2"), **{group: leaf})
    assert targets(cfg[group])


@pytest.mark.parametrize("demo", [{}, {"demo": "landslide"}], ids=["full", "demo"])
@pytest.mark.parametrize("leaf", sorted({p.stem for p in (CONF / "ablation").glob("*.yaml")} - {"none"}))
def test_every_ablation_changes_the_experiment_and_still_makes_its_parts(leaf, demo):
    whole, part = (composed(experiment="landslide_v25", ablation=leaf, **demo) for leaf in ("none", leaf))
    differs = [key for key in ("datamodule", "lightning_module") if whole[key] != part[key]]
    assert len(differs) == 1
    for cfg in (part.lightning_module, part.datamodule, *part.callbacks.values()):
        instantiate(cfg)


@pytest.mark.parametrize("demo", [{}, {"demo": "drains"}], ids=["full", "demo"])
@pytest.mark.parametrize("mode", sorted(p.stem for p in (CONF / "mode").glob("*.yaml")))
def test_every_mode_of_drains_opens_groups_that_its_optimizer_has(mode, demo):
    cfg = composed(experiment="drains_clip", mode=mode, **demo)
    optimizer, network = instantiate(cfg.optimizer), instantiate(cfg.lightning_module).hparams["network"]
    opened = {group for stage in cfg.stages.values() for group in stage.open}
    assert opened and opened <= set(optimizer.groups)
    assert {"text", "adapters", "probe", "features"} & set(optimizer.groups) == {
        name
        for name, on in {
            "text": network["text"],
            "adapters": network["lora"] is not None,
            "probe": network["head"] == "linear",
            "features": network["features"] is not None,
        }.items()
        if on
    }
    rates = {name: group["lr"] * group.get("lr_scale", 1.0) for name, group in optimizer.groups.items()}
    assert all(rates[group] > 0 for group in opened) == (mode != "zero_shot")


@pytest.mark.parametrize("rule", sorted(p.stem for p in (CONF / "rule").glob("*.yaml")))
def test_every_rule_of_fusion_opens_groups_that_its_optimizer_has(rule):
    cfg = composed(experiment="fusion_v5", rule=rule)
    opened = {group for stage in cfg.stages.values() for group in stage.open}
    assert cfg.lightning_module.rule.kind == rule and opened == set(instantiate(cfg.optimizer).groups)
    assert opened == ({"image", "head"} if rule == "concat" else {"image"})


def test_the_sanity_runs_of_fusion_are_one_command_with_every_trap():
    cfg = composed(experiment="fusion_sanity")
    traps = {p.stem for p in (CONF / "trap").glob("*.yaml")}
    assert cfg.hydra.mode.name == "MULTIRUN" and set(cfg.hydra.sweeper.params.trap.split(",")) == traps
    hydra = {"overrides": {"task": ["experiment=fusion_sanity"]}, "sweeper": {"params": dict(cfg.hydra.sweeper.params)}}
    multirun = OmegaConf.create({"hydra": {**hydra, "runtime": {"choices": cfg.hydra.runtime.choices}}})
    SweepReport().on_multirun_start(multirun)
    assert len(multirun.hydra.overrides.task) == 2  # each trap has a folder of its own
    plain = OmegaConf.to_container(cfg, resolve=False)
    for trap in traps - {"none"}:
        other = OmegaConf.to_container(composed(experiment="fusion_sanity", trap=trap), resolve=False)
        assert {key for key in plain if plain[key] != other[key]} - {"hydra"} in (
            {"datamodule"},
            {"lightning_module"},
            {"lightning_module", "first"},
        )


@pytest.mark.parametrize(
    ("sweep", "experiment"), [("lr_groups", "geopak_phase2"), *(("optuna", one) for one in EXPERIMENTS)]
)
def test_every_sweep_composes_and_finds_the_rates_of_the_experiment(sweep, experiment):
    cfg = composed(experiment=experiment, sweep=sweep)
    assert cfg.hydra.mode.name == "MULTIRUN" and callable(get_method(cfg.hydra.callbacks.sweep.draw._target_))
    instantiate(cfg.hydra.callbacks.sweep).on_multirun_start(cfg)
    rates = [OmegaConf.select(cfg, key) for key in cfg.hydra.sweeper.params if key.startswith("optimizer.groups.")]
    assert rates and all(rates) and len(set(rates)) == len(rates)
    assert OmegaConf.to_container(cfg.hydra.overrides.task)[-1] == "run_dir=${hydra:runtime.output_dir}"
    if sweep == "optuna":
        assert cfg.hydra.sweeper.direction == {"min": "minimize", "max": "maximize"}[cfg.monitor.mode]
        assert instantiate(cfg.callbacks.pruning).monitor == cfg.monitor.name


def test_every_sweep_is_tested_above():
    assert {p.stem for p in (CONF / "sweep").glob("*.yaml")} == {"default", "lr_groups", "optuna"}


@pytest.mark.parametrize("launcher", sorted(p.stem for p in (CONF / "launcher").glob("*.yaml")))
def test_every_launcher_composes(launcher):
    cfg = composed(experiment="geopak_phase2", launcher=launcher)
    assert launcher.removeprefix("submitit_") in cfg.hydra.launcher._target_.lower()
    assert cfg.resume == ("auto" if launcher == "submitit_slurm" else None)


@pytest.mark.parametrize("modality", ["image", "metadata"])
def test_one_modality_of_fusion_starts_from_nothing(modality):
    cfg = composed(experiment="fusion_v5", **{"lightning_module.modality": modality})
    assert cfg.name == f"fusion_{modality}" and cfg.first is None and len(cfg.stages) == 1


def test_pictures_alone_anneal_over_their_own_epochs():
    cfg = composed(experiment="fusion_v5")
    alone = first_config(cfg)
    assert (cfg.optimizer.schedule.shape, alone.optimizer.schedule.shape) == ("constant", "cosine")
    assert alone.trainer.max_epochs == alone.stages.alone.epochs == 30


@pytest.mark.parametrize(("name", "more"), [("evaluate", {}), ("predict", {"input": "in"}), ("export", {})])
def test_the_other_programs_compose(name, more):
    cfg = composed(name, checkpoint="a.ckpt", output="out", **more)
    assert targets(cfg.module) == ["stagewise.lightning_modules.load_module"]


@pytest.mark.parametrize("demo", [{}, {"demo": "geopak"}], ids=["full", "demo"])
def test_convert_composes_and_takes_the_data_module_of_the_recipe(demo):
    cfg, experiment = composed("convert", output="out", **demo), composed(experiment="geopak_phase2", **demo)
    assert cfg.datamodule == experiment.datamodule and cfg.datamodule.storage == "folder"
    assert callable(instantiate(cfg.datamodule).convert)
    shards = {"datamodule.storage": "litdata", "datamodule.root": "s3://bucket/store"}
    made = instantiate(composed(experiment="geopak_phase2", **demo, **shards).datamodule)
    assert made.store.root == "s3://bucket/store" and made.store.is_remote


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_callbacks_and_optimizer_can_be_made(experiment):
    cfg = composed(experiment=experiment)
    made = {key: instantiate(value) for key, value in cfg.callbacks.items() if value}
    assert {"stages", "best", "report"} <= set(made)
    own = {"pixel"} if experiment == "landslide_points" else set()
    assert set(instantiate(cfg.optimizer).groups) == OPTIMIZER_GROUPS[family(experiment)] | own


def test_the_recipe_of_landslide_v25_is_in_its_config():
    cfg = composed(experiment="landslide_v25")
    network, loss, inference = (cfg.lightning_module[key] for key in ("network", "loss", "inference"))
    assert (network.encoder, network.weights, network.attention, network.dropout) == (
        "efficientnet-b4",
        "imagenet",
        True,
        0.4,
    )
    assert (loss.focal.gamma, list(loss.focal.class_weights), loss.dice) == (2.5, [0.4, 2.5, 2.0], 1.0)
    assert dict(loss.ordinal) == {"weight": 0.3, "form": "coral"}
    crf = {"iterations": 8, "spatial_weight": 5.0, "compat_spatial": 5.0, "compat_bilateral": 15.0, "tile": 8192}
    assert dict(inference.crf) == crf
    rare = cfg.datamodule.rare
    assert (rare["class"], rare.sampler.target_share, rare.smote.k) == ("medium", 0.075, 5)
    assert (cfg.trainer.max_epochs, cfg.trainer.gradient_clip_val, cfg.datamodule.loader.batch_size) == (60, 1.0, 4)
    assert cfg.callbacks.stages.stages.all.patience == 15 and cfg.monitor.name == "val/macro_f1"
    assert all(group.lr == 3e-4 for group in cfg.optimizer.groups.values())
    assert cfg.optimizer.factory.weight_decay == 1e-4 and cfg.optimizer.schedule.shape == "cosine"


def test_the_recipe_of_geopak_is_in_the_configs():
    zero, one, two = (composed(experiment=e) for e in EXPERIMENTS if family(e) == "geopak")
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
