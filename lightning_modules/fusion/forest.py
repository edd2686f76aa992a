"""The metadata branch: a random forest on imputed numbers and categories of one spelling."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ...datamodules.errors import StagewiseError
from ...datamodules.fusion.table import FusionTable
from .spelling import MISSING, Spelling, plain, settle
from .trees import shares

FEATURES = ("sqrt", "log2")
WEIGHTING = ("balanced", "none", "oversample")


class MetadataForest:
    """P(class | metadata) of each row.

    An imbalanced-learn pipeline is fitted: median and an indicator for missing numbers, one spelling and one column for
    each category, oversampling if asked for, the forest. What it learned is then held as plain arrays, which answer the
    same and go into a checkpoint.

    Args:
        trees: of a forest.
        min_samples_leaf: rows that a leaf has at least.
        max_features: scikit-learn's: ``sqrt``, ``log2``, a share, or None for all.
        weighting: of the classes: ``balanced`` weights, ``none``, or ``oversample`` (rare rows repeated).
        ordinal: K - 1 forests answer P(y > k) instead of one for the K classes.
        seed: of the forest.

    Raises:
        StagewiseError: an unknown weighting, or a number that means nothing.

    >>> x, label, classes = [0, 0, 9, 9], [0, 0, 1, 1], ["L", "H"]
    >>> table = FusionTable.of(list("abcd"), list("abcd"), label, classes=classes, numbers={"x": x})
    >>> forest = MetadataForest(trees=5, min_samples_leaf=1).fit(table)
    >>> forest.probabilities(table).argmax(1).tolist()
    [0, 0, 1, 1]
    """

    def __init__(
        self,
        trees: int = 500,
        min_samples_leaf: int = 3,
        max_features: str | float | None = "sqrt",
        weighting: str = "balanced",
        ordinal: bool = False,
        seed: int = 0,
    ) -> None:
        if weighting not in WEIGHTING:
            raise StagewiseError(f"forest.weighting must be one of {', '.join(WEIGHTING)}, got '{weighting}'.")
        if min(trees, min_samples_leaf) < 1:
            raise StagewiseError(f"forest: trees={trees} and min_samples_leaf={min_samples_leaf} must be at least 1.")
        if max_features not in (*FEATURES, None) and not (isinstance(max_features, float) and 0 < max_features <= 1):
            raise StagewiseError(f"forest.max_features must be sqrt, log2, null or a share, got '{max_features}'.")
        self.options = {
            "trees": trees,
            "min_samples_leaf": min_samples_leaf,
            "max_features": max_features,
            "weighting": weighting,
            "ordinal": ordinal,
            "seed": seed,
        }
        self.fitted: dict[str, Any] = {}

    def fit(self, table: FusionTable) -> "MetadataForest":
        """Learns from rows of known label.

        Raises:
            StagewiseError: no column, or rows of one class alone.
        """
        if not table.number_names and not table.category_names:
            raise StagewiseError("the table has no column but id, group, label and image; the forest needs metadata.")
        if len(np.unique(table.label)) < 2:
            raise StagewiseError("the rows that the forest is to learn from have one class; it needs two at least.")
        pipeline = pipeline_of(self.options, table).fit(as_rows(table), table.label)
        self.fitted = {
            "classes": list(table.classes),
            "number_names": list(table.number_names),
            "category_names": list(table.category_names),
            **_learned(pipeline, table),
            "forests": pipeline[-1].packed(),
        }
        return self

    def probabilities(self, table: FusionTable) -> NDArray[np.float32]:
        """(N, K), rows sum to 1; NaN where every metadata cell of a row is missing.

        Raises:
            StagewiseError: not fitted, or the table has other columns.
        """
        features = self._features(table)
        found = [shares(packed, features) for packed in self.fitted["forests"]]
        p = class_shares(np.stack([one[:, 1] for one in found], 1)) if self.options["ordinal"] else found[0]
        nothing = np.isnan(table.numbers).all(1) & (table.categories == "").all(1)
        return np.where(nothing[:, None], np.nan, p).astype(np.float32)

    def _features(self, table: FusionTable) -> NDArray[np.float32]:
        """(N, F) as the pipeline's columns."""
        self._require_columns(table)
        numbers, missing = table.numbers, np.isnan(table.numbers)
        filled = np.where(missing, self.fitted["median"].numpy(), numbers)
        parts = [filled, missing[:, self.fitted["indicated"]]]
        for column, words, known in zip(table.categories.T, self.fitted["words"], self.fitted["categories"]):
            settled = np.array([settle(word, words) for word in column], object)
            parts.append(settled[:, None] == np.array(known, object))
        return np.concatenate(parts, 1).astype(np.float32)

    def _require_columns(self, table: FusionTable) -> None:
        if not self.fitted:
            raise StagewiseError("the forest has learned nothing yet; call fit(table) first.")
        for kind in ("number_names", "category_names"):
            if (own := self.fitted[kind]) != list(getattr(table, kind)):
                raise StagewiseError(f"the forest's {kind} are {own}, the table's {list(getattr(table, kind))}.")

    def unseen(self, table: FusionTable) -> list[list[str]]:
        """Of each row the categories that no train row had, as ``column=word``; they count as none of the known."""
        self._require_columns(table)
        found: list[list[str]] = [[] for _ in range(len(table))]
        columns = zip(self.fitted["category_names"], table.categories.T, self.fitted["words"])
        for name, column, words in columns:
            known = set(words.values()) | {MISSING}
            for notes, word in zip(found, column):
                if settle(word, words) not in known:
                    notes.append(f"{name}={plain(word)}")
        return found

    def state(self) -> dict[str, Any]:
        """Plain values and tensors, for a checkpoint."""
        return {"options": self.options, "fitted": self.fitted}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "MetadataForest":
        """The forest of a checkpoint, which answers the same to the bit."""
        found = cls(**state["options"])
        found.fitted = dict(state["fitted"])
        return found


