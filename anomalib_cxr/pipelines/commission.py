"""`anomalib commission`: make a trained detector fit for a site, with normal films of that site."""

import copy
import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from anomalib.pipelines.components.base import Pipeline
from anomalib.pipelines.components.base.runner import Runner
from jsonargparse import ArgumentParser, Namespace

from anomalib_cxr import __version__
from anomalib_cxr.anatomy.assessable import LIMITS_KEY, FilmLimits
from anomalib_cxr.callbacks.film_assessor import take_limits
from anomalib_cxr.checkpoint_files import CheckpointError
from anomalib_cxr.deploy import ExportedDetector, Site
from anomalib_cxr.deploy.commissioning import compare, normalised, promises
from anomalib_cxr.deploy.secondary_capture import is_own_capture
from anomalib_cxr.files import sha256_of, written_atomically
from anomalib_cxr.imaging import RadiographError, read_radiograph
from anomalib_cxr.imaging.listing import list_radiographs
from anomalib_cxr.imaging.progress import progress
from anomalib_cxr.models.components.bank import BankMixin
from anomalib_cxr.models.components.checkpoints import read_checkpoint
from anomalib_cxr.models.components.post_processor import RankPreservingPostProcessor
from anomalib_cxr.models.ensemble.members import build_member, find_class, read_member
from anomalib_cxr.run_folder import MODEL_CHECKPOINT

logger = logging.getLogger(__name__)

#: Name that a commissioned checkpoint keeps what was done to it under.
COMMISSIONED = "commissioned"
#: Images scored at once.
_BATCH = 8


class Commission(Pipeline):
    """Commission a checkpoint at a site (ours).

    ``anomalib commission --ckpt_path results/…/model.ckpt --films /data/local_normals --output site``

    The films, known to be normal and one a patient, join the bank that the detector scores against, and its thresholds
    are moved to a stated false-positive rate on films of the site. A film in the bank would find itself, so the scores
    that the thresholds are taken from are made in folds: each fold is scored against the bank with the other folds'
    films in it (cross-conformal prediction, Vovk 2015). New normal films meet a bank that is larger by one fold's
    films: the rate is then kept nearly, and at most doubled; with ``--bank keep`` it is kept exactly.

    The output folder holds the new checkpoint, ``commissioned.json``, and, where an export is asked for, the exported
    model and its ``site.json`` for ``anomalib-cxr-infer --site``. The old checkpoint stays as it is.
    """

    @staticmethod
    def get_parser(parser: ArgumentParser | None = None) -> ArgumentParser:
        """Take everything from the command line."""
        if parser is None:
            parser = ArgumentParser(description="Commission a trained detector with normal films of a site.")
            parser.add_argument("--ckpt_path", type=Path, required=True, help="Checkpoint of one of our detectors.")
            parser.add_argument("--films", type=Path, required=True, help="Folder of normal films, one a patient.")
            parser.add_argument("--output", type=Path, required=True, help="Folder of the new checkpoint.")
            parser.add_argument("--rate", type=float, default=0.1, help="False-positive rate of the decision.")
            parser.add_argument(
                "--bank", type=Literal["extend", "keep"], default="extend", help="Whether the films join the bank."
            )
            parser.add_argument("--folds", type=int, default=10, help="Folds in which films of the bank are scored.")
            parser.add_argument(
                "--export_type", type=Literal["onnx", "openvino"] | None, default=None, help="Export it, too."
            )
        return parser

    def run(self, args: Namespace | None = None) -> None:
        """Commission, and say what can be promised.

        Args:
            args: Parsed arguments; None parses the command line.

        Raises:
            SystemExit: With a sentence if it cannot be done; with status 1 if a film could not be read.
        """
        if args is None:
            args = self.get_parser().parse_args()
        try:
            unreadable = _commission(args)
        except (CheckpointError, ValueError, OSError) as error:
            raise SystemExit(f"anomalib commission: {error}") from error
        if unreadable:
            raise SystemExit(1)

    def _setup_runners(self, args: dict) -> list[Runner]:
        """Nothing to set up: there is one job, and :meth:`run` does it."""
        del args
        return []


