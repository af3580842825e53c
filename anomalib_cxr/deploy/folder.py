"""Run an exported detector over a folder: a table of scores, and pictures."""

import csv
import logging
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, NamedTuple

from tqdm import tqdm

from anomalib_cxr import __version__
from anomalib_cxr.deploy.detector import ExportedDetector, FilePrediction
from anomalib_cxr.deploy.overlay import overlay, save_png
from anomalib_cxr.deploy.secondary_capture import new_run, secondary_capture
from anomalib_cxr.imaging import DICOM_SUFFIXES, is_radiograph
from anomalib_cxr.imaging.dicom import is_dicom

logger = logging.getLogger(__name__)

Pictures = Literal["png", "dicom"]

PREDICTIONS, UNREADABLE = "predictions.csv", "unreadable.csv"


class Summary(NamedTuple):
    """What a run over a folder came to.

    Attributes:
        images: Images scored.
        abnormal: Of these, judged abnormal.
        unreadable: Files that could not be read.
        ignored: Files that are no radiographs by their name.
        without_capture: Images for which no Secondary Capture was written though one was asked for.
    """

    images: int
    abnormal: int
    unreadable: int
    ignored: int
    without_capture: int


def predict_folder(
    detector: ExportedDetector,
    source: str | Path,
    output: str | Path,
    pictures: Sequence[Pictures] = ("png",),
    progress: bool = True,
) -> Summary:
    """Score all radiographs of a folder, and write a table and pictures.

    One batch is in memory at a time, and each row is written when it is known, so that a run that is cut off leaves
    what it has done. Files that cannot be read are left out of the table and listed in ``unreadable.csv`` with the
    reason.

    - ``predictions.csv``: ``image`` (path below the folder), ``score`` (0.5 is the threshold), ``decision``
      (normal, abnormal), ``heat_map``, ``secondary_capture`` (paths below the output folder, or empty).
    - ``heat_maps/``: PNG overlays under the names of the images.
    - ``secondary_captures/``: DICOM Secondary Captures of the images that are DICOM themselves.

    Args:
        detector: Exported model.
        source: Folder, searched with all below it, or one file.
        output: Folder for the results; must not hold those of another run.
        pictures: ``"png"``, ``"dicom"``, both or none.
        progress: Show a progress bar.

    Returns:
        Counts.

    Raises:
        FileNotFoundError: If there is no such folder, or no radiograph in it.
        FileExistsError: If the output folder holds results already.
        ValueError: If the output folder lies in the source folder.
        ImportError: If Secondary Captures are asked for and pydicom is not installed.
    """
    source, output = Path(source), Path(output)
    paths, ignored = _find(source)
    if ignored:
        logger.info("%d files below %s are no radiographs by their name and are left out.", ignored, source)
    if source.is_dir() and output.resolve().is_relative_to(source.resolve()):
        msg = f"The output folder {output} lies in {source}: its heat maps would be taken for radiographs later."
        raise ValueError(msg)
    for name in (PREDICTIONS, UNREADABLE):
        if (output / name).exists():
            msg = f"{output / name} exists: name another output folder, or move it away."
            raise FileExistsError(msg)
    if "dicom" in pictures and find_spec("pydicom") is None:
        msg = 'Secondary Captures need pydicom: pip install "anomalib-cxr[dicom]"'
        raise ImportError(msg)
    root = source if source.is_dir() else source.parent
    draw = _Draw(detector, root, output, pictures)
    images = abnormal = without_capture = 0
    failed: list[tuple[str, str]] = []
    output.mkdir(parents=True, exist_ok=True)
    with (output / PREDICTIONS).open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["image", "score", "decision", "heat_map", "secondary_capture"])
        for found in tqdm(detector.predict_files(paths), total=len(paths), unit="image", disable=not progress):
            name = found.path.relative_to(root).as_posix()
            if found.prediction is None:
                failed.append((name, str(found.error)))
                continue
            images += 1
            abnormal += found.prediction.abnormal
            heat_map, capture = draw(found, images)
            without_capture += "dicom" in pictures and not capture
            decision = "abnormal" if found.prediction.abnormal else "normal"
            table.writerow([name, f"{found.prediction.score:.7f}", decision, heat_map, capture])
            file.flush()
    if failed:
        with (output / UNREADABLE).open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("image", "reason"), *failed])
    return Summary(images, abnormal, len(failed), ignored, without_capture)


class _Draw:
    """Writes the pictures of one run."""

    def __init__(self, detector: ExportedDetector, root: Path, output: Path, pictures: Sequence[Pictures]) -> None:
        self.root, self.output, self.pictures = root, output, pictures
        self.model = str(detector.metadata["model"])
        version, digest = detector.metadata["package_version"], detector.metadata["weights"]["sha256"]
        self.description = (
            f"Heat map of {self.model}, exported by anomalib-cxr {version} (weights SHA-256 {digest[:16]}), drawn over "
            f"the radiograph by anomalib-cxr {__version__}"
        )
        self.run = new_run()

    def __call__(self, found: FilePrediction, number: int) -> tuple[str, str]:
        """Write what was asked for; returns the paths below the output folder, or ""."""
        if not self.pictures or found.image is None or found.prediction is None:
            return "", ""
        picture = overlay(found.image, found.prediction, self.model)
        heat_map = capture = ""
        if "png" in self.pictures:
            heat_map = self._save(found.path, "heat_maps", ".png", lambda path: save_png(path, picture))
        if "dicom" in self.pictures and _is_dicom(found.path):
            try:
                data = secondary_capture(picture, found.path, self.description, self.run, number)
            except ValueError as error:
                logger.warning("No Secondary Capture: %s.", error)
            else:
                capture = self._save(
                    found.path,
                    "secondary_captures",
                    ".dcm",
                    lambda path: data.save_as(path, enforce_file_format=True),
                )
        return heat_map, capture

    def _save(self, source: Path, folder: str, suffix: str, write: Callable[[Path], object]) -> str:
        # The whole name and a suffix: a.dcm and a.png may lie side by side.
        relative = Path(folder) / source.relative_to(self.root)
        relative = relative.with_name(relative.name + suffix)
        path = self.output / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path)
        return relative.as_posix()


def _find(source: Path) -> tuple[list[Path], int]:
    """Radiographs in a folder, sorted, and the number of other files."""
    if source.is_file():
        return [source], 0
    if not source.is_dir():
        msg = f"{source} is neither a folder nor a file."
        raise FileNotFoundError(msg)
    files = sorted(path for path in source.rglob("*") if path.is_file())
    paths = [path for path in files if is_radiograph(path)]
    if not paths:
        msg = f"There is no radiograph among the {len(files)} files below {source}."
        raise FileNotFoundError(msg)
    return paths, len(files) - len(paths)


def _is_dicom(path: Path) -> bool:
    with path.open("rb") as file:
        return is_dicom(file.read(132)) or path.suffix.lower() in DICOM_SUFFIXES
