"""`anomalib-cxr-infer`: score a folder of radiographs with an exported model."""

import argparse
import logging
import sys
from collections.abc import Sequence

from anomalib_cxr.deploy.detector import ExportedDetector
from anomalib_cxr.deploy.folder import predict_folder
from anomalib_cxr.deploy.metadata import ExportedModelError
from anomalib_cxr.run_folder import UNREADABLE


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: Command line without the program's name; None takes that of the process.

    Returns:
        0; 1 if a file could not be read, scored or drawn; 2 if nothing could be done.
    """
    parser = argparse.ArgumentParser(
        prog="anomalib-cxr-infer",
        description="Score radiographs (DICOM, PNG, JPEG ...) with a model that `anomalib export` wrote. For research, "
        "not for diagnosis.",
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
    parser.add_argument("--runtime", choices=["onnxruntime", "openvino"], help="default: that of the file's format")
    parser.add_argument(
        "--precision",
        choices=["f32", "default"],
        default="f32",
        help="f32: the numbers of the trained model; default: what the CPU does fastest, OpenVINO only",
    )
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--threads", type=int, help="cores to use")
    chosen = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        detector = ExportedDetector(chosen.model, chosen.runtime, chosen.threads, chosen.precision, chosen.batch_size)
        done = predict_folder(detector, chosen.source, chosen.output, chosen.pictures, names=chosen.names)
    except (ExportedModelError, OSError, ValueError, ImportError) as error:
        print(f"anomalib-cxr-infer: {error}", file=sys.stderr)
        return 2
    print(f"{done.images} images scored, {done.abnormal} judged abnormal; results in {chosen.output}")
    if "dicom" in chosen.pictures and done.without_capture:
        print(f"{done.without_capture} images got no Secondary Capture: they are no DICOM, or lack identifiers")
    if done.own_captures:
        print(f"{done.own_captures} files are Secondary Captures of an earlier run and were left out")
    if done.unreadable:
        print(
            f"{done.unreadable} files could not be read, scored or drawn: see {chosen.output}/{UNREADABLE}",
            file=sys.stderr,
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
