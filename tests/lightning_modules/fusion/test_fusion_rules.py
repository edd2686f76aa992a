import numpy as np
import pytest
import torch
from torch import nn

from stagewise.datamodules.errors import StagewiseError
from stagewise.lightning_modules.fusion import rules
from stagewise.lightning_modules.fusion.rules import cross_fitted, fit_rule, make_rule

KINDS = ("average", "tuned", "stacking", "concat")


def drawn(rows=300, seed=0, metadata=2.0, picture=0.0):
    """Probabilities of the three classes, each source as telling as said."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 3, rows)
    hot = np.eye(3)[label]
    sources = [torch.from_numpy(k * hot + rng.normal(size=(rows, 3))).softmax(1).numpy() for k in (metadata, picture)]
    return {"metadata": sources[0], "picture": sources[1], "label": label, "group": np.arange(rows).astype(str)}


def test_the_average_is_exact():
    m, p = torch.tensor([[0.5, 0.25, 0.25]]), torch.tensor([[0.0, 0.5, 0.5]])
    assert torch.allclose(make_rule(3, 4)(m, p), torch.tensor([[0.35, 0.325, 0.325]]))
    assert torch.equal(make_rule(3, 4, weights=[1.0, 0.0])(m, p), m)


@pytest.mark.parametrize("kind", KINDS)
def test_every_rule_gives_probabilities_and_each_row_its_own(kind):
    rule, g = make_rule(3, 4, kind).train(), torch.Generator().manual_seed(0)
    m, p, features = (
        torch.rand(6, 3, generator=g).softmax(1),
        torch.rand(6, 3, generator=g).softmax(1),
        torch.randn(6, 4),
    )
    whole = rule(m, p, features)
    assert torch.allclose(whole.sum(1), torch.ones(6)) and (whole >= 0).all()
    assert torch.allclose(whole[2:3], rule(m[2:3], p[2:3], features[2:3]))  # no BatchNorm: others change nothing
    assert not any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in rule.modules())


def test_a_forests_certain_no_is_no_infinity():
    m, p = torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([[0.2, 0.5, 0.3]])
    for kind in KINDS:
        assert make_rule(3, 4, kind)(m, p, torch.zeros(1, 4)).isfinite().all()


@pytest.mark.parametrize(("metadata", "picture", "low", "high"), [(2.0, 0.0, 0.6, 1.0), (0.0, 2.0, 0.0, 0.4)])
def test_the_tuned_weight_goes_to_the_source_that_knows(metadata, picture, low, high):
    rule = make_rule(3, 4, "tuned")
    fit_rule(rule, drawn(metadata=metadata, picture=picture))
    assert low <= float(rule.weight[0]) <= high and float(rule.weight.sum()) == pytest.approx(1)


def test_stacking_is_scikit_learns_and_beats_the_average_where_one_source_lies():
    from sklearn.linear_model import LogisticRegression

    train, new = drawn(metadata=2.0, picture=-2.0), drawn(seed=1, metadata=2.0, picture=-2.0)
    rule = make_rule(3, 4, "stacking")
    fit_rule(rule, train)
    both = [np.log(np.maximum(np.concatenate([rows["metadata"], rows["picture"]], 1), 1e-3)) for rows in (train, new)]
    peer = LogisticRegression(class_weight="balanced", max_iter=2000).fit(both[0], train["label"])
    said = rules.apply_rule(rule, new)
    assert np.allclose(said, peer.predict_proba(both[1]), atol=1e-4)
    assert (said.argmax(1) == new["label"]).mean() > (
        rules.apply_rule(make_rule(3, 4), new).argmax(1) == new["label"]
    ).mean()


@pytest.mark.parametrize("absent", [0, 2])
def test_stacking_gives_nothing_to_a_class_that_it_never_saw(absent):
    rows = drawn()
    kept = {name: value[rows["label"] != absent] for name, value in rows.items()}
    rule = make_rule(3, 4, "stacking")
    fit_rule(rule, kept)
    said = rules.apply_rule(rule, rows)
    assert (said[:, absent] < 1e-6).all() and np.allclose(said.sum(1), 1, atol=1e-5)
    assert (rules.apply_rule(rule, kept).argmax(1) == kept["label"]).mean() > 0.7


def test_cross_fitting_never_uses_a_patients_own_rows(monkeypatch):
    rows, learned = drawn(60), []
    rows["group"] = (np.arange(60) // 3).astype(str)
    monkeypatch.setattr(rules, "fit_rule", lambda rule, given: learned.append(set(given["group"].tolist())))
    before = rules.apply_rule
    own = []
    monkeypatch.setattr(
        rules, "apply_rule", lambda rule, given: (own.append(set(given["group"].tolist())), before(rule, given))[1]
    )
    found = cross_fitted(make_rule(3, 4, "stacking"), rows)
    assert len(learned) == 5 and all(not a & b for a, b in zip(learned, own, strict=True))
    assert found.shape == (60, 3) and not np.isnan(found).any()


def test_labels_that_say_nothing_do_not_flatter_a_fitted_rule():
    rows = drawn(60, metadata=0.0)
    rule = make_rule(3, 4, "stacking")
    fit_rule(rule, rows)
    flattered = (rules.apply_rule(rule, rows).argmax(1) == rows["label"]).mean()
    honest = (cross_fitted(rule, rows).argmax(1) == rows["label"]).mean()
    assert honest < 0.45 < flattered + 0.1 and honest < flattered


def test_rows_without_both_answers_are_not_learned_from():
    rows = drawn()
    rows["picture"][::2] = np.nan
    rule = make_rule(3, 4, "stacking")
    fit_rule(rule, rows)
    assert rule.coefficients.isfinite().all()


def test_concatenation_starts_as_the_metadata_and_learns_from_the_picture():
    rule = make_rule(3, 2, "concat")
    m = torch.tensor([[0.6, 0.3, 0.1]])
    assert torch.allclose(rule(m, m, torch.randn(1, 2)), m, atol=1e-6)
    rule(m, m, torch.randn(1, 2))[0, 0].log().backward()
    assert rule.linear.weight.grad[:, 3:].abs().sum() > 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kind": "vote"}, "must be one of"),
        ({"weights": [0.7, 0.7]}, "sum to 1"),
        ({"weights": [1.5, -0.5]}, "two shares"),
    ],
)
def test_what_makes_no_rule_is_refused(options, words):
    with pytest.raises(StagewiseError, match=words):
        make_rule(3, 4, **options)
