"""Make stock Anomalib read the radiographs that it misreads: DICOM, more than 8 bits, transparency, turned TIFF files.

Anomalib 2.7 reads every file by ``Image.open(path).convert("RGB")``. That cuts 16-bit pixels off at 255, so that a
chest X-ray turns white, drops transparency instead of laying it over black, turns TIFF files by their orientation and
no others, and does not know DICOM. Its list of files to predict drops DICOM and has the hidden copies that Macs leave,
and a heat map cannot be saved under a DICOM's name. :data:`READING` puts thin wrappers in place of the few module-level
names through which it lists, reads and names files. They hand every file that Anomalib reads rightly to the stock
function, untouched.
"""

import functools
import logging
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torchvision import tv_tensors

from anomalib_cxr.imaging import DICOM_SUFFIXES, RADIOGRAPH_SUFFIXES, is_radiograph, read_radiograph
from anomalib_cxr.imaging.dicom import is_dicom
from anomalib_cxr.imaging.listing import is_hidden, list_radiographs
from anomalib_cxr.imaging.orientation import stated_orientation
from anomalib_cxr.imaging.png import read_png_header
from anomalib_cxr.plugin.wrapping import Wrapper, Wrapping

logger = logging.getLogger(__name__)


def is_misread(path: str | Path) -> bool:
    """Whether stock Anomalib cannot read a file, or not as :func:`~anomalib_cxr.imaging.read_radiograph` does.

    It cannot read DICOM, nor more than 8 bits a channel, and it shows what is transparent and turns TIFF files. Float
    files count if they lie in [0, 1]: those up to 255 are read rightly by Anomalib.

    Args:
        path: File to look at: its header only, but for a float image and one with transparency.

    Returns:
        False too for what is no readable image, so that stock Anomalib says what is wrong with it.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            if is_dicom(file.read(132)):
                return True
            png = read_png_header(file)
            if png is not None and png.bits == 16:
                return True
            file.seek(0)
            with Image.open(file) as image:
                if image.mode == "F":
                    return _peak(image) <= 1
                return image.mode.startswith("I") or stated_orientation(image) != 1 or _is_transparent(image)
    except UnidentifiedImageError:
        return path.suffix.lower() in DICOM_SUFFIXES
    except (OSError, ValueError, Image.DecompressionBombError):
        return False


def read_radiograph_tensor(path: str | Path) -> tv_tensors.Image:
    """Read a radiograph in the type of Anomalib's images.

    Args:
        path: Its file.

    Returns:
        (3, H, W) float32 in [0, 1], its channels alike.

    Raises:
        RadiographError: If it cannot be read.
    """
    return tv_tensors.Image(torch.from_numpy(read_radiograph(path)).expand(3, -1, -1).contiguous())


class ListedFiles(list[Path]):
    """Files, and the folder that they were listed in.

    Args:
        files: The files.
        root: The folder.
    """

    def __init__(self, files: Iterable[Path], root: Path) -> None:
        super().__init__(files)
        self.root = root


def _wrap_list(stock: Callable[..., list[Path]]) -> Callable[..., list[Path]]:
    """List a folder as data sets do: DICOM files too, through links, and nothing that is hidden."""

    @functools.wraps(stock)
    def get_image_filenames(path: str | Path, base_dir: str | Path | None = None) -> list[Path]:
        from anomalib.data.utils.path import validate_path

        root = validate_path(path, base_dir)
        if root.is_file():
            return ListedFiles([root] if _is_named_dicom(root) else stock(path, base_dir), root.parent)
        radiographs = {root / image for image in list_radiographs(root).images}
        try:
            images = stock(path, base_dir)
        except ValueError:  # no images but radiographs: the path itself is fine
            if not radiographs:
                raise
            images = []
        shown = {image for image in images if not is_hidden(image.relative_to(root))}
        if len(shown) < len(images):
            logger.info("%d hidden images below %s are left out", len(images) - len(shown), root)
        if not shown | radiographs:
            msg = f"Found 0 images in {path} that are not hidden"
            raise ValueError(msg)
        return ListedFiles(sorted(shown | radiographs), root)

    return get_image_filenames


def _wrap_read(stock: Callable[..., Any]) -> Callable[..., Any]:
    """Read a misread file as a radiograph, in the stock function's types: (3, H, W) float32 or (H, W, 3) float64."""

    @functools.wraps(stock)
    def read_image(path: str | Path, as_tensor: bool = False) -> torch.Tensor | np.ndarray:
        if not is_misread(path):
            return stock(path, as_tensor=as_tensor)
        if as_tensor:
            return read_radiograph_tensor(path)
        return np.repeat(read_radiograph(path)[..., None].astype(np.float64), 3, axis=-1)

    return read_image


