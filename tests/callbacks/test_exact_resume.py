import os
import signal

import pytest
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping
from lightning.pytorch.plugins import TorchCheckpointIO
from lightning.pytorch.strategies import FSDPStrategy

from stagewise.callbacks import BestMedianCheckpoint, DurableCheckpointIO, ExactResume, Preempted, StagedUnfreezing
from stagewise.datamodules import ResumableDataLoader
from stagewise.datamodules.errors import DataMismatchError

VARIANTS = {
    "accumulated": {"accumulate_grad_batches": 3, "val_check_interval": 0.25},
    "bf16": {"precision": "bf16-mixed"},
    "compiled": {"compiled": "eager"},
    "workers": {"workers": 2},
    "averaged": {"stages": None, "ema": True},
    "max_steps": {"max_steps": 15},
    "cut": {"max_epochs": 3},
    "limited": {"limit_train_batches": 3, "val_check_interval": 1.0},
    "seldom_validated": {"check_val_every_n_epoch": 2, "val_check_interval": 1.0},
}


def matrix(exact, folder, chosen=lambda number: True, **options):
    """Resumes from the chosen saves of one run: ``{number: (stage, moment, differences)}``, and the whole run."""
    whole = exact.fit(folder / "whole", io=exact.Archive(folder / "archive"), **options)
    results = {}
    for number, save in enumerate(sorted((folder / "archive").iterdir())):
        if chosen(number):
            where = exact.describe(save)
            results[number] = (*where, exact.differences(whole, exact.fit(save, **options)))
    return results, whole


def wrong(results):
    return {number: row for number, row in results.items() if row[2]}


# --- the acceptance matrix ---


def test_the_run_goes_through_a_plateau_and_a_rollback(exact, tmp_path):
    whole = exact.fit(tmp_path)
    assert [row["outcome"] for row in whole["stages"]["stages"]] == ["kept", "kept", "rolled back"]
    assert [row["ended by"] for row in whole["stages"]["stages"]] == ["epochs", "plateau", "epochs"]
    assert whole["best"] == 4 and exact.differences(whole, whole) == []


@pytest.mark.filterwarnings("ignore:The trainer ended before")
def test_a_difference_would_be_seen(exact, tmp_path):
    whole, other = exact.fit(tmp_path / "a"), exact.fit(tmp_path / "b", max_epochs=3)
    found = exact.differences(whole, other)
    assert "weights" in found and "stages" in found and "missing 4/0" in found


def test_a_resume_from_some_saves_is_bitwise_the_run_that_was_never_killed(exact, tmp_path):
    results, _ = matrix(exact, tmp_path, chosen=lambda number: number % 4 == 0)
    assert len(results) >= 5 and not wrong(results)


@pytest.mark.slow
def test_a_resume_from_every_save_is_bitwise_the_run_that_was_never_killed(exact, tmp_path):
    results, _ = matrix(exact, tmp_path)
    assert not wrong(results)
    moments = ("batch 0", "mid-epoch", "after validation", "epoch end")
    wanted = {(stage, moment) for stage in ("heads", "plateau", "last") for moment in moments}
    assert {(stage, moment) for stage, moment, _ in results.values()} == wanted | {("finished", "epoch end")}


@pytest.mark.filterwarnings("ignore:The trainer ended before")
@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_resume_bitwise_from_some_saves(exact, tmp_path, variant):
    results, _ = matrix(exact, tmp_path, chosen=lambda number: number % 7 == 3, **VARIANTS[variant])
    assert results and not wrong(results)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The trainer ended before")
@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_resume_bitwise_from_every_save(exact, tmp_path, variant):
    results, _ = matrix(exact, tmp_path, **VARIANTS[variant])
    assert results and not wrong(results)


def test_workers_and_compilation_change_nothing(exact, tmp_path):
    plain = exact.fit(tmp_path / "plain")
    assert exact.differences(plain, exact.fit(tmp_path / "workers", workers=2)) == []
    assert exact.differences(plain, exact.fit(tmp_path / "compiled", compiled="eager")) == []


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_with_bf16_and_compilation_resumes_bitwise(exact, tmp_path):
    options = {"accelerator": "gpu", "precision": "bf16-mixed", "compiled": "inductor"}
    results, _ = matrix(exact, tmp_path, chosen=lambda number: number % 4 == 0, **options)
    assert results and not wrong(results)


