"""Run an exported detector over a folder: a table of scores, and pictures."""

import logging
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from anomalib_cxr import __version__
from anomalib_cxr.anatomy.assessable import NOT_ASSESSABLE
from anomalib_cxr.checks import check_choice
from anomalib_cxr.csv_tables import growing_table
from anomalib_cxr.deploy.commissioning import Site
from anomalib_cxr.deploy.detector import ExportedDetector, FilePrediction, Prediction
from anomalib_cxr.deploy.judge import Judge, Verdict
from anomalib_cxr.deploy.overlay import overlay, save_png
from anomalib_cxr.deploy.secondary_capture import is_own_capture, new_run, secondary_capture
from anomalib_cxr.deploy.shards import Shard, begin, finish, listing_digest
from anomalib_cxr.files import folder_below, written_atomically
from anomalib_cxr.imaging import DICOM_SUFFIXES, SMOOTHED, Names, shown_name
from anomalib_cxr.imaging.dicom import is_dicom
from anomalib_cxr.imaging.listing import FileScan, identity, list_radiographs
from anomalib_cxr.imaging.picture_names import fits, with_hash
from anomalib_cxr.imaging.progress import progress as show_progress
from anomalib_cxr.run_folder import PREDICTIONS, UNREADABLE

logger = logging.getLogger(__name__)

Pictures = Literal["png", "dicom"]


class Summary(NamedTuple):
    """What a run over a folder came to.

    Attributes:
        images: Images scored.
        abnormal: Of these, judged abnormal.
        unreadable: Rows of ``unreadable.csv``: files that could not be read or scored, images whose pictures could
            not be made, and folders that could not be opened.
        ignored: Files that are hidden, as a Mac's ``._a.jpg``, or no radiographs by their name.
        without_capture: Images for which no Secondary Capture was written though one was asked for.
        own_captures: Secondary Captures of an earlier run, left out.
        not_assessable: Images called neither normal nor abnormal, as they are not of the kind that the model was
            trained on; None for a model that cannot tell.
    """

    images: int
    abnormal: int
    unreadable: int
    ignored: int
    without_capture: int
    own_captures: int
    not_assessable: int | None = None


