"""Images that MONAI's ``LoadImage`` reads: NIfTI, NRRD, MetaImage; needs ``pip install "anomalib-cxr[monai]"``."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from anomalib_cxr.imaging import FilmReader, MaskReading, RadiographError, is_radiograph, mask_of_levels


class MonaiReader(FilmReader):
    """Slices of other modalities, through MONAI (ours).

    Files that :func:`~anomalib_cxr.imaging.read_radiograph` knows are read by it, all others by ``LoadImage``. An array
    (X, Y) becomes a picture of Y rows and X columns, as it is stored: neither mirrored nor turned by what the header
    says of the patient.

    Args:
        window: Intensities that become 0 and 1, for instance (-1000, 400) HU of a CT. None: ``percentiles``.
        percentiles: Of all intensities of the file, that become 0 and 1 where there is no window.
        slice_at: Place of the slice to take of a volume, in [0, 1] along ``axis``: 0.5 is the middle. None refuses
            files of several slices.
        axis: Axis of the volume (X, Y, Z) that the slice cuts, 0, 1 or 2.

    Raises:
        ValueError: If an argument is out of range.
        ModuleNotFoundError: If MONAI is not installed.
    """

    def __init__(
        self,
        window: tuple[float, float] | None = None,
        percentiles: tuple[float, float] = (0.5, 99.5),
        slice_at: float | None = None,
        axis: int = 2,
    ) -> None:
        for wrong, message in (
            (window is not None and not window[0] < window[1], f"window must be (lowest, highest), not {window}."),
            (
                not 0 <= percentiles[0] < percentiles[1] <= 100,
                f"percentiles must be (lowest, highest) within [0, 100], not {percentiles}.",
            ),
            (slice_at is not None and not 0 <= slice_at <= 1, f"slice_at must lie in [0, 1], not be {slice_at}."),
            (axis not in (0, 1, 2), f"axis must be 0, 1 or 2, not {axis}."),
        ):
            if wrong:
                raise ValueError(message)
        try:
            from monai.transforms import LoadImage
        except ModuleNotFoundError as error:
            msg = 'MonaiReader needs MONAI: pip install "anomalib-cxr[monai]".'
            raise ModuleNotFoundError(msg) from error
        self.window = window
        self.percentiles = percentiles
        self.slice_at = slice_at
        self.axis = axis
        self._load = LoadImage()

    def read(self, path: str | os.PathLike[str], bits: int | None = None) -> npt.NDArray[np.float32]:
        """Read an image; see :meth:`FilmReader.read`."""
        if is_radiograph(Path(path)):
            return super().read(path, bits)
        array = self._array(path)
        low, high = np.percentile(array, self.percentiles) if self.window is None else self.window
        if not low < high:
            msg = f"{path}: intensities are {low:g} at both percentiles {self.percentiles}: give a window"
            raise RadiographError(msg)
        return ((self._slice(array, path) - low) / (high - low)).clip(0, 1).astype(np.float32)

    def read_mask(self, path: str | os.PathLike[str]) -> MaskReading:
        """Read a mask, where 0 is the ground; see :meth:`FilmReader.read_mask`."""
        if is_radiograph(Path(path)):
            return super().read_mask(path)
        try:
            return mask_of_levels(self._slice(self._array(path), path))
        except ValueError as error:
            msg = f"{path}: the mask cannot be read: {error}"
            raise RadiographError(msg) from error

    def _array(self, path: str | os.PathLike[str]) -> npt.NDArray[np.float64]:
        """The whole file, (X, Y) or (X, Y, Z)."""
        try:
            array = np.asarray(self._load(str(path)), np.float64)
        except Exception as error:  # readers raise errors of all kinds
            msg = f"{path}: MONAI cannot read it: {_last_line(error)}"
            raise RadiographError(msg) from error
        if not np.isfinite(array).all():
            msg = f"{path}: it holds pixels that are no number"
            raise RadiographError(msg)
        return array

    def _slice(self, array: npt.NDArray[np.float64], path: str | os.PathLike[str]) -> npt.NDArray[np.float64]:
        """One slice, rows first."""
        if array.ndim == 3:
            count = array.shape[self.axis]
            if count > 1 and self.slice_at is None:
                msg = f"{path}: it is a volume of {count} slices: give slice_at, or a file for each slice"
                raise RadiographError(msg)
            array = array.take(round((self.slice_at or 0) * (count - 1)), axis=self.axis)
        if array.ndim != 2:
            msg = f"{path}: it is an array {array.shape}: a file holds one picture or volume"
            raise RadiographError(msg)
        return array.T


def _last_line(error: Any) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1][:200]
