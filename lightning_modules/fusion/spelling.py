"""One spelling for each category: what people type into a clinic's forms is not."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, TransformerMixin

MISSING = "missing"
_SIMILAR = 0.82  # "venuos" is 0.83 like "venous", "male" is 0.80 like "female"
_RARER = 5  # a misspelling is this many times rarer than the word it stands for


def plain(word: str) -> str:
    """Lower case, single spaces; an empty cell is a category of its own.

    >>> plain("Diabetic  foot "), plain("")
    ('diabetic foot', 'missing')
    """
    return " ".join(str(word).casefold().split()) or MISSING


def near_miss(word: str, known: Sequence[str]) -> str | None:
    """The known word that ``word`` misspells, or None; "grade b" is no misspelling of "grade a".

    >>> near_miss("diabteic", ["diabetic", "venous"]), near_miss("type 3", ["type 1", "type 2"])
    ('diabetic', None)
    """
    candidates = [one for one in known if _codes(one) == _codes(word) and MISSING not in (one, word)]
    return next(iter(get_close_matches(word, candidates, 1, _SIMILAR)), None)


def _codes(word: str) -> list[str]:
    """Its parts that are short or have a digit: there one sign makes another meaning."""
    return [part for part in re.findall(r"[^\W_]+", word) if len(part) < 4 or re.search(r"\d", part)]


def canonical_words(words: Iterable[str]) -> dict[str, str]:
    """Each plain word -> the much more frequent word that it misspells, or itself.

    >>> canonical_words(["venous"] * 5 + ["venuos"])
    {'venous': 'venous', 'venuos': 'venous'}
    """
    count = Counter(words)
    found: dict[str, str] = {}
    for word, own in sorted(count.items(), key=lambda item: (-item[1], item[0])):
        frequent = [one for one in found if found[one] == one and count[one] >= _RARER * own]
        found[word] = near_miss(word, frequent) or word
    return found


class Spelling(TransformerMixin, BaseEstimator):
    """Categories under one spelling each, learned from the rows it is fitted on.

    Attributes:
        words_: for each column, plain word -> the word it stands for.
    """

    words_: list[dict[str, str]]

    def fit(self, X: NDArray[Any], y: object = None) -> "Spelling":
        """Learns which spellings are misspellings; ``X`` is (N, F) of text."""
        self.words_ = [canonical_words(map(plain, column)) for column in X.T]
        return self

    def transform(self, X: NDArray[Any]) -> NDArray[np.object_]:
        """(N, F) of text, same shape; a word never seen stays as it is."""
        columns = [[settle(word, words) for word in column] for column, words in zip(X.T, self.words_, strict=True)]
        found: NDArray[np.object_] = np.array(columns, object).T.reshape(X.shape)
        return found


def settle(word: str, words: dict[str, str]) -> str:
    """The category that a cell means; one that is not known stays its plain self.

    Args:
        word: as typed.
        words: of :func:`canonical_words`.

    >>> settle(" VENUOUS", {"venous": "venous"}), settle("burn", {"venous": "venous"})
    ('venous', 'burn')
    """
    own = plain(word)
    return words.get(own) or near_miss(own, sorted(set(words.values()))) or own