def predict_folder(
    detector: ExportedDetector,
    source: str | Path,
    output: str | Path,
    pictures: Sequence[Pictures] = ("png",),
    progress: bool = True,
    names: Names = "path",
    site: Site | None = None,
    rate: float = 0.1,
    shard: Shard | None = None,
) -> Summary:
    """Score all radiographs of a folder, and write a table and pictures.

    One batch is in memory at a time, and each row of both tables is on disk when it is known, so that a run that is
    cut off leaves what it has done. Nothing that is wrong with one file ends the run. Links to folders are followed,
    hidden files and folders passed over. File names that are no UTF-8 stand in the tables as they are on disk; what a
    spreadsheet would take for a formula has an apostrophe before it. Secondary Captures of this package are no
    radiographs and are left out.

    - ``predictions.csv``: ``image`` (path below the folder), ``score``, ``threshold`` (of the normalised score: 0.5,
      unless the model was given another sensitivity), ``decision`` (normal, abnormal, not assessable), ``heat_map``,
      ``secondary_capture`` (paths below the output folder, or empty), ``assessable`` (yes, no),
      ``not_assessable_because`` (reasons joined by "; "), both empty for a model that has no limits of what it was
      trained on; with a site, ``p_value``, and threshold and decision are the site's.
    - ``unreadable.csv``: ``image`` and ``reason``, of files that cannot be read or scored, which are not in the other
      table, and of those whose pictures cannot be made, which are.
    - ``heat_maps/``: PNG overlays under the names of the images.
    - ``secondary_captures/``: DICOM Secondary Captures of the images that are DICOM themselves.

    Args:
        detector: Exported model.
        source: Folder, searched with all below it, or one file.
        output: Folder for the results; must not hold those of another run.
        pictures: ``"png"``, ``"dicom"``, both or none.
        progress: Show a progress bar.
        names: How pictures call the film they show: ``"path"`` below the source, or ``"hash"``, the first digits of its
            SHA-256, where names are private. Files of pictures are named as the films either way, and Secondary
            Captures always show the hash.
        site: What scores mean at this site, see :func:`~anomalib_cxr.deploy.commissioning.commission`.
        rate: False-positive rate of the decision at the site, in (0, 1); without a site it is not used.
        shard: Score this part of the folder alone; the tables lie in ``shards/`` of the output folder, which all shards
            share, until :func:`~anomalib_cxr.deploy.merge_shards` joins them. A shard that was cut off begins anew.

    Returns:
        Counts.

    Raises:
        FileNotFoundError: If there is no such folder, or no radiograph in it.
        FileExistsError: If the output folder holds results already.
        ValueError: If the output folder lies in the source folder, ``names`` or one of ``pictures`` is unknown, or the
            site is another model's (:class:`~anomalib_cxr.deploy.commissioning.SiteError`).
        ImportError: If Secondary Captures are asked for and pydicom is not installed.
    """
    check_choice("names", names, Names)
    for kind in pictures:
        check_choice("pictures", kind, Pictures)
    source, output = Path(source), Path(output)
    found = _find(source)
    for what, number in (
        ("files are hidden or no radiographs by their name", found.ignored),
        ("folders are hidden", len(found.hidden)),
        ("folder links lead to folders listed already", len(found.loops)),
    ):
        if number:
            logger.info("Below %s %d %s: they are left out.", source, number, what)
    if any(folder.is_dir() and identity(folder) in found.folders for folder in (output, *output.resolve().parents)):
        msg = f"The output folder {output} lies in {source}: its heat maps would be taken for radiographs later."
        raise ValueError(msg)
    for name in (PREDICTIONS, UNREADABLE):
        if (output / name).exists():
            msg = f"{output / name} exists: name another output folder, or move it away."
            raise FileExistsError(msg)
    if "dicom" in pictures and find_spec("pydicom") is None:
        msg = 'Secondary Captures need pydicom: pip install "anomalib-cxr[dicom]"'
        raise ImportError(msg)
    root = found.root
    judge = Judge(detector, site, rate)
    draw = _Draw(detector, root, output, pictures, names, judge)
    threshold = f"{judge.threshold:.7g}"
    images = abnormal = not_assessable = without_capture = unreadable = own_captures = 0

    names_here = [name for name in found.images if shard is None or shard.holds(name)]

    def films() -> Iterator[Path]:
        nonlocal own_captures
        for path in show_progress([root / name for name in names_here], "Scoring", shown=progress):
            if is_own_capture(path):
                own_captures += 1
            else:
                yield path

    output.mkdir(parents=True, exist_ok=True)
    tables = output if shard is None else begin(shard, output)
    with (
        growing_table(
            tables / PREDICTIONS,
            "image",
            "score",
            "threshold",
            "decision",
            "heat_map",
            "secondary_capture",
            "assessable",
            "not_assessable_because",
            *(["p_value"] if site else []),
        ) as add,
        growing_table(tables / UNREADABLE, "image", "reason") as report,
    ):
        for folder, why in found.closed.items():
            if shard is None or shard.holds(folder):
                unreadable += 1
                report(folder, why)
        for scored in detector.predict_files(films()):
            name = scored.path.relative_to(root).as_posix()
            reason = scored.error
            if scored.prediction is not None:
                images += 1
                verdict = judge(scored.prediction.score, scored.prediction.abnormal, scored.prediction.assessment)
                abnormal += verdict.decision == "abnormal"
                not_assessable += verdict.decision == NOT_ASSESSABLE
                heat_map, capture, reason = draw(scored, verdict, images)
                without_capture += "dicom" in pictures and not capture
                assessable = "" if detector.limits is None else "no" if verdict.not_assessable else "yes"
                p_value = [] if verdict.p_value is None else [f"{verdict.p_value:.7g}"]
                add(
                    name,
                    f"{scored.prediction.score:.7f}",
                    threshold,
                    verdict.decision,
                    heat_map,
                    capture,
                    assessable,
                    verdict.not_assessable,
                    *p_value,
                )
            if reason is not None:
                unreadable += 1
                report(name, reason)
    if shard is not None:
        finish(shard, output, {"folder": listing_digest(found.images), **judge.made_with})
    unfit = None if detector.limits is None else not_assessable
    return Summary(images, abnormal, unreadable, found.ignored, without_capture, own_captures, unfit)


