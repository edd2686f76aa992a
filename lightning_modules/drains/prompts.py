"""The sentences that stand for the nine classes: one builder for training, evaluation and serving.

An object's sentences differ only in type and condition. Where it lies and what lies around it is measured from the
boxes, never from its class, and is the same in all nine, so no sentence tells which of them is true.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ...datamodules.drains.boxes import POSITIONS
from ...datamodules.drains.vocabulary import CLASSES, TYPES
from ...datamodules.errors import StagewiseError

TEMPLATES = ("a photo of {}", "a drone photo of {}", "an aerial view of {} on an embankment")
PLACES = ("", *(f" at {name}" for name in POSITIONS))
CONTEXTS = 2 ** len(TYPES)


class PromptBuilder:
    """Builds the prompts of the nine classes.

    A variant is a place (or none said) with a set of neighbours (or none); its number is the row of a text bank. The
    variants that say no place are always there, so that one model can be asked with and without.

    Args:
        templates: sentences with one ``{}`` each; their embeddings are averaged.
        position: whether the sentence says where in the picture the object lies.
        context: whether it names the types of the other objects of the picture.

    Raises:
        StagewiseError: no template, or one without exactly one ``{}``.

    >>> build = PromptBuilder(["a photo of {}"], position=True, context=True)
    >>> build.prompts(1, int(build.variant_of(torch.tensor(2), torch.tensor(0b1001))))
    ['a photo of toe drain blocked at bottom, with rock toe and vegetation nearby']
    >>> len(build), len(PromptBuilder())
    (64, 4)
    """

    def __init__(self, templates: Sequence[str] = TEMPLATES, position: bool = True, context: bool = False) -> None:
        bad = [text for text in templates if text.count("{}") != 1 or text.replace("{}", "").count("{")]
        if isinstance(templates, str) or not len(templates) or bad:
            raise StagewiseError(f"`templates` must be sentences with one {{}} each, got {bad or templates!r}.")
        self.templates, self.position, self.context = tuple(templates), position, context

    def __len__(self) -> int:
        """Variants."""
        return len(PLACES) * (CONTEXTS if self.context else 1)

    def variant_of(self, position: Tensor, context: Tensor) -> Tensor:
        """The variant of each object; what the sentences do not say makes no difference.

        Args:
            position: index into ``POSITIONS``; -1 leaves it unsaid.
            context: bit mask of the types of the other objects; 0 leaves them unsaid.

        >>> PromptBuilder().variant_of(torch.tensor([-1, 0, 2]), torch.tensor([9, 4, 0])).tolist()
        [0, 1, 3]
        """
        place = position + 1 if self.position else torch.zeros_like(position)
        return place + len(PLACES) * context if self.context else place

    def prompts(self, class_id: int, variant: int) -> list[str]:
        """The sentences of one candidate class, one a template.

        Raises:
            StagewiseError: no such class or variant.

        >>> PromptBuilder(["a photo of {}"]).prompts(8, variant=0)
        ['a photo of vegetation']
        """
        if not (0 <= class_id < len(CLASSES) and 0 <= variant < len(self)):
            raise StagewiseError(
                f"no class {class_id} with variant {variant}: {len(CLASSES)} and {len(self)} there are."
            )
        context, place = divmod(variant, len(PLACES))
        text = CLASSES[class_id].name.replace("_", " ") + PLACES[place] + _neighbours(context)
        return [template.format(text) for template in self.templates]


def _neighbours(context: int) -> str:
    """``, with rock toe and vegetation nearby``; nothing where nothing else is in the picture.

    >>> _neighbours(0b1110)
    ', with slope drain, toe drain and vegetation nearby'
    """
    names = sorted(kind.replace("_", " ") for bit, kind in enumerate(TYPES) if context >> bit & 1)
    if not names:
        return ""
    listed = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
    return f", with {listed} nearby"
