"""Ensemble of trained detectors as one Anomalib module."""

import logging
import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from anomalib import LearningType
from anomalib.data import ImageBatch
from anomalib.metrics.evaluator import Evaluator
from anomalib.models import AnomalibModule
from anomalib.post_processing import PostProcessor
from anomalib.pre_processing import PreProcessor
from anomalib.visualization import Visualizer

from anomalib_cxr.checks import check_choice
from anomalib_cxr.models.components.post_processor import RankPreservingPostProcessor
from anomalib_cxr.models.components.scoring import ScoringMixin
from anomalib_cxr.models.ensemble.members import build_member, common_split, read_member
from anomalib_cxr.models.ensemble.surprise import Surprise
from anomalib_cxr.models.ensemble.torch_model import EnsembleMember, EnsembleModel

logger = logging.getLogger(__name__)

Fusion = Literal["mean", "p_value"]


class Ensemble(ScoringMixin, AnomalibModule):  # type: ignore[misc]  # as in Anomalib, two bases have to_onnx
    """Mean of the scores, and of the normalised maps, of several checkpoints.

    AnatPaste's published ensemble is the mean of five seeds (Sato et al. 2022, Table I). Each member normalises by its
    own validation, its threshold at 0.5, so that members of different kinds may be joined (ours). Scores of this
    package's models are normalised without ties; Anomalib's own models clamp theirs to [0, 1] first.

    ``fusion="p_value"`` (ours) joins by how unusual a score is among normal validation images, see
    :class:`~anomalib_cxr.models.ensemble.surprise.Surprise`, whose mean over the members is the score: detectors whose
    scores have different scales can be joined, and no abnormal image is needed for it. (The threshold of a fit is still
    the best F1.) The normal images that a member is calibrated by are in the ensemble's own validation too, where each
    counts itself, so that p-values of the ensemble are approximate.

    ``anomalib test --model Ensemble --model.checkpoints [a.ckpt,b.ckpt] --data ZhangLab --data.root …``

    Nothing is trained. A fit is a validation that fixes the threshold (best F1), and leaves
    ``weights/lightning/model.ckpt``, which holds all that the members need: their own checkpoints may go. Before it,
    the threshold is 0.5, or with ``fusion="p_value"`` where the members' p-values have a geometric mean of 0.05.

    Images are resized to the largest member's input size, and from there to each member's own: a smaller member sees
    a slightly softer image than by itself.

    Args:
        checkpoints: Checkpoints of the members, two or more.
        classes: Class of each checkpoint; None reads it from the checkpoint, where this package's
            models leave it.
        fusion: ``"mean"`` of the normalised scores, or ``"p_value"``.
        members: What an ensemble's own checkpoint keeps of its members; not for use by hand.
        pre_processor: As in Anomalib; the default resizes to the largest member's input size.
        post_processor: As in Anomalib; the default keeps ranks.
        evaluator: As in Anomalib; the default adds AUROC on validation.
        visualizer: As in Anomalib.

    Raises:
        ValueError: If there are fewer than two checkpoints, one cannot be read, or has never been validated; with
            ``fusion="p_value"`` also if one keeps no scores of normal validation images.
    """

    map_description = "mean of the members' normalised maps"

    def __init__(
        self,
        checkpoints: Sequence[str] | None = None,
        classes: Sequence[str] | None = None,
        fusion: Fusion = "mean",
        members: list[dict[str, Any]] | None = None,
        pre_processor: PreProcessor | bool = True,
        post_processor: PostProcessor | bool = True,
        evaluator: Evaluator | bool = True,
        visualizer: Visualizer | bool = True,
    ) -> None:
        check_choice("fusion", fusion, Fusion)
        weights: list[dict[str, torch.Tensor]] = []
        if members is None:
            paths = list(checkpoints or [])
            if len(paths) < 2 or (classes is not None and len(classes) != len(paths)):
                msg = (
                    f"An ensemble needs two or more checkpoints, and a class for each or none; got {len(paths)} and "
                    f"{'none' if classes is None else len(classes)}."
                )
                raise ValueError(msg)
            named: Sequence[str | None] = classes or [None] * len(paths)
            read = [read_member(*pair) for pair in zip(paths, named, strict=True)]
            members, weights = [member for member, _ in read], [state for _, state in read]
        modules = [build_member(member) for member in members]
        for number, (module, state) in enumerate(zip(modules, weights, strict=False)):
            _load(module, state, str((checkpoints or [])[number]))
        if pre_processor is True:
            pre_processor = ScoringMixin.configure_pre_processor(_largest(modules))
        self.fusion = fusion
        super().__init__(pre_processor, post_processor, evaluator, visualizer)
        # The checkpoint keeps the members themselves, and not where they came from.
        self.hparams.update({"checkpoints": None, "classes": None, "members": members})
        self.split_sha256 = common_split(members)
        self.model: EnsembleModel = EnsembleModel(
            [
                EnsembleMember(
                    module.pre_processor,
                    module.model,
                    module.post_processor,
                    _surprise(member) if fusion == "p_value" else None,
                )
                for module, member in zip(modules, members, strict=True)
            ]
        )

    # ------------------------------------------------------------------ components

    @property
    def learning_type(self) -> LearningType:
        """One-class, as its members."""
        return LearningType.ONE_CLASS

    @property
    def trainer_arguments(self) -> dict[str, Any]:
        """One idle step and a validation."""
        return {"max_epochs": 1, "max_steps": -1, "limit_train_batches": 1, "num_sanity_val_steps": 0}

    def configure_post_processor(self) -> RankPreservingPostProcessor:
        """Post-processing that keeps ranks, with thresholds of 0.5 until a validation finds better ones."""
        processor = RankPreservingPostProcessor()
        middle = 0.5 if self.fusion == "mean" else -math.log(0.05)
        for low, high, threshold, value in (
            (processor.image_min, processor.image_max, processor._image_threshold, middle),
            (processor.pixel_min, processor.pixel_max, processor._pixel_threshold, 0.5),
        ):
            low.fill_(0.0)
            high.fill_(2 * value)
            threshold.fill_(value)
        return processor

    # ------------------------------------------------------------------ nothing to train

    def configure_optimizers(self) -> None:
        """Nothing is trained."""

    def training_step(self, batch: ImageBatch, *args: Any, **kwargs: Any) -> None:
        """Nothing is trained."""
        del batch, args, kwargs

    def train(self, mode: bool = True) -> "Ensemble":
        """Stay in evaluation mode: the idle step of a fit must not touch running statistics."""
        super().train(mode)
        self.model.eval()
        return self

    def setup(self, stage: str) -> None:
        """Set up, and say if the members were trained on another split than they are used on.

        Args:
            stage: As in Lightning.
        """
        super().setup(stage)
        used = getattr(getattr(self.trainer, "datamodule", None), "split_hash", None)
        if stage != "predict" and used and self.split_sha256 and used != self.split_sha256:
            logger.warning(
                "The members were trained on another split than this datamodule's: its test images may be training "
                "images of theirs, and a test then says too much."
            )

    def on_fit_start(self) -> None:
        """Keep the members' split: a fit of the ensemble trains nothing on the datamodule's."""
        split = self.split_sha256
        super().on_fit_start()
        self.split_sha256 = split