@pytest.mark.mps
@pytest.mark.skipif(not torch.backends.mps.is_available(), reason="no MPS device")
def test_mps_resumes_bitwise(exact, tmp_path):
    results, _ = matrix(exact, tmp_path, chosen=lambda number: number % 4 == 0, accelerator="mps")
    assert results and not wrong(results)


# --- processes ---


def test_sigterm_saves_and_leaves_with_75_and_the_run_goes_on(spawned, tmp_path):
    done = spawned("processes.py", "preempt", tmp_path, 1)
    assert done == {"codes": [75], "resumed": [0], "different": []}


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2])
def test_twenty_kills_at_random_moments_change_nothing(spawned, tmp_path, world):
    done = spawned("processes.py", "kills", tmp_path, world, 20, 1)
    assert done["kills"] == 20 and done["completed"] >= 1 and done["different"] == []


@pytest.mark.slow
def test_two_processes_resume_bitwise_from_every_save(spawned, tmp_path):
    done = spawned("processes.py", "matrix", tmp_path, 2)
    assert done["codes"] == [0, 0] and len(done["rows"]) > 30
    assert not [row for row in done["rows"] if row[2]] and done["ranks apart"] == []


@pytest.mark.slow
def test_sigterm_to_one_of_two_processes_saves_and_ends_both(spawned, tmp_path):
    assert spawned("processes.py", "preempt", tmp_path, 2) == {"codes": [75, 0], "resumed": [0, 0], "different": []}


def test_sigterm_in_the_sanity_check_ends_the_run_before_the_first_step(exact, tiny, tmp_path):
    class Terminate(tiny.TinyModule):
        def validation_step(self, batch, batch_idx):
            os.kill(os.getpid(), signal.SIGTERM)

    trainer = tiny.make_trainer(tmp_path, [ExactResume(str(tmp_path))], num_sanity_val_steps=1)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Preempted, match="before the first step") as left:
        trainer.fit(Terminate(scores=[1]), ResumableDataLoader(exact.Noisy(), batch_size=8), tiny.loader())
    assert left.value.code == 75 and trainer.global_step == 0
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_checkpoint_from_before_training_holds_no_position(exact, tiny, tmp_path):
    plan = {"frozen": {"open": []}, "heads": {"open": ["heads"], "epochs": 1}}
    stages = StagedUnfreezing(plan, monitor="val/score", dirpath=str(tmp_path))
    best = BestMedianCheckpoint(str(tmp_path), "run", monitor="val/score")
    callbacks = [stages, best, ExactResume(str(tmp_path))]
    trainer = tiny.make_trainer(tmp_path, callbacks, max_epochs=1, num_sanity_val_steps=-1)
    train = ResumableDataLoader(exact.Noisy(), batch_size=8)
    trainer.fit(tiny.TinyModule(scores=[2], start=1.0), train, tiny.loader())
    saved = torch.load(best.best_model_path, weights_only=True)["callbacks"]
    assert best.best_epoch == 0 and [state for key, state in saved.items() if key.startswith("ExactResume")] in (
        [],
        [{}],
    )


# --- what it does ---


class Count(Callback):
    def __init__(self):
        self.batches = 0

    def on_train_batch_end(self, *_):
        self.batches += 1


class Crash(Callback):
    """Dies in the middle of an epoch."""

    def __init__(self, step=6):
        self.step = step

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == self.step:
            raise KeyError("crash")


def crashed(exact, folder, **options):
    with pytest.raises(KeyError, match="crash"):
        exact.fit(folder, Crash(), **options)


def test_a_finished_run_stays_finished_and_has_its_weights_again(exact, tmp_path):
    whole, count = exact.fit(tmp_path), Count()
    again = exact.fit(tmp_path, count)
    assert count.batches == 0 and again["weights"] == whole["weights"]


def test_a_run_that_early_stopping_ended_stays_stopped(exact, tmp_path):
    def early():
        return EarlyStopping("val/score", patience=1)

    first, count = exact.fit(tmp_path, early(), stages=None), Count()
    again = exact.fit(tmp_path, early(), count, stages=None)
    assert first["journal"]["end"][1] < 7 and count.batches == 0 and again["weights"] == first["weights"]


def test_a_run_goes_on_in_another_folder_and_leaves_the_old_one_alone(exact, tiny, tmp_path):
    crashed(exact, tmp_path / "old")
    before = {path: path.read_bytes() for path in (tmp_path / "old").rglob("*.ckpt")}
    whole = exact.fit(tmp_path / "whole")
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "resume.ckpt").write_bytes((tmp_path / "old" / "resume.ckpt").read_bytes())
    assert exact.differences(whole, exact.fit(tmp_path / "new")) == []
    assert before == {path: path.read_bytes() for path in (tmp_path / "old").rglob("*.ckpt")}


