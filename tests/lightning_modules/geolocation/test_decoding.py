import pytest
import torch
from torch.nn import functional as F

from stagewise.datamodules.geolocation.geodesy import haversine_km
from stagewise.lightning_modules.geolocation.decoding import RULES, answer_of, combine, expected_spread_km, hypotheses
from stagewise.lightning_modules.geolocation.retrieval import ReferenceBank, reconstruction_weights

KARACHI, ISLAMABAD = (24.86, 67.01), (33.68, 73.05)


@pytest.fixture
def out(network):
    """A forward pass with confident logits of many shapes."""
    generator = torch.Generator().manual_seed(4)
    cells = (3 * torch.randn(6, 3, 4, generator=generator)).masked_fill(network.cell_at < 0, -1e4)
    return {
        "embedding": torch.randn(6, 512, generator=generator),
        "region_logits": 2 * torch.randn(6, 3, generator=generator),
        "cell_logits": cells,
    }


def by_hand(network, out, i, regions, cells):
    """(probability, cell) of the hypotheses of one picture, best first."""
    p_region = out["region_logits"][i].double().softmax(-1).tolist()
    found = []
    for r in sorted(range(3), key=lambda r: -p_region[r])[:regions]:
        own = [c for c in network.cell_at[r].tolist() if c >= 0]
        p_cell = out["cell_logits"][i, r, : len(own)].double().softmax(-1).tolist()
        best = sorted(range(len(own)), key=lambda s: -p_cell[s])[:cells]
        listed = sum(p_cell[s] for s in best)  # the listed cells share the region's probability
        found += [(p_region[r] * p_cell[s] / listed, own[s]) for s in best]
    return sorted(found, reverse=True)


@pytest.mark.parametrize(("regions", "cells"), [(2, 5), (1, 1), (3, 2), (9, 9)])
def test_hypotheses_equal_a_search_by_hand(network, out, regions, cells):
    found = hypotheses(network, out, regions, cells)
    assert (found["log_p"].diff(dim=1) <= 0).all()
    for i in range(6):
        expected = by_hand(network, out, i, regions, cells)
        n = len(expected)
        assert found["cell"][i, :n].tolist() == [c for _, c in expected]
        torch.testing.assert_close(found["log_p"][i, :n].exp(), torch.tensor([p for p, _ in expected]))
        assert not found["log_p"][i, n:].exp().any()  # padding


def test_there_are_fewer_hypotheses_where_regions_have_fewer_cells(network, out):
    assert hypotheses(network, out, regions=2, cells=5)["cell"].shape == (6, 8)  # no region has more than 4
    assert hypotheses(network, out, regions=9, cells=1)["cell"].shape == (6, 3)


def test_each_hypothesis_has_the_place_of_its_cell(network, out):
    found = hypotheses(network, out, regions=3, cells=4)
    for k in range(12):
        torch.testing.assert_close(found["place_deg"][:, k], network.locate(out["embedding"], found["cell"][:, k]))
    centre = network.cell_centre_deg[found["cell"]]
    assert ((found["place_deg"] - centre).abs() <= network.offset_limit_deg[found["cell"]]).all()


@pytest.mark.parametrize("rule", RULES)
def test_padding_does_not_move_the_answer(network, out, rule):
    sure = {**out, "region_logits": torch.tensor([[0.0, 0.0, 99.0]]).expand(6, 3)}  # a region with two of four cells
    found = hypotheses(network, sure, regions=1, cells=4)
    short = {k: v[:, :2] for k, v in found.items()}
    same = [point(f["place_deg"], f["log_p"], rule, network.cell_region[f["cell"]]) for f in (found, short)]
    torch.testing.assert_close(*same)
    assert (found["cell"] >= 7).all()


def test_a_region_without_cells_is_never_a_hypothesis(tiny, out):
    geography = tiny.geography()
    keep = [i for i, r in enumerate(geography["cells"]["region"]) if r != 1]
    geography["cells"] = {k: [v[i] for i in keep] for k, v in geography["cells"].items()}
    network = tiny.network(geography=geography).eval()
    cells = out["cell_logits"].masked_fill(network.cell_at < 0, -1e4)
    likely = torch.tensor([[1.0, 9.0, 0.0]]).expand(6, 3)
    found = hypotheses(network, {**out, "cell_logits": cells, "region_logits": likely}, regions=2, cells=2)
    assert (network.cell_region[found["cell"][:, 0]] == 0).all()
    assert (found["log_p"].softmax(-1)[:, :2].sum(-1) > 0.999).all()


# --- one point ---


def point(place_deg, log_p, rule, region=None):
    """All hypotheses of one region unless told otherwise."""
    region = torch.zeros_like(log_p, dtype=torch.int64) if region is None else region
    return combine({"place_deg": place_deg, "log_p": log_p, "hypothesis_region": region}, rule)


