import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from stagewise.datamodules.geolocation.geodesy import haversine_km
from stagewise.lightning_modules import half_precision
from stagewise.lightning_modules.clip import CLIP_MEAN, CLIP_STD
from stagewise.lightning_modules.geolocation import encoders
from stagewise.lightning_modules.geolocation.decoding import RULES, combine
from stagewise.lightning_modules.geolocation.heads import RegionCellHeads
from stagewise.lightning_modules.geolocation.retrieval import ReferenceBank

# --- what it gives ---


def test_forward_gives_the_documented_shapes(network, batch):
    out = network(batch)
    shapes = {name: tuple(value.shape) for name, value in out.items()}
    assert shapes == {"embedding": (9, 512), "region_logits": (9, 3), "cell_logits": (9, 3, 4), "aux_deg": (9, 2)}


def test_the_layers_have_the_widths_of_the_recipe(network):
    assert network.cell_embedding.weight.shape == (9, 96) and network.region_embedding.weight.shape == (3, 32)
    assert [tuple(m.weight.shape) for m in network.region_head if hasattr(m, "weight") and m.weight.ndim == 2] == [
        (256, 512),
        (3, 256),
    ]
    assert any(isinstance(m, torch.nn.Dropout) and m.p == 0.1 for m in network.region_head)
    linear = [m for m in network.offset_head.modules() if isinstance(m, torch.nn.Linear)]
    assert [(m.in_features, m.out_features) for m in linear] == [
        (640, 256),
        (256, 256),
        (256, 256),
        (256, 128),
        (128, 2),
    ]
    assert isinstance(network.cell_heads[1], RegionCellHeads) and network.gate.out_features == 1


def test_tables_lead_from_a_cell_to_its_slot_and_back(network, tiny):
    cells = tiny.geography()["cells"]
    assert network.cell_region.tolist() == cells["region"]
    for c in range(9):
        assert network.cell_at[network.cell_region[c], network.cell_slot[c]] == c
    assert (network.cell_at == -1).sum() == 3 and network.cell_at.shape == (3, 4)
    torch.testing.assert_close(network.cell_centre_deg, torch.tensor(cells["centre_deg"]))
    torch.testing.assert_close(
        network.offset_limit_deg[:, 0], 20 * torch.tensor([1.0, 0.6, 1.4])[network.cell_region] / 111
    )


def test_the_cell_table_may_come_in_any_order(tiny, network):
    geography, cells = tiny.geography(), tiny.geography()["cells"]
    order = [4, 8, 0, 3, 7, 1, 6, 2, 5]
    geography["cells"] = {key: [column[i] for i in order] for key, column in cells.items()}
    shuffled = tiny.network(geography=geography)
    torch.testing.assert_close(shuffled.cell_centre_deg, network.cell_centre_deg)


# --- what it starts from ---


@pytest.mark.parametrize("seed", range(4))
def test_the_gate_leans_to_clip_at_the_start(tiny, batch, seed):
    fresh = tiny.network(seed=seed).eval()
    features = fresh.encode(batch)
    clip, scene = fresh.clip_projection(features["clip_features"]), fresh.scene_projection(features["scene_features"])
    alpha = torch.sigmoid(fresh.gate(torch.cat([clip, scene], -1)))
    torch.testing.assert_close(alpha, torch.full((9, 1), -0.4).sigmoid())
    torch.testing.assert_close(fresh.embed(features), alpha * scene + (1 - alpha) * clip)


@pytest.mark.parametrize(("bias", "winner"), [(40.0, "scene"), (-40.0, "clip")])
def test_the_gate_decides_which_encoder_counts(tiny, batch, bias, winner):
    fresh = tiny.network().eval()
    torch.nn.init.constant_(fresh.gate.bias, bias)
    features = fresh.encode(batch)
    projected = getattr(fresh, f"{winner}_projection")(features[f"{winner}_features"])
    torch.testing.assert_close(fresh.embed(features), projected)


def test_the_auxiliary_head_starts_at_the_centroid_of_train(network, batch, tiny):
    start = network(batch)["aux_deg"]
    centroid = torch.tensor(tiny.geography()["centroid_deg"])
    torch.testing.assert_close(network.aux_head[-1].bias, centroid)
    assert (start - centroid).abs().max() < 1


def test_an_untrained_network_puts_a_picture_near_the_centre_of_its_cell(network, batch):
    places = network.locate(network(batch)["embedding"], batch["cell"])
    assert haversine_km(places, network.cell_centre_deg[batch["cell"]]).max() < 20


# --- the clamp ---


@pytest.mark.parametrize("sign", [1, -1])
def test_the_clamp_holds_at_inference(tiny, batch, sign):
    wild = tiny.network().eval()
    torch.nn.init.constant_(wild.offset_head.exit[-1].bias, sign * 1e6)
    for cells in (batch["cell"], torch.arange(9).expand(9, 9)):
        embedding = wild(batch)["embedding"]
        embedding = embedding if cells.ndim == 1 else embedding.unsqueeze(1).expand(-1, 9, -1)
        offset = wild.locate(embedding, cells) - wild.cell_centre_deg[cells]
        limit = wild.offset_limit_deg[cells]
        torch.testing.assert_close(offset, sign * limit, atol=1e-4, rtol=1e-4)  # on the bound, not beyond