def _wrap_pillow(stock: ModuleType) -> ModuleType:
    """Stand in for :mod:`PIL.Image`: all of it, but ``open`` gives a misread file as an 8-bit grey image."""

    @functools.wraps(stock.open)
    def open_image(fp: Any, *args: Any, **kwargs: Any) -> Image.Image:
        if isinstance(fp, str | Path) and is_misread(fp):
            return stock.fromarray(np.rint(read_radiograph(fp) * 255).astype(np.uint8))
        return stock.open(fp, *args, **kwargs)

    stand_in = ModuleType(stock.__name__, stock.__doc__)
    vars(stand_in).update(open=open_image, __getattr__=functools.partial(getattr, stock))
    return stand_in


def _wrap_draw(stock: Callable[..., None]) -> Callable[..., None]:
    """Let the naming of pictures know the run, and a visualizer's default folder be that of each run."""

    @functools.wraps(stock)
    def on_test_batch_end(self: Any, trainer: Any, *args: Any, **kwargs: Any) -> None:
        from anomalib_cxr.callbacks.pictures import pictures_of

        given = self.output_dir
        token = _pictures.set(None if trainer is None else pictures_of(trainer))
        try:
            stock(self, trainer, *args, **kwargs)
        finally:
            _pictures.reset(token)
            self.output_dir = given  # else a model's next run would overwrite the pictures of its first

    return on_test_batch_end


def _wrap_name(stock: Callable[..., Path]) -> Callable[..., Path]:
    """Name pictures so that none overwrites another's: by the image's path below the root of the run's data.

    Where no run is known, the picture of ``a.dcm`` is ``a.dcm.png``: Pillow writes no DICOM, and ``a.png`` may lie
    beside it.
    """

    @functools.wraps(stock)
    def generate_output_filename(input_path: str | Path, output_path: str | Path, *args: Any, **kwargs: Any) -> Path:
        def writable() -> Path:
            name = stock(input_path, output_path, *args, **kwargs)
            known = name.suffix.lower() in Image.registered_extensions()
            return name if known else name.with_name(f"{name.name}.png")

        pictures = _pictures.get()
        return writable() if pictures is None or not input_path else pictures.place(input_path, output_path, writable)

    return generate_output_filename


def _is_named_dicom(path: Path) -> bool:
    """Whether a file that Anomalib does not list is a DICOM file by its name, or by its content if it has no suffix."""
    listed = path.suffix.lower() in RADIOGRAPH_SUFFIXES - DICOM_SUFFIXES
    return not listed and path.is_file() and is_radiograph(path)


def _is_transparent(image: Image.Image) -> bool:
    """Whether any pixel is less than opaque."""
    return image.has_transparency_data and bool((np.asarray(image.convert("RGBA").getchannel("A")) < 255).any())


def _peak(image: Image.Image) -> float:
    """Highest pixel of a one-channel image."""
    return float(np.asarray(image).max())


_WRAPPERS: tuple[Wrapper, ...] = (
    ("anomalib.data.predict", "get_image_filenames", _wrap_list),
    ("anomalib.data.predict", "read_image", _wrap_read),
    ("anomalib.deploy.inferencers.torch_inferencer", "read_image", _wrap_read),
    ("anomalib.deploy.inferencers.openvino_inferencer", "read_image", _wrap_read),
    ("anomalib.visualization.image.item_visualizer", "Image", _wrap_pillow),
    ("anomalib.visualization.image.visualizer", "generate_output_filename", _wrap_name),
    ("anomalib.visualization.image.visualizer", "ImageVisualizer.on_test_batch_end", _wrap_draw),
)

_pictures: ContextVar[Any] = ContextVar("pictures", default=None)

#: Anomalib's listing, reading and naming of files.
READING = Wrapping(_WRAPPERS)