def test_a_damaged_checkpoint_gives_way_to_the_older_with_a_warning_that_names_both(exact, tmp_path, caplog):
    crashed(exact, tmp_path / "run")
    newest = tmp_path / "run" / "resume.ckpt"
    newest.write_bytes(newest.read_bytes()[:1000])
    again, whole = exact.fit(tmp_path / "run"), exact.fit(tmp_path / "whole")
    assert exact.differences(whole, again) == []
    (warning,) = [r.getMessage() for r in caplog.records if "is damaged" in r.getMessage()]
    assert "resume.ckpt' is damaged" in warning and "going on from the older" in warning
    assert "resume.previous.ckpt'" in warning


def test_it_saves_every_n_steps_keeps_versions_and_nothing_else(exact, tmp_path):
    steps = []

    class Seen(DurableCheckpointIO):
        def save_checkpoint(self, checkpoint, path, storage_options=None):
            steps.extend([checkpoint["global_step"]] if str(path).endswith("resume.ckpt") else [])
            super().save_checkpoint(checkpoint, path, storage_options)

    exact.fit(tmp_path, io=Seen(), every_n_steps=3, stages=None, val_check_interval=1.0, max_epochs=2)
    assert steps == [3, 4, 6, 8]  # every third, the end of the epoch, the end of the fit
    assert sorted(p.name for p in tmp_path.glob("resume*")) == ["resume.ckpt", "resume.previous.ckpt"]


def test_it_comes_last_and_makes_the_files_durable(exact, tiny, tmp_path):
    resume = ExactResume(str(tmp_path))
    trainer = tiny.make_trainer(tmp_path, [resume, Count()], max_epochs=1)
    trainer.fit(tiny.TinyModule(scores=[1]), ResumableDataLoader(exact.Noisy(), batch_size=8), tiny.loader())
    assert trainer.callbacks[-1] is resume and type(trainer.strategy.checkpoint_io) is DurableCheckpointIO


def test_checkpoints_open_with_weights_only(exact, tmp_path):
    crashed(exact, tmp_path)
    state = torch.load(tmp_path / "resume.ckpt", weights_only=True)["callbacks"]["ExactResume"]
    assert {"seed", "stopped", "logged", "loader", "ranks"} <= set(state)


def test_a_logged_value_is_there_at_the_first_look_after_a_resume(exact, tmp_path):
    crashed(exact, tmp_path)  # in the second epoch, before its first evaluation
    seen = []

    class Look(Callback):
        def on_train_batch_start(self, trainer, *_):
            seen.append(trainer.callback_metrics.get("val/score"))

    exact.fit(tmp_path, Look())
    assert seen[0] == 6


def test_find_gives_nothing_where_there_is_no_run(tmp_path):
    assert ExactResume.find(tmp_path) is None and ExactResume.find(tmp_path / "nowhere") is None
    (tmp_path / "resume.previous.ckpt").write_bytes(b"x")
    assert ExactResume.find(tmp_path) == str(tmp_path / "resume.ckpt")


# --- refusals ---


def fit_with(tiny, folder, loader=None, **options):
    module = tiny.TinyModule(scores=[1])
    trainer = tiny.make_trainer(folder, [ExactResume(str(folder))], max_epochs=1, **options)
    trainer.fit(module, loader or tiny.loader(), tiny.loader())


def test_a_loader_that_does_not_know_its_position_is_refused_before_training(tiny, tmp_path):
    with pytest.raises(ValueError, match=r"DataLoader does not know its position.*ResumableDataLoader"):
        fit_with(tiny, tmp_path)


def test_several_train_loaders_are_refused(exact, tiny, tmp_path):
    loader = ResumableDataLoader(exact.Noisy(), batch_size=8)
    with pytest.raises(ValueError, match="one train loader, got 2"):
        fit_with(tiny, tmp_path, {"a": loader, "b": loader})


def test_a_checkpoint_io_that_is_not_durable_is_refused(tiny, tmp_path):
    class Other(TorchCheckpointIO):
        pass

    with pytest.raises(ValueError, match="needs a DurableCheckpointIO, got Other"):
        fit_with(tiny, tmp_path, plugins=[Other()])