def class_shares(above: NDArray[np.float64]) -> NDArray[np.float64]:
    """P(y > k) of K - 1 forests -> P(class), after they are made to fall with k.

    >>> class_shares(np.array([[0.5, 0.75]])).tolist()
    [[0.5, 0.0, 0.5]]
    """
    edge = np.ones((len(above), 1))
    falling = np.minimum.accumulate(np.concatenate([edge, above, 0 * edge], 1), 1)
    found: NDArray[np.float64] = falling[:, :-1] - falling[:, 1:]
    return found


def as_rows(table: FusionTable) -> NDArray[np.object_]:
    """(N, Fn + Fc), the numbers first."""
    return np.concatenate([table.numbers.astype(object), table.categories.astype(object)], 1)


def pipeline_of(options: Mapping[str, Any], table: FusionTable) -> Any:
    """The pipeline to fit on ``as_rows(table)`` and its labels."""
    from imblearn.over_sampling import RandomOverSampler
    from imblearn.pipeline import Pipeline, make_pipeline
    from sklearn.compose import ColumnTransformer
    from sklearn.impute import SimpleImputer
    from sklearn.preprocessing import OneHotEncoder

    from .forest_step import ForestStep

    numbers, categories = len(table.number_names), len(table.category_names)
    imputer = SimpleImputer(strategy="median", add_indicator=True, keep_empty_features=True)
    words = make_pipeline(Spelling(), OneHotEncoder(handle_unknown="ignore", sparse_output=False))
    parts: list[Any] = [("numbers", imputer, slice(0, numbers))] if numbers else []
    parts += [("categories", words, slice(numbers, None))] if categories else []
    oversample = options["weighting"] == "oversample"
    return Pipeline(
        [
            ("columns", ColumnTransformer(parts)),
            ("sampler", RandomOverSampler(random_state=options["seed"]) if oversample else "passthrough"),
            ("forest", ForestStep(dict(options), len(table.classes))),
        ]
    )


def _learned(pipeline: Any, table: FusionTable) -> dict[str, Any]:
    """What the first steps of the pipeline learned, as plain values; of no columns there is nothing."""
    columns = pipeline.named_steps["columns"].named_transformers_
    found: dict[str, Any] = {"median": torch.zeros(0, dtype=torch.float64), "indicated": []}
    found |= {"words": [], "categories": []}
    if table.number_names:
        found["median"] = torch.from_numpy(np.asarray(columns["numbers"].statistics_, np.float64))
        found["indicated"] = columns["numbers"].indicator_.features_.tolist()
    if table.category_names:
        spelling, one_hot = columns["categories"]
        found["words"] = spelling.words_
        found["categories"] = [[str(word) for word in one] for one in one_hot.categories_]
    return found
