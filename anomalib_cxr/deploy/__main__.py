"""`anomalib-cxr-infer`: score radiographs with an exported model, commission it at a site, watch for drift."""

import argparse
import csv
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from anomalib_cxr.deploy.commissioning import RATES, Site, commission, normalised, promises, shift_picture
from anomalib_cxr.deploy.detector import ExportedDetector
from anomalib_cxr.deploy.folder import predict_folder
from anomalib_cxr.deploy.metadata import ExportedModelError
from anomalib_cxr.deploy.overlay import save_png
from anomalib_cxr.deploy.shards import Shard, merge_shards
from anomalib_cxr.files import written_atomically
from anomalib_cxr.metrics.martingale import drift_alarm
from anomalib_cxr.run_folder import UNREADABLE


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command: ``MODEL SOURCE``, ``commission MODEL FOLDER``, ``drift PREDICTIONS`` or ``merge OUTPUT``.

    Args:
        arguments: Command line without the program's name; None takes that of the process.

    Returns:
        0; 1 if a file could not be read, scored or drawn, or if drift was found; 2 if nothing could be done.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    verbs: dict[str, Callable[[list[str]], int]] = {"commission": _commission, "drift": _drift, "merge": _merge}
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        return verbs[given[0]](given[1:]) if given and given[0] in verbs else _infer(given)
    except (ExportedModelError, OSError, ValueError, ImportError) as error:
        print(f"anomalib-cxr-infer: {error}", file=sys.stderr)
        return 2


def _infer(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="anomalib-cxr-infer",
        description="Score radiographs (DICOM, PNG, JPEG ...) with a model that `anomalib export` wrote. For research, "
        "not for diagnosis.",
        epilog="`anomalib-cxr-infer commission --help`: thresholds that hold at a site, from its own normal films. "
        "`anomalib-cxr-infer drift --help`: has something changed since? `anomalib-cxr-infer merge --help`: the tables "
        "of all shards in one.",
    )
    parser.add_argument("model", help=".onnx or .xml file, its weights beside it")
    parser.add_argument("source", help="folder, searched with all below it, or one file")
    parser.add_argument("-o", "--output", required=True, help="folder for predictions.csv and pictures")
    parser.add_argument(
        "--pictures", nargs="*", choices=["png", "dicom"], default=["png"], help="kinds of heat maps (default: png)"
    )
    parser.add_argument(
        "--names",
        choices=["path", "hash"],
        default="path",
        help="what pictures call their film: its path below the source, or a short hash of it (default: path)",
    )
    parser.add_argument("--site", help="site file of `commission`: p-values, and decisions by them")
    parser.add_argument(
        "--rate", type=float, default=0.1, help="false-positive rate of the decisions with --site (default: 0.1)"
    )
    parser.add_argument(
        "--shard",
        metavar="I/N",
        help="score the I-th of N parts of the folder alone, for job arrays: all with the same --output, then `merge`",
    )
    _add_running(parser)
    parser.add_argument("--batch-size", type=int, default=1)
    chosen = parser.parse_args(arguments)
    shard = None if chosen.shard is None else Shard.parse(chosen.shard)
    detector = ExportedDetector(chosen.model, chosen.runtime, chosen.threads, chosen.precision, chosen.batch_size)
    site = None if chosen.site is None else Site.load(chosen.site, detector)
    done = predict_folder(
        detector,
        chosen.source,
        chosen.output,
        chosen.pictures,
        names=chosen.names,
        site=site,
        rate=chosen.rate,
        shard=shard,
    )
    tables = Path(chosen.output) if shard is None else shard.folder(Path(chosen.output))
    unfit = "" if done.not_assessable is None else f", {done.not_assessable} not assessable"
    print(f"{done.images} images scored, {done.abnormal} judged abnormal{unfit}; results in {tables}")
    if "dicom" in chosen.pictures and done.without_capture:
        print(f"{done.without_capture} images got no Secondary Capture: they are no DICOM, or lack identifiers")
    if done.own_captures:
        print(f"{done.own_captures} files are Secondary Captures of an earlier run and were left out")
    if done.unreadable:
        print(
            f"{done.unreadable} files could not be read, scored or drawn: see {tables}/{UNREADABLE}",
            file=sys.stderr,
        )
        return 1
    return 0