def _surprise(member: dict[str, Any]) -> Surprise:
    """Calibrate a member by its own normal validation images."""
    try:
        return Surprise(member.get("normal_scores", []))
    except ValueError as error:
        msg = (
            f"A member {member['class_path'].rpartition('.')[2]} cannot be joined by p-values: {error} Fit or validate "
            "it with anomalib_cxr.callbacks.PredictionsWriter, and save it again."
        )
        raise ValueError(msg) from error


def _load(module: Any, state: dict[str, torch.Tensor], path: str) -> None:
    """Give a member its weights, and refuse one whose scores cannot be normalised."""
    try:
        module.load_state_dict(state)
    except (RuntimeError, ValueError) as error:  # Anomalib's own models raise the first
        msg = f"{path} does not fit {type(module).__name__}: {error}"
        raise ValueError(msg) from error
    processor = module.post_processor
    if not isinstance(processor, PostProcessor) or torch.isnan(processor.image_min) or torch.isnan(processor.image_max):
        msg = f"{path} was never validated, so its scores cannot be normalised: fit or validate it, and save it again."
        raise ValueError(msg)


def _largest(modules: Sequence[Any]) -> tuple[int, int]:
    """Largest input size of the members."""
    sizes = [module.input_size for module in modules if module.input_size is not None]
    if not sizes:
        return 256, 256
    if len(set(map(tuple, sizes))) > 1:
        logger.info("The members have input sizes %s: images come in the largest, and each resizes its own.", sizes)
    return max(int(size[0]) for size in sizes), max(int(size[1]) for size in sizes)
