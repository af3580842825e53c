"""Refuse training augmentations that move pixels away from masks that were computed once."""

from torchvision.transforms import v2
from torchvision.transforms.v2 import Transform

#: torchvision transforms that change intensities and leave every pixel where it is.
_INTENSITY = (
    v2.ColorJitter,
    v2.GaussianBlur,
    v2.GaussianNoise,
    v2.Grayscale,
    v2.Normalize,
    v2.RandomAdjustSharpness,
    v2.RandomAutocontrast,
    v2.RandomEqualize,
    v2.RandomGrayscale,
    v2.RandomInvert,
    v2.RandomPhotometricDistort,
    v2.RandomPosterize,
    v2.RandomSolarize,
    v2.RGB,
    v2.ToDtype,
)
_CONTAINERS = (v2.Compose, v2.RandomApply, v2.RandomChoice, v2.RandomOrder)


def refuse_moved_pixels(transform: Transform | None) -> None:
    """Raise if a transform may move pixels, apart from a resize of the whole image.

    Region masks are made once, on the un-augmented image at the model's input size. A flip or a rotation would put
    the image elsewhere than its mask.

    Args:
        transform: A torchvision v2 transform, containers included, or None. One of other makers says by an attribute
            ``keeps_pixels_in_place`` that it leaves them.

    Raises:
        ValueError: Naming the first transform that is not known to keep pixels in place.
    """
    if transform is None or isinstance(transform, (*_INTENSITY, v2.Identity)):
        return
    if getattr(transform, "keeps_pixels_in_place", False):
        return
    if isinstance(transform, v2.Resize):
        # An int would scale the shorter side only; then image and mask still agree, as both are the whole image.
        return
    if isinstance(transform, _CONTAINERS):
        for part in transform.transforms:
            refuse_moved_pixels(part)
        return
    msg = (
        f"The training augmentation {type(transform).__name__} may move pixels away from the region masks that were "
        "made once an image: use intensity augmentations only, or segmentation=False."
    )
    raise ValueError(msg)
