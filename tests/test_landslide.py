"""The programs for landslide susceptibility from end to end, on generated GeoTIFFs."""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from hydra import compose, initialize_config_module

from stagewise import evaluate, predict, train
from stagewise.datamodules.landslide.generated import write_generated_landslides
from stagewise.lightning_modules import load_module
from stagewise.lightning_modules.landslide import inference
from stagewise.lightning_modules.landslide.maps import make_cog

ROOT = Path(__file__).resolve().parents[1]
CHANNELS = "[elevation,slope,aspect_sin,aspect_cos,tpi,red,green,blue]"
SMALL = [
    "experiment=landslide_v25",
    "demo=landslide",
    "datamodule.generated.size_px=128",
    f"datamodule.channels.names={CHANNELS}",
    "datamodule.tiles={px:16,stride:8}",
    "datamodule.rare.smote=null",
    "datamodule.loader={batch_size:8,tiles_per_epoch:32}",
    "lightning_module.network={encoder:tu-resnet18,weights:null,decoder_channels:[16,8,4]}",
    "lightning_module.inference={window:64,overlap:16,tta:false,crf:{iterations:2,tile:128}}",
    "lightning_module.evaluation={train_pixels:2000,trees:10}",
    "trainer.max_epochs=2",
    "trainer.log_every_n_steps=1",
    "+trainer.enable_progress_bar=false",
]
LAYERS = {"class_map", "probabilities", "score", "p_high", "uncertainty", "novelty", "valid"}


def settings(folder: Path, *overrides: str) -> list[str]:
    paths = [f"paths.checkpoints={folder}/runs", f"paths.data={folder}/data", f"paths.cache={folder}/cache"]
    return [*SMALL, *paths, *overrides]


def run(folder: Path, *overrides: str) -> float | None:
    with initialize_config_module("stagewise.conf", version_base="1.3"):
        return train.run(compose("train", settings(folder, *overrides)))


def program(name: str, **options: object):
    with initialize_config_module("stagewise.conf", version_base="1.3"):
        cfg = compose(name, [f"{key}={value}" for key, value in options.items()])
    return {"evaluate": evaluate, "predict": predict}[name].run(cfg)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("landslide")
    run(folder)
    return folder


@pytest.fixture(scope="module")
def best(trained) -> Path:
    return trained / "runs" / "landslide_v25" / "landslide_v25_best.ckpt"


@pytest.fixture(scope="module")
def survey(tmp_path_factory) -> Path:
    """New ground without labels."""
    folder = tmp_path_factory.mktemp("survey")
    write_generated_landslides(folder, areas={"cedar": {}}, size_px=96, seed=7)
    (folder / "cedar" / "labels.tif").unlink()
    return folder / "cedar"


def test_a_run_leaves_checkpoint_metrics_pictures_and_card(trained, best):
    folder = best.parent
    names = {p.name for p in folder.iterdir()}
    assert {"losses.csv", "curves.png", "summary.json", "model_card.md", "model_card.json", "evaluation_test"} <= names
    metrics = json.loads((folder / "evaluation_test" / "metrics.json").read_text())
    assert {
        "test/quadratic_kappa",
        "test/baseline/random_forest/quadratic_kappa",
        "test/leak/gap/quadratic_kappa",
    } <= set(metrics)
    with open(folder / "losses.csv") as file:
        rows = list(csv.DictReader(file))
    assert {"loss_total", "loss_focal", "loss_dice", "loss_ordinal", "quadratic_kappa", "medium_recall"} <= set(rows[0])
    for row in (r for r in rows if r["split"] == "train"):
        parts = float(row["loss_focal"]) + float(row["loss_dice"]) + 0.3 * float(row["loss_ordinal"])
        assert float(row["loss_total"]) == pytest.approx(parts, rel=1e-4)
    assert not list((folder / "evaluation_test").rglob(".work"))
    pictures = list((folder / "evaluation_test").rglob("*.png"))
    assert len(pictures) >= 4 and all(p.stat().st_size > 5_000 for p in pictures)


