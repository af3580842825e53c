"""`anomalib report`: one self-contained HTML file from the predictions and pictures of finished runs."""

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from anomalib.pipelines.components.base import Pipeline
from anomalib.pipelines.components.base.runner import Runner
from jsonargparse import ActionConfigFile, ArgumentParser, Namespace

from anomalib_cxr.files import write_bytes
from anomalib_cxr.folders import without_folders
from anomalib_cxr.pipelines.report.evaluation import ALL_PAIRS, Bootstrap, Evaluation, evaluate_run, gallery
from anomalib_cxr.pipelines.report.nearest import nearest_patches
from anomalib_cxr.pipelines.report.page import Pictures, make_page
from anomalib_cxr.pipelines.report.pictures import data_uri, encode, match_pictures
from anomalib_cxr.pipelines.report.runs import FinishedRun, find_runs
from anomalib_cxr.run_folder import HEAT_MAP_SHEET, OLD_REGION_SHEET, REGION_SHEET, SHEETS

logger = logging.getLogger(__name__)

_SHEETS = {
    REGION_SHEET: "Regions of the first training images",
    OLD_REGION_SHEET: "Lungs of the first training images",
    HEAT_MAP_SHEET: "Heat maps of some test images",
}


class Report(Pipeline):
    """Make a report of finished runs, without their models.

    ``anomalib report --results results/cross_validation --output report.html``
    """

    @staticmethod
    def get_parser(parser: ArgumentParser | None = None) -> ArgumentParser:
        """Take everything from the command line or a configuration file."""
        if parser is None:
            parser = ArgumentParser(description="Make one HTML file of finished runs, from their predictions.csv.")
            parser.add_argument("--config", action=ActionConfigFile, help="Configuration file.")
            parser.add_argument("--results", nargs="+", action="extend", help="Folders with runs, at any depth.")
            parser.add_argument("--output", type=Path, default=Path("report.html"), help="File to write.")
            parser.add_argument("--title", type=str, default="Chest X-ray anomaly detection", help="Title of the page.")
            parser.add_argument("--sensitivity", type=float, default=0.9, help="Of the second operating point.")
            parser.add_argument(
                "--false_positive_rate", type=float, default=0.1, help="Of the third, from normal images alone."
            )
            parser.add_argument("--draws", type=int, default=2000, help="Draws of the bootstrap over patients.")
            parser.add_argument("--level", type=float, default=0.95, help="Level of the intervals.")
            parser.add_argument("--gallery", type=int, default=6, help="Images of each kind in a run's gallery.")
            parser.add_argument(
                "--reference",
                type=str | None,
                default=None,
                help="Name of the run that the others are compared with (DeLong's test and the interval of the "
                f"difference). null: up to {ALL_PAIRS} runs each with each, of more each with the first by name.",
            )
            parser.add_argument(
                "--max_mb", type=float, default=8.0, help="Pictures take no more than this in the file."
            )
            parser.add_argument(
                "--nearest",
                type=int,
                default=0,
                help="Show the nearest normal patches of so many images of each run whose model compares patches: "
                "reads its checkpoint and images.",
            )
        return parser

    def run(self, args: Namespace | None = None) -> None:
        """Write the report.

        Args:
            args: Parsed arguments; None parses the command line.

        Raises:
            SystemExit: If there is no run that can be used; with status 1 and a report of the others if some cannot.
        """
        if args is None:
            args = self.get_parser().parse_args()
        try:
            broken = make_report(
                [args.results] if isinstance(args.results, str) else args.results or [],
                args.output,
                title=args.title,
                sensitivity=args.sensitivity,
                false_positive_rate=args.false_positive_rate,
                bootstrap=Bootstrap(args.draws, args.level),
                shown=args.gallery,
                max_mb=args.max_mb,
                nearest=args.nearest,
                reference=args.reference,
            )
        except (ValueError, OSError) as error:
            raise SystemExit(f"anomalib report: {error}") from error
        if broken:
            print("\n".join(f"{name}: {reason}" for name, reason in broken.items()))
            raise SystemExit(1)

    def _setup_runners(self, args: dict) -> list[Runner]:
        """Nothing to set up: :meth:`run` does it all."""
        del args
        return []