def test_longitudes_wrap_at_the_date_line(tiny, batch):
    geography = tiny.geography()
    geography["cells"]["centre_deg"] = [[0.0, 179.95]] * 9
    wild = tiny.network(geography=geography).eval()
    torch.nn.init.constant_(wild.offset_head.exit[-1].bias, 1e3)
    places = wild.locate(wild(batch)["embedding"], batch["cell"])
    assert (places[:, 1] < -179).all() and places.isfinite().all()


# --- frozen and open encoders ---


def test_frozen_encoders_stay_in_eval_mode_without_gradient_and_keep_their_statistics(tiny, batch):
    net = tiny.network()
    expected = net.eval().encode(batch)
    statistics = {k: v.clone() for k, v in net.scene.state_dict().items() if "running" in k or "num_batches" in k}
    assert statistics
    net.train()
    for _ in range(2):
        features = net.encode(batch)
    for name, value in features.items():
        assert not value.requires_grad
        assert torch.equal(value, expected[name])
    assert all(torch.equal(net.scene.state_dict()[k], v) for k, v in statistics.items())
    net(batch)["region_logits"].sum().backward()
    assert all(p.grad is None for name in ("clip", "scene") for p in getattr(net, name).parameters())
    assert net.gate.weight.grad is not None


@pytest.mark.parametrize(("opened", "closed"), [("clip", "scene"), ("scene", "clip")])
def test_opening_an_encoder_gives_it_gradients(tiny, batch, opened, closed):
    net = tiny.network()
    getattr(net, opened).requires_grad_(True)
    assert net.is_open(opened) and not net.is_open(closed)
    net(batch)["aux_deg"].sum().backward()
    grads = [p.grad for p in getattr(net, opened).parameters()]
    assert any(g is not None and g.any() for g in grads)
    assert all(p.grad is None for p in getattr(net, closed).parameters())


def test_opening_only_the_top_gives_the_top_a_gradient(tiny, batch):
    net = tiny.network()
    net.scene.layer4.requires_grad_(True)
    net(batch)["aux_deg"].sum().backward()
    with_gradient = {name.split(".")[0] for name, p in net.scene.named_parameters() if p.grad is not None}
    assert with_gradient == {"layer4"}


def test_an_open_encoder_computes_what_the_frozen_one_did(tiny, batch):
    net = tiny.network().eval()
    frozen = net.encode(batch)
    net.clip.requires_grad_(True)
    net.scene.requires_grad_(True)
    for name, value in net.encode(batch).items():
        torch.testing.assert_close(value, frozen[name])


def test_cached_features_take_the_place_of_the_encoders(network, batch):
    features = network.encode(batch)
    for name, value in network(features).items():
        assert torch.equal(value, network(batch)[name])


def test_each_encoder_sees_pictures_normalised_with_its_own_statistics(network, batch, monkeypatch):
    seen = {}
    for name in ("clip", "scene"):
        monkeypatch.setitem(network._frozen, name, lambda image, name=name: seen.setdefault(name, image))
    network.encode(batch)
    for name, mean, std in (
        ("clip", CLIP_MEAN, CLIP_STD),
        ("scene", encoders.IMAGENET_MEAN, encoders.IMAGENET_STD),
    ):
        back = seen[name] * torch.tensor(std).view(3, 1, 1) + torch.tensor(mean).view(3, 1, 1)
        torch.testing.assert_close(back, batch["image"])


# --- the half-precision copy ---


@pytest.fixture
def half(monkeypatch):
    monkeypatch.setattr(half_precision, "runs_bf16_faster", lambda device: True)


def close_in_bf16(found, expected):
    return all((found[k] - expected[k]).norm() < 0.03 * expected[k].norm() for k in expected)


def test_the_half_precision_copy_answers_nearly_the_same_in_float32(tiny, batch, monkeypatch):
    net = tiny.network().eval()
    expected = net.encode(batch)
    monkeypatch.setattr(half_precision, "runs_bf16_faster", lambda device: True)
    found = net.encode(batch)
    assert all(value.dtype == torch.float32 for value in found.values())
    assert not torch.equal(found["clip_features"], expected["clip_features"])  # it did run in half precision
    assert close_in_bf16(found, expected)


def change_by_checkpoint(net, tiny):
    net.load_state_dict(tiny.network(seed=5).state_dict())


def change_in_place(net, tiny):
    with torch.no_grad():
        net.clip.conv1.weight.mul_(-2)
        net.scene.conv1[0].weight.mul_(-2)