def test_the_checkpoint_is_safe_self_contained_and_calibrated(best):
    state = torch.load(best, weights_only=True)["landslide"]
    assert {"channels", "mean", "std", "splits", "typical", "pixel_size_m"} <= set(state["schema"])
    assert state["calibration"]["kind"] == "temperature_bias"
    assert len(state["calibration"]["decision"]["weights"]) == 3
    choice = state["calibration"]["crf"]
    assert choice["kept"] == (choice["kappa_with"] >= choice["kappa_without"])
    assert (state["inference"]["crf"] is not None) == choice["kept"]
    assert state["calibration"]["nll_after"] <= state["calibration"]["nll_before"]
    assert state["metrics"]["test/pixels"] > 0


def test_the_score_is_that_of_the_exported_map_over_labelled_pixels(trained, best):
    module = load_module(str(best))
    metrics = json.loads((best.parent / "evaluation_test" / "metrics.json").read_text())
    seen = right = 0
    from stagewise.datamodules.landslide.spatial_splits import SpatialSplits

    splits = SpatialSplits.from_plain(module.schema["splits"])
    for area in ("alder", "birch"):
        path = best.parent / "evaluation_test" / "maps" / area / "class_map.tif"
        if not path.is_file():
            continue
        with (
            rasterio.open(path) as raster,
            rasterio.open(trained / "data" / "landslide" / area / "labels.tif") as truth,
        ):
            answer, label = raster.read(1).astype(int), truth.read(1).astype(int) - 1
        own = splits.mask(area, (0, 0, *answer.shape), "test") & (label >= 0) & (answer != 255)
        seen, right = seen + own.sum(), right + (answer == label)[own].sum()
    assert metrics["test/pixels"] == seen
    assert metrics["test/accuracy"] == pytest.approx(right / seen, abs=1e-9)


def test_evaluate_scores_another_split_and_compares(best, capsys, tmp_path):
    other = best.parent / "evaluation_test" / "metrics.json"
    options = {"checkpoint": best, "output": tmp_path / "again", "options.baselines": "false", "trainer": "cpu"}
    again = program("evaluate", compare=other, **options)
    assert again["test/quadratic_kappa"] == pytest.approx(
        json.loads(other.read_text())["test/quadratic_kappa"], abs=1e-9
    )
    assert "test/quadratic_kappa" in capsys.readouterr().out
    with pytest.raises(FileNotFoundError, match=r"no file at compare='nowhere\.json'"):
        program("evaluate", compare="nowhere.json", **options)


def test_predict_writes_every_layer_and_leaves_nothing_else(best, survey, tmp_path):
    assert program("predict", checkpoint=best, input=survey, output=tmp_path / "out") == 1
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert names == {f"{layer}.tif" for layer in LAYERS} | {"quicklook.png", "model_card.md", "model_card.json"}
    with rasterio.open(tmp_path / "out" / "class_map.tif") as classes, rasterio.open(survey / "dtm.tif") as dtm:
        assert (classes.crs, classes.transform, classes.shape) == (dtm.crs, dtm.transform, dtm.shape)
        assert classes.nodata == 255 and len(classes.colormap(1)) >= 3


def test_an_ensemble_is_the_mean_of_its_members(trained, best, survey, tmp_path):
    run(trained, "seed=7", "name=other")
    second = trained / "runs" / "other" / "other_best.ckpt"
    plain = {"options.inference": "{crf:null,tta:false}", "input": survey}
    found = []
    for name, checkpoint in {"a": best, "b": second, "both": f"[{best},{second}]"}.items():
        program("predict", checkpoint=checkpoint, output=tmp_path / name, **plain)
        with rasterio.open(tmp_path / name / "probabilities.tif") as raster:
            found.append(raster.read())
        card = json.loads((tmp_path / name / "model_card.json").read_text())
        assert bool(card["figures"]) == (name != "both")  # those of a member are not the ensemble's
    members = [load_module(str(c)).calibration for c in (best, second)]
    assert card["members"] == 2
    assert card["calibration"]["temperature"] == pytest.approx(np.sqrt(np.prod([m["temperature"] for m in members])))
    a, b, both = (undone(p, state) for p, state in zip(found, [*members, card["calibration"]], strict=True))
    assert np.nanmax(np.abs((a + b) / 2 - both)) < 1e-3  # calibration undone: the mean of the networks' own answers