def make_report(
    results: Sequence[str | Path],
    output: str | Path = "report.html",
    title: str = "Chest X-ray anomaly detection",
    sensitivity: float = 0.9,
    false_positive_rate: float = 0.1,
    bootstrap: Bootstrap | None = None,
    shown: int = 6,
    max_mb: float = 8.0,
    nearest: int = 0,
    reference: str | None = None,
) -> dict[str, str]:
    """Make a report of finished runs.

    Args:
        results: Folders with runs, at any depth; a run is a folder with ``predictions.csv``.
        output: File to write.
        title: Title of the page.
        sensitivity: Target of the second operating point, in (0, 1).
        false_positive_rate: Of the third, from normal images alone, in (0, 1).
        bootstrap: How intervals are drawn; None takes 2000 draws at 95 %.
        shown: Images of each kind in a run's gallery; 0 shows none.
        max_mb: Pictures take no more than this many megabytes of the file. Where they would, each run shows fewer.
        nearest: Images whose nearest normal patches are shown, of each run whose model compares patches.
        reference: Name or folder of the run that the others are compared with; None compares up to five runs each with
            each, and more each with the first by name.

    Returns:
        Reason for each run that could not be used; the report shows the others.

    Raises:
        ValueError: If an argument is out of range, or no run can be used.
    """
    bootstrap = bootstrap or Bootstrap()
    for name, value in (("sensitivity", sensitivity), ("false_positive_rate", false_positive_rate)):
        if not 0 < value < 1:
            msg = f"{name} must lie in (0, 1), got {value}."
            raise ValueError(msg)
    if not results or shown < 0 or nearest < 0 or bootstrap.draws < 1 or not 0 < bootstrap.level < 1:
        msg = "report needs --results, draws of at least 1, a level in (0, 1), and no negative number of pictures."
        raise ValueError(msg)
    runs, broken = find_runs(results)
    if not runs:
        reasons = "; ".join(broken.values())
        msg = f"No run can be used: {reasons}"
        raise ValueError(msg)
    if reference is not None:
        reference = _find_reference(runs, reference)
    evaluations = [evaluate_run(run, sensitivity, false_positive_rate, bootstrap) for run in runs]
    pictures = _pictures(evaluations, shown, max_mb, nearest)
    text = make_page(title, evaluations, pictures, broken, bootstrap, shown, reference)
    write_bytes(output, text.encode("utf-8", "replace"))
    print(f"{output}: {len(runs)} runs, {Path(output).stat().st_size / 1e6:.1f} MB")
    return broken


def _find_reference(runs: Sequence[FinishedRun], reference: str) -> str:
    """Name of the run asked for by its name on the page, or by more of its folders than that."""
    asked = Path(reference).parts
    for run in runs:
        if run.name == reference or (
            len(asked) >= len(Path(run.name).parts) and run.folder.parts[-len(asked) :] == asked
        ):
            return run.name
    msg = f"There is no run {reference!r} to compare with, the runs are: {', '.join(run.name for run in runs)}."
    raise ValueError(msg)


def _pictures(evaluations: Sequence[Evaluation], shown: int, max_mb: float, nearest: int) -> dict[str, Pictures]:
    """Pictures of all runs, the most telling of each first, until the file would grow too large."""
    pictures = {one.name: Pictures() for one in evaluations}
    left = max_mb * 1e6
    waiting: list[tuple[int, int, str, str, Path]] = []
    for one in evaluations:
        run = one.finished
        if run.is_last:
            continue
        for name, title in _SHEETS.items():
            sheet = run.folder / SHEETS / name
            uri = data_uri(sheet, 900) if sheet.is_file() else None
            if uri is not None and len(uri) <= left:
                pictures[one.name].sheets[title] = uri
                left -= len(uri)
        for image, uri, text in _nearest(one, nearest, pictures[one.name]):
            if len(uri) <= left:
                pictures[one.name].nearest.append((image, uri, text))
                left -= len(uri)
        matched, shared = match_pictures(run.folder, run.test)
        if shared:
            pictures[one.name].notes.append(
                f"{shared} images have no picture: the run named pictures after the last folder and the file, and "
                "theirs have overwritten each other."
            )
        listed = [item for rows, _ in gallery(one, shown).values() for item in enumerate(rows["image"])]
        times = Counter(image for _, image in listed)  # an image may stand in two kinds
        ranks = {image: rank for rank, image in sorted(listed, reverse=True)}
        waiting += [
            (rank, times[image], one.name, image, matched[image]) for image, rank in ranks.items() if image in matched
        ]
    left_out: Counter[str] = Counter()
    for _, count, name, image, path in sorted(waiting, key=lambda item: item[0]):
        uri = data_uri(path) if left > 0 else None
        if left > 0 and uri is None:
            continue
        if uri is None or count * len(uri) > left:
            left_out[name] += 1
            continue
        pictures[name].by_image[image] = uri
        left -= count * len(uri)
    for name, number in left_out.items():
        pictures[name].notes.append(f"{number} pictures are left out to keep the file small (max_mb={max_mb:g}).")
    return pictures


def _nearest(one: Evaluation, count: int, pictures: Pictures) -> list[tuple[str, str, str]]:
    """Nearest normal patches of the first images of the gallery, one kind after the other."""
    run: FinishedRun = one.finished
    if run.record.get("nearest_references") is not True:
        return []
    if not count:
        pictures.notes.append("Nearest normal patches are shown on demand: anomalib report --nearest 3.")
        return []
    kinds = [rows["image"].tolist() for rows, _ in gallery(one, count).values()]
    images = list(dict.fromkeys(kind[rank] for rank in range(count) for kind in kinds if rank < len(kind)))[:count]
    try:
        found = nearest_patches(run, images)
    except Exception as error:  # noqa: BLE001  # whatever an absent checkpoint, data set or class raises
        pictures.notes.append(f"Nearest normal patches cannot be shown: {without_folders(str(error))}")
        logger.warning("%s: nearest normal patches cannot be shown: %s", one.name, error)
        return []
    return [(image, encode(sheet, 700), text) for image, sheet, text in found]
