"""Prompts: nine candidates that differ in nothing but type and condition."""

import itertools

import pytest
import torch

from stagewise.datamodules.drains.boxes import context_of
from stagewise.datamodules.drains.vocabulary import CLASS_NAMES, CLASSES, TYPES
from stagewise.datamodules.errors import StagewiseError
from stagewise.lightning_modules.drains.prompts import TEMPLATES, PromptBuilder

EVERY = list(itertools.product((-1, 0, 1, 2), range(16)))


def sentences(build, class_id, position, context):
    return build.prompts(class_id, int(build.variant_of(torch.tensor(position), torch.tensor(context))))


def test_plain_prompts_are_type_and_condition():
    build = PromptBuilder(["a photo of {}"], position=False)
    texts = [sentences(build, i, 1, 5)[0] for i in range(9)]
    assert texts == [f"a photo of {name.replace('_', ' ')}" for name in CLASS_NAMES]


def test_position_and_context_stand_in_the_sentence_as_they_were_measured():
    build = PromptBuilder(["{}"], position=True, context=True)
    assert sentences(build, 0, 0, 0) == ["toe drain normal at top"]
    assert sentences(build, 7, 1, 0b0100) == ["slope drain damaged at middle, with toe drain nearby"]
    assert sentences(build, 8, 2, 0b1111) == [
        "vegetation at bottom, with rock toe, slope drain, toe drain and vegetation nearby"
    ]
    assert sentences(build, 1, -1, 0) == ["toe drain blocked"]  # asked without its position


@pytest.mark.parametrize("position", [False, True])
@pytest.mark.parametrize("context", [False, True])
def test_all_nine_candidates_share_position_and_context(position, context):
    build = PromptBuilder(["see {}"], position, context)
    for where, others in EVERY:
        texts = [sentences(build, i, where, others)[0] for i in range(9)]
        tails = {text.removeprefix(f"see {one.name.replace('_', ' ')}") for text, one in zip(texts, CLASSES)}
        assert len(tails) == 1 and len(set(texts)) == 9


def test_one_sentence_a_template_each_with_the_same_words():
    texts = sentences(PromptBuilder(context=True), 1, 2, 0b1000)
    assert len(texts) == len(TEMPLATES) == len(set(texts))
    assert all("toe drain blocked at bottom, with vegetation nearby" in text for text in texts)


@pytest.mark.parametrize(
    ("position", "context", "said"), [(False, False, 1), (True, False, 4), (False, True, 16), (True, True, 64)]
)
def test_objects_of_one_variant_have_the_same_prompts_and_of_two_variants_others(position, context, said):
    build = PromptBuilder(["{}"], position, context)
    where, others = torch.tensor(EVERY).T
    texts = {}
    for variant, (place, mask) in zip(build.variant_of(where, others).tolist(), EVERY):
        texts.setdefault(variant, set()).add(sentences(build, 4, place, mask)[0])
    assert len(texts) == said <= len(build) and max(texts) < len(build)
    assert all(len(words) == 1 for words in texts.values()) and len(set.union(*texts.values())) == said


def test_the_context_never_counts_the_object_itself():
    build = PromptBuilder(["{}"], position=False, context=True)
    first, second = context_of([TYPES.index(name) for name in ("toe_drain", "vegetation")]).tolist()
    assert sentences(build, 1, 0, first) == ["toe drain blocked, with vegetation nearby"]
    assert sentences(build, 8, 0, second) == ["vegetation, with toe drain nearby"]


@pytest.mark.parametrize("templates", [[], ["no place"], ["{} and {}"], ["{name}"], "a photo of {}"])
def test_templates_that_cannot_be_filled_are_refused(templates):
    with pytest.raises(StagewiseError, match="`templates` must be sentences"):
        PromptBuilder(templates)


@pytest.mark.parametrize(("class_id", "variant"), [(9, 0), (-1, 0), (0, 4), (0, -1)])
def test_numbers_out_of_range_are_refused(class_id, variant):
    with pytest.raises(StagewiseError, match="no class"):
        PromptBuilder().prompts(class_id, variant)