def test_the_answer_is_the_likeliest_cell_of_the_likeliest_region():
    log_p = torch.tensor([[0.4, 0.35, 0.25]]).log()
    assert answer_of(log_p, torch.tensor([[0, 1, 1]])).item() == 1
    assert answer_of(log_p, torch.tensor([[0, 1, 2]])).item() == 0
    assert answer_of(log_p, torch.tensor([[0, 0, 0]])).item() == 0


def test_a_region_of_many_cells_is_not_outvoted_by_one_of_few(network, out):
    """P(region) 0.6 over four equal cells against 0.4 in one: the answer is in the first region."""
    unsure = {
        **out,
        "region_logits": torch.tensor([[0.6, 0.0, 0.4]]).clamp(min=1e-6).log().expand(6, 3),
        "cell_logits": torch.where(network.cell_at < 0, -1e4, 0.0).expand(6, -1, -1),
    }
    for cells in (1, 2, 4):
        found = hypotheses(network, unsure, regions=2, cells=cells)
        region = network.cell_region[found["cell"]]
        answer = answer_of(found["log_p"], region).unsqueeze(1)
        assert (region.gather(1, answer) == 0).all()


def two_cities(p_first):
    places = torch.tensor([[KARACHI, ISLAMABAD]])
    return places, torch.tensor([[p_first, 1 - p_first]]).log()


def km(a, b):
    return haversine_km(a, torch.tensor(b)).item()


def test_the_mean_of_two_cities_lies_in_neither_but_best_and_geometric_median_do():
    places, log_p = two_cities(0.6)
    mean = point(places, log_p, "mean")
    assert km(mean, KARACHI) > 300 and km(mean, ISLAMABAD) > 300
    assert km(point(places, log_p, "best"), KARACHI) == 0
    assert km(point(places, log_p, "geometric_median"), KARACHI) < 5


def test_best_is_the_likeliest_in_any_order():
    places, log_p = two_cities(0.4)
    assert km(point(places, log_p, "best"), ISLAMABAD) == 0
    assert km(point(places.flip(1), log_p.flip(1), "best"), ISLAMABAD) == 0


def test_the_geometric_median_sides_with_the_majority():
    places = torch.tensor([[(25.0, 67.0), (25.1, 67.1), (25.0, 67.1), (35.0, 75.0)]])
    median = point(places, torch.zeros(1, 4), "geometric_median")
    assert km(median, (25.03, 67.07)) < 20
    assert km(point(places, torch.zeros(1, 4), "mean"), (25.03, 67.07)) > 200


@pytest.mark.parametrize("rule", RULES)
def test_one_sure_hypothesis_is_the_answer_and_the_scale_of_probabilities_is_free(rule):
    places, log_p = two_cities(1 - 1e-7)
    assert km(point(places, log_p, rule), KARACHI) < 1
    torch.testing.assert_close(point(places, log_p - 5, rule), point(places, log_p, rule))


@pytest.mark.parametrize("rule", RULES)
def test_the_date_line_does_not_send_a_picture_round_the_world(rule):
    places = torch.tensor([[(0.0, 179.9), (0.0, -179.9), (0.1, 179.8)]])
    assert abs(point(places, torch.zeros(1, 3), rule)[0, 1].item()) > 179


def test_spread_is_the_expected_distance():
    places, log_p = two_cities(0.75)
    distance = km(torch.tensor(KARACHI), ISLAMABAD)
    spread = expected_spread_km(places, log_p, places[:, 0])
    assert spread.item() == pytest.approx(0.25 * distance, rel=1e-4)


# --- retrieval ---


@pytest.fixture
def bank():
    """Train pictures of cells 0 (two groups 50 km apart, and one 500 km away) and 1; none of cell 2."""
    generator = torch.Generator().manual_seed(0)
    embedding = torch.randn(12, 64, generator=generator)
    place = torch.tensor([[25.0 + 0.01 * i, 67.0] for i in range(6)] + [[29.5, 67.0]] + [[25.4, 67.3]] * 5)
    cell = torch.tensor([0] * 7 + [1] * 5)
    return ReferenceBank.of(embedding, place, cell), embedding


def found(*cells, log_p=None):
    k = len(cells)
    place = torch.tensor([[10.0 + c, 20.0 + c] for c in cells]).unsqueeze(0)
    log_p = torch.zeros(k) if log_p is None else torch.tensor(log_p)
    return {"cell": torch.tensor([cells]), "log_p": log_p.log_softmax(-1).unsqueeze(0), "place_deg": place}


def test_the_bank_is_centred_of_unit_length_and_half_precision(bank):
    bank, embedding = bank
    assert bank.embedding.dtype == torch.float16
    torch.testing.assert_close(bank.centre, embedding.mean(0))
    torch.testing.assert_close(bank.embedding.float().norm(dim=-1), torch.ones(12), atol=2e-3, rtol=0)


def refine(bank, embedding, start, reach_km=300.0, **options):
    """With cells of such a radius that ``reach_km`` is what counts."""
    radius_km = torch.full_like(start["log_p"], reach_km)
    return bank.refine(embedding, start, radius_km, reach=1.0, **options)