def test_a_plateau_schedule_is_refused(exact, tiny, tmp_path):
    class Plateau(tiny.TinyModule):
        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), 0.1)
            schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "monitor": "val/score"}}

    trainer = tiny.make_trainer(tmp_path, [ExactResume(str(tmp_path))])
    with pytest.raises(ValueError, match="ReduceLROnPlateau cannot be resumed exactly"):
        trainer.fit(Plateau(scores=[1]), ResumableDataLoader(exact.Noisy(), batch_size=8), tiny.loader())


def test_other_data_is_refused_with_the_difference(exact, tmp_path, monkeypatch):
    crashed(exact, tmp_path)
    monkeypatch.setattr(exact.Noisy, "__len__", lambda self: 48)
    with pytest.raises(DataMismatchError, match=r"other data.*\n  samples: 64 in the checkpoint, 48 here"):
        exact.fit(tmp_path)


def test_a_checkpoint_of_another_making_goes_on_with_a_warning(exact, tiny, tmp_path):
    trainer = tiny.make_trainer(tmp_path, [], max_epochs=1)
    trainer.fit(tiny.TinyModule(scores=[1]), tiny.loader(), tiny.loader())
    trainer.save_checkpoint(tmp_path / "plain.ckpt")
    again = tiny.make_trainer(tmp_path, [ExactResume(str(tmp_path))], max_epochs=2)
    loader = ResumableDataLoader(exact.Noisy(), batch_size=16)
    with pytest.warns(UserWarning, match="no state of ExactResume: the run goes on, but not bit for bit"):
        again.fit(tiny.TinyModule(scores=[1]), loader, tiny.loader(), ckpt_path=tmp_path / "plain.ckpt")


def test_other_settings_are_refused_with_the_difference(exact, tiny, tmp_path):
    def run(lr):
        resume = ExactResume(str(tmp_path), settings={"seed": 0, "groups": {"clip": {"lr": lr}}})
        trainer = tiny.make_trainer(tmp_path, [resume], max_epochs=1)
        loader = ResumableDataLoader(exact.Noisy(), batch_size=16)
        trainer.fit(tiny.TinyModule(scores=[1]), loader, tiny.loader(), ckpt_path=ExactResume.find(tmp_path))

    run(1e-5)
    with pytest.raises(ValueError, match=r"other settings.*\n  groups\.clip\.lr: 1e-05 in the checkpoint, 3e-06 here"):
        run(3e-6)


def test_hyper_parameters_that_no_checkpoint_opens_with_are_refused_before_training(exact, tiny, tmp_path):
    class Objects(tiny.TinyModule):
        def __init__(self, tool=None, size=1):
            super().__init__(scores=[1])
            self.save_hyperparameters()

    trainer = tiny.make_trainer(tmp_path, [ExactResume(str(tmp_path))], max_epochs=1)
    with pytest.raises(ValueError, match=r"Objects: the hyper-parameters \['tool'\] hold objects.*ignore=\['tool'\]"):
        trainer.fit(Objects(tool=Count()), ResumableDataLoader(exact.Noisy(), batch_size=16), tiny.loader())


def test_another_number_of_processes_is_refused(exact, tmp_path):
    crashed(exact, tmp_path)
    path = tmp_path / "resume.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["callbacks"]["ExactResume"]["ranks"] *= 2
    torch.save(checkpoint, path)
    with pytest.raises(ValueError, match=r"other processes.*\n.*\[2\]\n.*\[1\]"):
        exact.fit(tmp_path)


@pytest.mark.parametrize("arguments", [{"every_n_steps": 0}, {"keep": 0}])
def test_numbers_below_1_are_refused(arguments):
    with pytest.raises(ValueError, match=f"`{next(iter(arguments))}` must be at least 1"):
        ExactResume("runs", **arguments)


def test_sharded_strategies_are_refused_at_setup_by_every_callback(tmp_path):
    import stagewise.callbacks as ours

    class Sharded:
        strategy = FSDPStrategy()

    made = [
        ours.BestMedianCheckpoint(str(tmp_path), "run", "val/score"),
        ExactResume(str(tmp_path)),
        ours.LossRamp({}),
        ours.MetricRedFlags({}),
        ours.RareClassCollapseStopping("val_confusion", {"recall": {"floor": 0.3}}),
        ours.StagedUnfreezing({"all": {"open": ["all"]}}, "val/score"),
    ]
    for callback in made:
        with pytest.raises(ValueError, match=f"{type(callback).__name__} supports one device and DDP.*strategy='ddp'"):
            callback.setup(Sharded(), None, "fit")