def _commission(args: Namespace) -> int:
    """Do it; the number of films that could not be read."""
    output = Path(args.output)
    new_path = output / MODEL_CHECKPOINT
    if new_path.exists():
        msg = f"{new_path} exists: give a new folder, the checkpoint of another commissioning is not overwritten."
        raise ValueError(msg)
    member, checkpoint, module = load_detector(args.ckpt_path)
    images, unreadable = read_films(module, args.films)
    scores, maps = score_in_folds(module, images, args.folds, extend=args.bank == "extend")
    module.post_processor.move_thresholds(scores, maps, args.rate)
    if args.bank == "extend":
        module.extend_bank(images)
    if module.film_limits is not None:  # with too few films those of the training stay
        of_these = FilmLimits.from_films(image.mean(dim=0).numpy() for image in images)
        module.film_limits = of_these or module.film_limits

    before = member["normal_scores"]
    shift = compare(before, scores.numpy()) if before else None
    report = {
        "package_version": __version__,
        "checkpoint_sha256": sha256_of(args.ckpt_path),
        "films": len(images),
        "unreadable": len(unreadable),
        "bank": args.bank,
        "folds": args.folds if args.bank == "extend" else None,
        "rate": args.rate,
        "shift": None if shift is None else asdict(shift),
    }
    new = {**checkpoint, "state_dict": module.state_dict(), COMMISSIONED: report}
    module.on_save_checkpoint(new)
    new["callbacks"] = {
        **checkpoint.get("callbacks", {}),
        # P-values of later runs are those among the site's normal films.
        "PredictionsWriter": {
            "digest": f"site of {len(images)} films",
            "labels": [0] * len(images),
            "raw_scores": scores.tolist(),
            "step": checkpoint.get("global_step", 0),
        },
    }
    output.mkdir(parents=True, exist_ok=True)
    with written_atomically(new_path, durable=True) as temporary:
        torch.save(new, temporary)
    with written_atomically(output / "commissioned.json") as temporary:
        temporary.write_text(json.dumps(report, indent=1), encoding="utf-8")

    if args.export_type is not None:
        export = module.to_onnx if args.export_type == "onnx" else module.to_openvino
        exported = ExportedDetector(export(output))
        of_site = tuple(sorted(normalised(scores.numpy(), exported.metadata).tolist()))
        site = Site(
            exported.metadata["model"],
            exported.metadata["file_sha256"],
            of_site,
            len(unreadable),
            None if not before else compare(normalised(before, exported.metadata), of_site),
            exported.metadata[LIMITS_KEY],
        )
        site.save(output / "site.json")
        print("\n".join(promises(site)))
    for path, reason in unreadable.items():
        logger.error("%s: %s", path, reason)
    where = "joined the bank, and " if args.bank == "extend" else ""
    print(
        f"{len(images)} normal films {where}set the thresholds for a false-positive rate of {args.rate:g}; "
        f"{len(unreadable)} could not be read.\nResults: {output}"
    )
    return len(unreadable)


def load_detector(path: str | Path) -> tuple[dict[str, Any], dict[str, Any], Any]:
    """Load one of our detectors with its post-processing, in evaluation mode on the CPU.

    Args:
        path: Its checkpoint.

    Returns:
        What :func:`~anomalib_cxr.models.ensemble.members.read_member` gives, the checkpoint, and the
        ``AnomalibModule``.

    Raises:
        ValueError: If it is another model's, or its post-processor is not ours.
    """
    member, weights = read_member(path)
    module = build_member(member)
    module.load_state_dict(weights)
    if not isinstance(module.post_processor, RankPreservingPostProcessor):
        msg = f"{path}: {type(module).__name__} has no post-processor of this package, whose thresholds could be moved."
        raise ValueError(msg)
    checkpoint = read_checkpoint(path, find_class(member["class_path"]).checkpoint_safe_globals())
    take_limits(module, checkpoint)
    return member, checkpoint, module


def read_films(module: Any, folder: str | Path) -> tuple[torch.Tensor, dict[str, str]]:
    """Read the films of a folder as the detector sees them.

    Args:
        module: Detector, whose pre-processor resizes.
        folder: Films; Secondary Captures of ours are no films.

    Returns:
        (n, 3, H, W) images, and the reason for each path that could not be read.

    Raises:
        ValueError: If no film can be read.
    """
    scan = list_radiographs(folder)
    films = [scan.root / name for name in scan.images if not is_own_capture(scan.root / name)]
    images: list[torch.Tensor] = []
    unreadable = dict(scan.closed)
    for path in progress(films, "Reading", len(films)):
        try:
            pixels = torch.from_numpy(read_radiograph(path))
        except RadiographError as error:
            unreadable[str(path)] = str(error)
        else:
            images.append(module.pre_processor(pixels.expand(1, 3, -1, -1)))
    if not images:
        msg = f"None of the {len(films)} radiographs in {folder} can be read: give normal films of the site."
        raise ValueError(msg)
    return torch.cat(images), unreadable


@torch.no_grad()
def score_in_folds(
    module: Any, images: torch.Tensor, folds: int, extend: bool = True
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Score normal films, each against a bank that holds others of them but not itself.

    Args:
        module: Detector in evaluation mode; it is not changed.
        images: (n, 3, H, W), pre-processed.
        folds: Number of folds, at least 2; image i is of fold ``i % folds``.
        extend: False scores all against the bank as it is.

    Returns:
        (n,) raw scores and (n, 1, H, W) raw maps, None where the detector has none.

    Raises:
        ValueError: If there are fewer than two folds or images, or the bank cannot grow.
    """
    if not extend:
        return _scored(module, images)
    if folds < 2 or len(images) < 2:
        msg = f"Films are scored in at least two folds of one film, not {len(images)} in {folds}."
        raise ValueError(msg)
    if not isinstance(module, BankMixin):
        msg = f"{type(module).__name__} has no bank that films could join: give --bank keep."
        raise ValueError(msg)
    folds = min(folds, len(images))
    fold_of = torch.arange(len(images)) % folds
    scores = torch.empty(len(images))
    maps: list[torch.Tensor | None] = [None] * len(images)
    for fold in progress(range(folds), "Scoring in folds", folds):
        larger = copy.deepcopy(module)
        larger.extend_bank(images[fold_of != fold])
        found, drawn = _scored(larger, images[fold_of == fold])
        scores[fold_of == fold] = found
        for place, index in enumerate((fold_of == fold).nonzero().flatten().tolist()):
            maps[index] = None if drawn is None else drawn[place]
    return scores, None if maps[0] is None else torch.stack([one for one in maps if one is not None])


def _scored(module: Any, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    found = [module.model(part) for part in images.split(_BATCH)]
    maps = [one.anomaly_map for one in found]
    scores = torch.cat([one.pred_score.flatten() for one in found])
    return scores, None if maps[0] is None else torch.cat(maps)
