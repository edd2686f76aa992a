"""Two runs side by side, or one line that says why not."""

import json
import math

import pytest

from stagewise.datamodules.errors import StagewiseError
from stagewise.lightning_modules.compare import compare


def written(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_shared_figures_stand_side_by_side_with_their_difference(tmp_path):
    other = written(
        tmp_path / "metrics.json", {"test/kappa": 0.4, "test/ece": 0.1, "test/old": 1, "test/name": "blocks"}
    )
    rows, text = compare({"test/kappa": 0.5, "test/ece": 0.08, "test/new": 2.0}, other)
    assert [row.name for row in rows] == ["test/kappa", "test/ece"]
    assert rows[0].difference == pytest.approx(0.1) and rows[1].difference == pytest.approx(-0.02)
    assert "+0.1000" in text and "-0.0200" in text and "only here: 1, only there: 1" in text
    assert compare({"test/kappa": 0.5}, tmp_path)[0][0].other == 0.4  # the folder will do


def test_bounds_are_compared_but_not_printed(tmp_path):
    metrics = {"kappa": 0.5, "kappa/ci_low": 0.4, "kappa/ci_high": 0.6}
    rows, text = compare(metrics, written(tmp_path / "m.json", metrics))
    assert len(rows) == 3 and "ci_low" not in text


@pytest.mark.parametrize("undefined", ["NaN", "null"])
def test_an_undefined_figure_stays_undefined(tmp_path, undefined):
    rows, _ = compare({"kappa": 0.5}, written(tmp_path / "m.json", f'{{"kappa": {undefined}}}'))
    assert math.isnan(rows[0].other) and math.isnan(rows[0].difference)


def test_what_cannot_be_compared_is_refused(tmp_path):
    for content, words in (
        ("{'a': 1", "is no JSON"),
        ("[1, 2]", "holds no object of name: number"),
        ({"val/kappa": 0.5}, r"shares no figure with this run: it has val/kappa, this run test/kappa; compare runs"),
        ({}, "it has none"),
    ):
        with pytest.raises(StagewiseError, match=words):
            compare({"test/kappa": 0.5}, written(tmp_path / "metrics.json", content))
    with pytest.raises(StagewiseError, match=r"no '.*nowhere.json'; give the metrics\.json that evaluate\.py wrote"):
        compare({"test/kappa": 0.5}, tmp_path / "nowhere.json")
    (tmp_path / "picture.json").write_bytes(b"\x89PNG\xff\xfe")
    with pytest.raises(StagewiseError, match="is no JSON"):
        compare({"test/kappa": 0.5}, tmp_path / "picture.json")