@pytest.mark.parametrize("row", [0, 3, 5, 9])
def test_a_duplicate_of_a_train_picture_gets_its_place(bank, row):
    bank, embedding = bank
    refined = refine(bank, embedding[row : row + 1], found(0, 1), ridge=1e-5)
    own = int(bank.cell[row])
    torch.testing.assert_close(refined["place_deg"][0, own], bank.lat_lon_deg[row], atol=1e-4, rtol=0)
    assert refined["log_p"][0].argmax() == own  # and its cell becomes the likeliest


def test_evidence_reorders_the_hypotheses_but_not_against_all_odds(bank):
    bank, embedding = bank
    doubted = refine(bank, embedding[9:10], found(0, 1, log_p=[3.0, 0.0]))
    assert doubted["log_p"][0].argmax() == 1
    impossible = refine(bank, embedding[9:10], found(0, 1, log_p=[0.0, -1e4]))
    assert impossible["log_p"][0].argmax() == 0
    for refined in (doubted, impossible):
        torch.testing.assert_close(refined["log_p"].exp().sum(-1), torch.ones(1))


def test_no_sharpness_is_no_evidence(bank):
    bank, embedding = bank
    start = found(0, 1, log_p=[1.0, 0.0])
    torch.testing.assert_close(refine(bank, embedding[9:10], start, sharpness=0.0)["log_p"], start["log_p"])


def test_a_cell_without_train_pictures_keeps_its_place(bank):
    bank, embedding = bank
    start = found(2, 0)
    refined = refine(bank, embedding[:1], start)
    assert torch.equal(refined["place_deg"][0, 0], start["place_deg"][0, 0])
    assert refined["log_p"].isfinite().all() and refined["log_p"][0].argmax() == 1
    alone = refine(bank, embedding[:1], found(2))
    assert torch.equal(alone["place_deg"], found(2)["place_deg"])


def test_neighbours_out_of_reach_do_not_count(bank):
    bank, embedding = bank
    query = (embedding[0] + 0.5 * embedding[6]).unsqueeze(0)  # like a picture here, and a little like one 500 km away
    near = refine(bank, query, found(0), neighbours=12, sharpness=1.0, reach_km=100.0)["place_deg"][0, 0]
    far = refine(bank, query, found(0), neighbours=12, sharpness=1.0, reach_km=5000.0)["place_deg"][0, 0]
    assert km(near, (25.0, 67.0)) < 60 < km(far, (25.0, 67.0))


def test_a_picture_between_its_neighbours_is_placed_between_them_in_proportion(bank):
    bank, embedding = bank
    ends = F.normalize(embedding[[0, 5]] - bank.centre, dim=-1)
    places = bank.lat_lon_deg[[0, 5]]
    for share in (0.25, 0.5, 0.75):
        query = (share * ends[0] + (1 - share) * ends[1]).unsqueeze(0) + bank.centre
        place = refine(bank, query, found(0), neighbours=2, ridge=1e-4)["place_deg"][0, 0]
        torch.testing.assert_close(
            place, share * places[0] + (1 - share) * places[1], atol=6e-3, rtol=0
        )  # half precision


def test_reconstruction_weights_solve_the_constrained_least_squares_problem():
    torch.manual_seed(0)
    difference = torch.randn(3, 6, 20)
    allowed = torch.rand(3, 4, 6) < 0.7
    allowed[..., 0] = True
    weight = reconstruction_weights(difference @ difference.mT, allowed, ridge=1e-6)
    torch.testing.assert_close(weight.sum(-1), torch.ones(3, 4))
    assert (weight[~allowed] == 0).all()
    best = (weight @ difference).norm(dim=-1)
    for _ in range(50):  # no other weights that sum to 1 do better
        step = torch.randn(3, 4, 6) * 0.1 * allowed
        step = step - allowed * step.sum(-1, keepdim=True) / allowed.sum(-1, keepdim=True)
        assert (((weight + step) @ difference).norm(dim=-1) >= best - 1e-4).all()


def test_no_allowed_neighbour_gives_no_weight():
    gram = torch.eye(3).unsqueeze(0)
    assert (reconstruction_weights(gram, torch.zeros(1, 2, 3, dtype=torch.bool), 0.1) == 0).all()


def test_refinement_answers_each_picture_on_its_own(bank):
    bank, embedding = bank
    starts = [found(0, 1), found(1, 2), found(2, 0)]
    whole = refine(bank, embedding[:3], {k: torch.cat([s[k] for s in starts]) for k in starts[0]})
    for i, start in enumerate(starts):
        for key, value in refine(bank, embedding[i : i + 1], start).items():
            torch.testing.assert_close(whole[key][i : i + 1], value)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_bank_from_a_checkpoint_follows_the_network_to_the_gpu(bank):
    bank, embedding = bank
    expected = refine(bank, embedding[:1], found(0, 1))
    refined = refine(bank, embedding[:1].cuda(), {k: v.cuda() for k, v in found(0, 1).items()})
    for key, value in refined.items():
        torch.testing.assert_close(value.cpu(), expected[key], atol=1e-3, rtol=1e-3)