def change_by_training(net, tiny, **options):
    parameters = [*net.clip.parameters(), *net.scene.parameters()]
    optimizer = torch.optim.AdamW([p.requires_grad_(True) for p in parameters], lr=0.01, **options)
    sum(f.square().mean() for f in net.encode({"image": torch.rand(4, 3, 32, 32)}).values()).backward()
    optimizer.step()
    for p in parameters:
        p.requires_grad_(False).grad = None


def change_by_fused_training(net, tiny):
    change_by_training(net, tiny, fused=True)


def change_by_batchnorm(net, tiny):
    for module in net.scene.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_var *= 4


@pytest.mark.parametrize(
    "change",
    [change_by_checkpoint, change_in_place, change_by_training, change_by_fused_training, change_by_batchnorm],
)
def test_the_half_precision_copy_follows_the_weights(tiny, batch, change, monkeypatch):
    net = tiny.network().eval()
    monkeypatch.setattr(half_precision, "runs_bf16_faster", lambda device: True)
    before = net.encode(batch)
    change(net, tiny)
    after = net.encode(batch)
    monkeypatch.setattr(half_precision, "runs_bf16_faster", lambda device: False)
    assert close_in_bf16(after, net.encode(batch))
    assert not close_in_bf16(after, before)


def test_the_half_precision_copy_is_made_once_and_is_no_part_of_the_model(tiny, batch, half):
    net = tiny.network()
    parameters, buffers = len(list(net.parameters())), len(list(net.buffers()))
    keys = list(net.state_dict())
    net.encode(batch)
    first = net._frozen["clip"]._copy
    net.encode(batch)
    assert net._frozen["clip"]._copy is first is not None
    assert next(first.parameters()).dtype == torch.bfloat16
    assert list(net.state_dict()) == keys
    assert (len(list(net.parameters())), len(list(net.buffers()))) == (parameters, buffers)
    assert all(value.dtype != torch.bfloat16 for value in net.state_dict().values())


def test_a_copy_made_in_inference_mode_serves_training(tiny, batch, half):
    net = tiny.network()
    with torch.inference_mode():
        net(batch)
    net.train()
    net(batch)["region_logits"].sum().backward()
    assert net.clip_projection[0].weight.grad.any()


# --- dtypes ---


def test_every_tensor_is_float32_or_int64(tiny, data):
    module = tiny.module(loss={"balance": "weights"})
    module.build(data.geography, load=True)
    odd = {
        name: t.dtype
        for name, t in [*module.named_parameters(), *module.named_buffers(), *module.state_dict().items()]
        if t.dtype not in (torch.float32, torch.int64, torch.bool)
    }
    assert not odd


class NoDoubles(TorchDispatchMode):
    """Refuses every operation that sees or makes a float64 tensor."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves((args, kwargs, result)):
            if isinstance(leaf, torch.Tensor) and leaf.dtype in (torch.float64, torch.complex128):
                raise TypeError(f"{func} touches a float64 tensor")
        return result


def test_the_guard_against_doubles_guards():
    with NoDoubles(), pytest.raises(TypeError, match="float64"):
        torch.ones(2).double()


@pytest.mark.parametrize("shape", ["linear", "huber", "log1p"])
def test_no_float64_reaches_the_device_in_training(tiny, data, shape, monkeypatch):
    module = tiny.module(loss={"balance": "weights", "km": {"shape": shape}})
    module.build(data.geography, load=True)
    monkeypatch.setattr(module, "log_dict", lambda *a, **k: None)
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3)
    samples = next(iter(data.train_dataloader()))
    with NoDoubles():
        loss = module.training_step(data.on_after_batch_transfer(samples, 0), 0)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
    assert loss.isfinite() and loss.dtype == torch.float32


@pytest.mark.parametrize("retrieval", [None, {"neighbours": 2}])
def test_no_float64_reaches_the_device_in_validation(tiny, data, retrieval, monkeypatch):
    module = tiny.module(decode={"retrieval": retrieval}).eval()
    module.build(data.geography, load=True)
    monkeypatch.setattr(module, "log_dict", lambda *a, **k: None)
    samples = next(iter(data.val_dataloader()))
    with torch.no_grad(), NoDoubles():
        batch = data.on_after_batch_transfer(samples, 0)
        if retrieval:
            embedding = module.network.embed(module.network.encode(batch))
            module.bank = ReferenceBank.of(embedding, batch["lat_lon_deg"], batch["cell"])
        module.validation_step(batch, 0)
        module.test_step(batch, 0)
        found = module.prediction_rows(module.network(batch))
        places = [combine(found, rule) for rule in RULES]
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in places)
    rows = module.eval_table.compute()
    assert all(v.dtype in (torch.float32, torch.int64) for v in rows.values())


def test_weights_travel_through_a_file_that_loads_without_code(tiny, batch, network, tmp_path):
    torch.save(network.state_dict(), tmp_path / "weights.pt")
    other = tiny.network(seed=9).eval()
    other.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    for name, value in other(batch).items():
        assert torch.equal(value, network(batch)[name])
