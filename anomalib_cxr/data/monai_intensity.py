"""MONAI's intensity transforms as augmentations of radiographs; needs ``pip install "anomalib-cxr[monai]"``."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torchvision.transforms.v2 import Transform
from torchvision.tv_tensors import Image

#: Where MONAI keeps transforms that change intensities, and its containers of transforms.
_INTENSITY, _CONTAINERS = "monai.transforms.intensity.array", "monai.transforms.compose"
_MOVES = {"RandCoarseShuffle"}  # of the former


def _is_image(value: Any) -> bool:
    return type(value) in (torch.Tensor, Image)


class MonaiIntensity(Transform):
    """Intensity transforms of MONAI in the form that our datamodules and Anomalib's take (ours).

    Images are transformed and held within [0, 1]; masks are left as they are. A grey image, its channel repeated, is
    transformed once. Random numbers are MONAI's own, from a seed that is drawn from torch's generator for each image:
    they follow the run's seed, in every worker process.

    Args:
        transforms: A transform of ``monai.transforms.intensity.array``, several of them to be applied in order, or
            MONAI's containers (``Compose``, ``OneOf``, …) of such.

    Raises:
        ValueError: If one is no such transform; ``AnatPaste`` could not tell whether it moves pixels.
        ModuleNotFoundError: If MONAI is not installed.

    Examples:
        >>> from monai.transforms import RandAdjustContrast, RandGaussianNoise  # doctest: +SKIP
        >>> noise = RandGaussianNoise(prob=0.5, std=0.02)  # doctest: +SKIP
        >>> data = PhantomCXR(train_augmentations=MonaiIntensity([noise, RandAdjustContrast()]))  # doctest: +SKIP
    """

    keeps_pixels_in_place = True
    _transformed_types = (_is_image,)

    def __init__(self, transforms: Sequence[Callable[..., Any]] | Callable[..., Any]) -> None:
        super().__init__()
        try:
            from monai.transforms import Compose
        except ModuleNotFoundError as error:
            msg = 'MonaiIntensity needs MONAI: pip install "anomalib-cxr[monai]".'
            raise ModuleNotFoundError(msg) from error
        listed = list(transforms) if isinstance(transforms, Sequence) else [transforms]
        for one in listed:
            _refuse_others(one)
        self.monai = Compose(listed)

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw the seed of MONAI's random numbers."""
        del flat_inputs
        return {"seed": int(torch.randint(2**32, (1,)))}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Transform one image.

        Args:
            inpt: (C, H, W) float in [0, 1].
            params: What :meth:`make_params` gave.

        Returns:
            The image, of the same shape and type.

        Raises:
            ValueError: If a transform gave another shape.
        """
        plain = inpt.as_subclass(torch.Tensor)
        grey = plain[:1]
        is_grey = torch.equal(grey.expand_as(plain), plain)
        self.monai.set_random_state(seed=params["seed"])
        given = grey if is_grey else plain
        found = torch.as_tensor(self.monai(given.clone())).as_subclass(torch.Tensor)
        if found.shape != given.shape:
            msg = (
                f"The MONAI transforms made {tuple(found.shape)} of an image {tuple(given.shape)}: leave out those "
                "that change the shape."
            )
            raise ValueError(msg)
        found = found.to(plain.dtype).clamp(0, 1).expand_as(plain).contiguous()
        return Image(found) if isinstance(inpt, Image) else found


def refuse_bare_monai(argument: str, transform: Any) -> None:
    """Refuse a transform of MONAI as an augmentation, which takes images and masks in another way.

    Args:
        argument: The argument's name, for the error.
        transform: What was given for it.

    Raises:
        ValueError: If it is MONAI's own.
    """
    if type(transform).__module__.partition(".")[0] == "monai":
        msg = (
            f"{argument} is MONAI's {type(transform).__name__}, which does not know images with masks: wrap it as "
            "anomalib_cxr.data.monai_intensity.MonaiIntensity(...)."
        )
        raise ValueError(msg)


def _refuse_others(transform: Any) -> None:
    """Refuse what is no intensity transform, in containers too."""
    homes = {cls.__module__ for cls in type(transform).__mro__}
    if _CONTAINERS in homes:
        for part in transform.transforms:
            _refuse_others(part)
    elif _INTENSITY not in homes or type(transform).__name__ in _MOVES:
        msg = (
            f"MonaiIntensity takes transforms of {_INTENSITY} that leave pixels where they are, not "
            f"{type(transform).__name__} of {type(transform).__module__}."
        )
        raise ValueError(msg)
