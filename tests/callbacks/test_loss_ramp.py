import pytest
import torch
from lightning.pytorch.callbacks import Callback

from stagewise.callbacks import LossRamp

FIVE = {"start": 0.2, "end": 1.0, "epochs": 5}


class Weights(Callback):
    def __init__(self):
        self.training, self.logged = [], []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.training.append(pl_module.loss_weights["offset"])

    def on_train_epoch_end(self, trainer, pl_module):
        self.logged.append(float(trainer.callback_metrics["ramp/offset"]))


def ramped(tiny, folder, spec, callbacks=(), **kwargs):
    module, seen = tiny.TinyModule(scores=[9, 8, 7, 6, 5, 4]), Weights()
    tiny.fit(folder, module, [*callbacks, LossRamp({"offset": spec}), seen], **kwargs)
    return module, seen


def test_the_fifth_of_five_epochs_has_the_end_weight(tiny, tmp_path):
    _, seen = ramped(tiny, tmp_path, FIVE, max_epochs=6)
    assert seen.training[::4] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])
    assert seen.logged == pytest.approx(seen.training[::4])


def test_evaluations_use_the_end_weight_and_training_gets_its_own_back(tiny, tmp_path):
    module, seen = ramped(tiny, tmp_path, FIVE, max_epochs=2, val_check_interval=2, num_sanity_val_steps=1)
    assert set(module.seen_offsets) == {1.0}
    assert seen.training == pytest.approx([0.2] * 4 + [0.4] * 4)


def test_steps_and_shapes(tiny, tmp_path):
    spec = {"start": 0.0, "end": 1.0, "steps": 3}
    _, linear = ramped(tiny, tmp_path, spec, max_epochs=1)
    _, cosine = ramped(tiny, tmp_path, {**spec, "steps": 5, "shape": "cosine"}, max_epochs=1)
    _, step = ramped(tiny, tmp_path, {**spec, "shape": "step"}, max_epochs=1)
    assert linear.training == pytest.approx([0.0, 0.5, 1.0, 1.0])
    assert cosine.training == pytest.approx([0.0, 0.146447, 0.5, 0.853553], abs=1e-6)
    assert step.training == pytest.approx([0.0, 0.0, 1.0, 1.0])


def test_a_ramp_may_wait_for_a_stage_and_a_resume_knows_when_it_began(tiny, staged, tmp_path):
    plan = {"heads": {"open": ["heads"], "epochs": 2}, "top": {"open": ["body"], "epochs": 3}}
    spec = {"start": 0.0, "end": 1.0, "epochs": 3, "after": "stage:top"}

    class Save(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            trainer.save_checkpoint(tmp_path / f"{trainer.current_epoch}.ckpt")

    _, seen = ramped(tiny, tmp_path, spec, [staged(plan), Save()])
    assert seen.training[::4] == pytest.approx([0, 0, 0, 0.5, 1.0])
    state = torch.load(tmp_path / "2.ckpt", weights_only=True)["callbacks"]["LossRamp"]
    assert state == {"begun": {"offset": {"epochs": 2, "steps": 8}}}
    _, resumed = ramped(tiny, tmp_path, spec, [staged(plan)], ckpt_path=tmp_path / "2.ckpt")
    assert resumed.training == pytest.approx(seen.training[12:])


def test_unknown_names_and_stages_are_refused_naming_the_known(tiny, staged, tmp_path):
    with pytest.raises(ValueError, match=r"'ofset'.*offset"):
        tiny.fit(tmp_path, tiny.TinyModule(), [LossRamp({"ofset": FIVE})])
    ramp = LossRamp({"offset": {**FIVE, "after": "stage:tip"}})
    with pytest.raises(ValueError, match="no StagedUnfreezing"):
        tiny.fit(tmp_path, tiny.TinyModule(), [ramp])
    with pytest.raises(ValueError, match=r"'tip'.*heads"):
        tiny.fit(tmp_path, tiny.TinyModule(), [staged({"heads": {"open": ["heads"], "epochs": 1}}), ramp])


@pytest.mark.parametrize(
    "spec, words",
    [
        ({"start": 0, "end": 1}, "exactly one of epochs and steps"),
        ({"start": 0, "end": 1, "epochs": 0}, "from 1 on"),
        ({**FIVE, "shape": "square"}, "shape.*square"),
        ({**FIVE, "after": "top"}, "stage:NAME"),
        ({"end": 1, "epochs": 2}, "needs start"),
    ],
)
def test_descriptions_that_cannot_work_are_refused(spec, words):
    with pytest.raises(ValueError, match=words):
        LossRamp({"offset": spec})