def _add_running(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--runtime", choices=["onnxruntime", "openvino"], help="default: that of the file's format")
    parser.add_argument(
        "--precision",
        choices=["f32", "default"],
        default="f32",
        help="f32: the numbers of the trained model; default: what the CPU does fastest, OpenVINO only",
    )
    parser.add_argument("--threads", type=int, help="cores to use")


def _commission(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="anomalib-cxr-infer commission",
        description="Score normal films of a site, one a patient, and write what the model's scores mean there: "
        "thresholds for stated false-positive rates, and the scores that p-values are taken from. No names are kept.",
    )
    parser.add_argument("model", help=".onnx or .xml file, its weights beside it")
    parser.add_argument("folder", help="20 or more films of the site that are known to be normal")
    parser.add_argument("-o", "--output", required=True, help="site file to write (.json)")
    parser.add_argument(
        "--validation", help="predictions_val.csv of the training run: say how the site differs, with a picture"
    )
    parser.add_argument("--rates", type=float, nargs="+", default=list(RATES), help="default: 0.05 0.1 0.2")
    _add_running(parser)
    chosen = parser.parse_args(arguments)
    detector = ExportedDetector(chosen.model, chosen.runtime, chosen.threads, chosen.precision)
    validation = None
    if chosen.validation is not None:
        validation = normalised(_scores(chosen.validation, "raw_score", normal_only=True), detector.metadata)
    site = commission(detector, chosen.folder, validation)
    lines = promises(site, chosen.rates)
    site.save(chosen.output, chosen.rates)
    if validation is not None:
        with written_atomically(Path(chosen.output).with_suffix(".png")) as temporary:
            save_png(temporary, shift_picture(site, validation))
    print("\n".join([*lines, f"Written: {chosen.output}"]))
    return 1 if site.unreadable else 0


def _drift(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="anomalib-cxr-infer drift",
        description="Watch the scores of later films for a change, for example of the detector plate: an alarm at any "
        "time, with a stated bound on the chance that it is ever a false one. The films must be of the reference's "
        "kind: with --site of normal films alone, later films that were reported normal; or give --reference.",
    )
    parser.add_argument("predictions", help="predictions.csv of later films, in the order of time")
    parser.add_argument("--site", required=True, help="site file of `commission`")
    parser.add_argument("--reference", help="predictions.csv of earlier films of the same mix, instead of the site's")
    parser.add_argument("--false-alarm", type=float, default=0.01, help="bound on any false alarm (default: 0.01)")
    chosen = parser.parse_args(arguments)
    site = Site.load(chosen.site)
    reference = list(site.scores) if chosen.reference is None else _scores(chosen.reference)
    stream = _scores(chosen.predictions)
    found = drift_alarm(reference, stream, chosen.false_alarm)
    print(
        f"{len(stream)} films after {len(reference)} of the reference: evidence of a change is now "
        f"10^{found.martingale[-1]:.1f}, at most 10^{found.martingale.max():.1f} on the way, alarm at "
        f"{1 / chosen.false_alarm:g}."
    )
    if found.alarm_at is None:
        print("No alarm.")
        return 0
    print(
        f"ALARM at film {found.alarm_at + 1}: the scores have changed (an alarm without a change has a chance of at "
        f"most {chosen.false_alarm:g}, however long one watches). Look at films of before and after, and commission "
        "anew."
    )
    return 1


def _merge(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="anomalib-cxr-infer merge",
        description="Join the tables of all shards (--shard I/N) into predictions.csv and unreadable.csv, sorted by "
        "name. Refused if a shard is missing, there twice, changed, or of another folder or model.",
    )
    parser.add_argument("output", help="output folder that the shards shared, or that their folders were copied into")
    chosen = parser.parse_args(arguments)
    images, unreadable = merge_shards(chosen.output)
    print(f"{images} images joined; results in {chosen.output}")
    if unreadable:
        print(
            f"{unreadable} files could not be read, scored or drawn: see {chosen.output}/{UNREADABLE}", file=sys.stderr
        )
        return 1
    return 0


def _scores(path: str, column: str = "score", normal_only: bool = False) -> list[float]:
    """Scores of a table of predictions, in its order."""
    with Path(path).open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        rows = list(csv.DictReader(file))
    if normal_only:
        rows = [row for row in rows if row.get("label") == "normal"]
    try:
        scores = [float(row[column]) for row in rows]
    except (KeyError, TypeError, ValueError) as error:
        msg = f"{path} is no table of predictions with a column {column!r} of numbers ({error})."
        raise ValueError(msg) from error
    if not np.isfinite(scores).all():
        msg = f"{path} has scores that are NaN or infinite: its run has not ended, or diverged."
        raise ValueError(msg)
    if not scores:
        msg = f"{path} lists no {'normal ' if normal_only else ''}film."
        raise ValueError(msg)
    return scores


if __name__ == "__main__":
    sys.exit(main())
