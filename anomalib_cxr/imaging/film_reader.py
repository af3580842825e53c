"""How a data set reads its images and masks: as radiographs, unless another reader is given."""

import os

import numpy as np
import numpy.typing as npt

from anomalib_cxr.imaging.mask import MaskReading, read_mask
from anomalib_cxr.imaging.radiograph import read_radiograph


class FilmReader:
    """Reads radiographs and masks; a reader of other files derives from it."""

    def read(self, path: str | os.PathLike[str], bits: int | None = None) -> npt.NDArray[np.float32]:
        """Read an image.

        Args:
            path: Its file.
            bits: Stored depth where it is known, see :func:`~anomalib_cxr.imaging.read_radiograph`.

        Returns:
            (H, W) float32 in [0, 1].

        Raises:
            RadiographError: If it cannot be read.
        """
        return read_radiograph(path, bits=bits)

    def read_mask(self, path: str | os.PathLike[str]) -> MaskReading:
        """Read a mask, of lesions or of a region.

        Args:
            path: Its file.

        Returns:
            The mask, as :func:`~anomalib_cxr.imaging.read_mask` gives it.

        Raises:
            RadiographError: If it cannot be read.
        """
        return read_mask(path)