class _Draw:
    """Writes the pictures of one run."""

    def __init__(
        self,
        detector: ExportedDetector,
        root: Path,
        output: Path,
        pictures: Sequence[Pictures],
        names: Names,
        judge: Judge,
    ) -> None:
        self.root, self.output, self.pictures, self.names = root, output, pictures, names
        self.model = str(detector.metadata["model"])
        self.thresholds = detector.thresholds._replace(image=judge.threshold)
        version, digest = detector.metadata["package_version"], detector.metadata["weights"]["sha256"]
        self.description = (
            f"Heat map of {self.model}, exported by anomalib-cxr {version} (weights SHA-256 {digest[:16]}), drawn over "
            f"the radiograph by anomalib-cxr {__version__}; {SMOOTHED}"
        )
        self.run = new_run()

    def __call__(self, found: FilePrediction, verdict: Verdict, number: int) -> tuple[str, str, str | None]:
        """Write what was asked for; returns the paths below the output folder, or "", and what went wrong, or None."""
        heat_map = capture = ""
        if not self.pictures or found.image is None or found.prediction is None:
            return heat_map, capture, None
        try:
            if "png" in self.pictures:
                picture = self._picture(found.path, found.image, found.prediction, verdict, self.names)
                heat_map = self._save(found.path, "heat_maps", ".png", lambda path: save_png(path, picture))
            if "dicom" in self.pictures and _is_dicom(found.path):
                # An archive knows the film by its header, which may say that nothing is burned in that names a patient.
                hashed = self._picture(found.path, found.image, found.prediction, verdict, "hash")
                capture = self._capture(hashed, found.path, number, verdict.not_assessable)
        except Exception as error:  # noqa: BLE001  # one film must not end the run
            reason = " ".join(str(error).split()) or type(error).__name__
            return heat_map, capture, f"{found.path} was scored, but its pictures were not made: {reason}"
        return heat_map, capture, None

    def _picture(
        self, path: Path, image: npt.NDArray[np.float32], prediction: Prediction, verdict: Verdict, names: Names
    ) -> npt.NDArray[np.uint8]:
        name = shown_name(path.relative_to(self.root).as_posix(), names)
        decided = prediction._replace(abnormal=verdict.abnormal)
        return overlay(
            image,
            decided,
            self.model,
            self.thresholds,
            name,
            verdict.p_value,
            verdict.outside,
            verdict.not_assessable,
        )

    def _capture(self, picture: npt.NDArray[np.uint8], source: Path, number: int, not_assessable: str) -> str:
        try:
            data = secondary_capture(picture, source, self.description, self.run, number, not_assessable)
        except ValueError as error:
            logger.warning("No Secondary Capture: %s.", error)
            return ""
        return self._save(
            source, "secondary_captures", ".dcm", lambda path: data.save_as(path, enforce_file_format=True)
        )

    def _save(self, source: Path, folder: str, suffix: str, write: Callable[[Path], object]) -> str:
        # The whole name and a suffix: a.dcm and a.png may lie side by side.
        relative = Path(folder) / source.relative_to(self.root)
        relative = relative.with_name(relative.name + suffix)
        if not fits(relative.name):
            relative = Path(with_hash(str(relative), source.name))
        folder_below(self.output, *relative.parent.parts)
        with written_atomically(self.output / relative) as temporary:
            write(temporary)
        return relative.as_posix()


def _find(source: Path) -> FileScan:
    """What is in a folder; or one file, by whatever name."""
    if source.is_file():
        return FileScan(source.parent, [source.name])
    if not source.is_dir():
        msg = f"{source} is neither a folder nor a file."
        raise FileNotFoundError(msg)
    found = list_radiographs(source)
    if not found.images:
        left_out = f"{found.ignored} files are none, {len(found.hidden)} folders hidden and {len(found.closed)} closed"
        msg = f"There is no radiograph below {source}: {left_out}."
        raise FileNotFoundError(msg)
    return found


def _is_dicom(path: Path) -> bool:
    with path.open("rb") as file:
        return is_dicom(file.read(132)) or path.suffix.lower() in DICOM_SUFFIXES
