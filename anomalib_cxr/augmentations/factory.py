"""Pasting augmentations by the names that the papers' tables use."""

from typing import Any, Literal

from anomalib_cxr.augmentations.anat_paste import AnatPasteAugmentation
from anomalib_cxr.augmentations.cut_paste import CutPaste3Way, CutPasteNormal, CutPasteScar, CutPasteUnion
from anomalib_cxr.augmentations.pasting import Pasting
from anomalib_cxr.checks import check_choice

PastingVariant = Literal["anatpaste", "cutpaste_normal", "cutpaste_scar", "cutpaste_3way", "cutpaste_union"]

_VARIANTS: dict[str, type[Pasting]] = {
    "anatpaste": AnatPasteAugmentation,
    "cutpaste_normal": CutPasteNormal,
    "cutpaste_scar": CutPasteScar,
    "cutpaste_3way": CutPaste3Way,
    "cutpaste_union": CutPasteUnion,
}


def build_pasting(variant: PastingVariant, **kwargs: Any) -> Pasting:
    """Make a pasting augmentation.

    Args:
        variant: ``"anatpaste"``, ``"cutpaste_normal"``, ``"cutpaste_scar"``, ``"cutpaste_3way"`` or
            ``"cutpaste_union"``.
        **kwargs: Arguments of the augmentation's class.

    Returns:
        The augmentation.

    Raises:
        ValueError: If there is no such variant, or an argument is out of range.
    """
    return _VARIANTS[check_choice("variant", variant, PastingVariant)](**kwargs)