def layer(folder: Path, name: str) -> tuple[np.ndarray, dict]:
    with rasterio.open(folder / f"{name}.tif") as raster:
        return raster.read(), raster.tags()


def test_a_run_killed_in_the_middle_goes_on_and_gives_the_same_map(best, survey, tmp_path, monkeypatch):
    """With Monte-Carlo dropout, whose draws a second start must repeat."""
    asked = {"checkpoint": best, "input": survey, "options.inference": "{mc_dropout:3,crf:null}"}
    program("predict", output=tmp_path / "whole", **asked)
    finished = []

    def dies(source: Path, target: Path, layer: Any) -> None:
        if len(finished) == 2:
            raise KeyboardInterrupt
        finished.append(target)
        make_cog(source, target, layer)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(inference, "make_cog", dies)
        program("predict", output=tmp_path / "again", **asked)
    assert {p.name for p in (tmp_path / "again").glob("*.tif")} == {p.name for p in finished}
    before = {p: p.stat().st_mtime_ns for p in finished}
    program("predict", output=tmp_path / "again", **asked)
    assert {p: p.stat().st_mtime_ns for p in finished} == before  # what was whole is not made again
    for name in LAYERS:
        (whole, tags), (again, _) = layer(tmp_path / "whole", name), layer(tmp_path / "again", name)
        np.testing.assert_array_equal(whole, again)
        if name == "uncertainty":
            assert "mutual information" in tags["kind"] or "deviation" in tags["kind"]
            assert np.nanmax(whole) > 0 and np.nanmin(whole) >= 0


def undone(probability: np.ndarray, state: dict) -> np.ndarray:
    raw = np.exp((np.log(probability) - np.reshape(state["bias"], (-1, 1, 1))) * state["temperature"])
    return raw / raw.sum(0)


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda f: (f / "dtm.tif").unlink(), r"dtm\.tif"),
        (lambda f: (f / "dtm.tif").write_bytes((f / "dtm.tif").read_bytes()[:3000]), r"dtm\.tif"),
        (lambda f: coarser(f / "dtm.tif"), r"20 m, the model was trained with 10 m"),
    ],
    ids=["missing", "truncated", "pixel size"],
)
def test_rasters_that_do_not_fit_are_refused_and_nothing_is_written(best, survey, tmp_path, change, words):
    broken = Path(shutil.copytree(survey, tmp_path / "survey"))
    change(broken)
    with pytest.raises(ValueError, match=words):
        program("predict", checkpoint=best, input=broken, output=tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*.tif*"))


def coarser(path: Path) -> None:
    with rasterio.open(path) as raster:
        profile, values = raster.profile, raster.read()
    profile["transform"] = profile["transform"] @ rasterio.Affine.scale(2)
    with rasterio.open(path, "w", **profile) as raster:
        raster.write(values)


@pytest.mark.slow
@pytest.mark.parametrize(
    "sweep, key, values",
    [
        (["ablation=none,attention,ordinal,sampler,crf"], "ablation", 5),
        (["datamodule.fold=0,1", "seed=1,2"], "datamodule.fold", 2),
    ],
    ids=["ablation", "folds"],
)
def test_a_multirun_writes_the_tests_figures_and_their_means(trained, tmp_path, sweep, key, values):
    command = [sys.executable, "train.py", "-m", *settings(trained, *sweep, f"hydra.sweep.dir={tmp_path}/sweep")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    with open(tmp_path / "sweep" / "sweep.csv") as file:
        rows = list(csv.DictReader(file))
    assert len({row[key] for row in rows}) == values
    assert all(-1 <= float(row["test/quadratic_kappa"]) <= 1 for row in rows)
    if "seed=1,2" in sweep:
        with open(tmp_path / "sweep" / "sweep_summary.csv") as file:
            (mean,) = csv.DictReader(file)
        kappas = [float(row["test/quadratic_kappa"]) for row in rows]
        assert int(mean["runs"]) == 4 and float(mean["test/quadratic_kappa mean"]) == pytest.approx(np.mean(kappas))
