import numpy as np
import pytest

from stagewise.lightning_modules.fusion.spelling import Spelling, canonical_words, near_miss, settle


def test_spaces_case_and_near_misses_become_one_word():
    column = np.array(["Diabetic "] * 6 + ["venous"] * 6 + ["diabteic", "VENOUS", ""], object)[:, None]
    found = Spelling().fit(column).transform(column)[:, 0]
    assert set(found[:6]) == {"diabetic"} and found[12:].tolist() == ["diabetic", "venous", "missing"]


def test_a_misspelling_that_train_never_had_is_settled_and_a_new_word_stays():
    words = canonical_words(["diabetic"] * 5)
    assert settle("Diabetik", words) == "diabetic"
    assert settle("burn", words) == "burn"


@pytest.mark.parametrize(("word", "known"), [("male", "female"), ("grade c", "grade a"), ("type 2", "type 1")])
def test_words_of_another_meaning_stay_apart(word, known):
    assert near_miss(word, [known]) is None


def test_two_frequent_words_are_never_one_however_alike():
    assert set(canonical_words(["reddish"] * 8 + ["redish"] * 6).values()) == {"reddish", "redish"}
