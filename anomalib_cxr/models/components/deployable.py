"""Export that describes itself: sizes before, metadata within, one opset for both runtimes."""

import json
import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import torch
from anomalib.deploy import CompressionType, ExportType
from lightning import __version__ as lightning_version

from anomalib_cxr import __version__
from anomalib_cxr.anatomy.assessable import LIMITS_KEY
from anomalib_cxr.deploy.metadata import EXACT_RESIZE, FORMAT, KEY, OUTPUTS, UNSEALED, describe_weights, seal
from anomalib_cxr.files import folder_below
from anomalib_cxr.folders import without_folders
from anomalib_cxr.models.components.checkpoints import SelfDescribingMixin
from anomalib_cxr.models.components.exact_resize import AntialiasedResize
from anomalib_cxr.run_folder import WEIGHTS

logger = logging.getLogger(__name__)

#: Torch's exporter writes no earlier one; asked for less it falls back to this, with a printed assertion.
OPSET = 18

#: Images that quantisation is calibrated on, as many as NNCF takes by default.
_CALIBRATION_IMAGES = 300


@contextmanager
def _on_cpu(module: Any) -> Iterator[None]:
    """Move a module to the CPU, and back afterwards."""
    device = module.device
    module.to("cpu")
    try:
        yield
    finally:
        module.to(device)


class DeployableMixin(SelfDescribingMixin):
    """Mixin for an ``AnomalibModule``: its ONNX and OpenVINO files carry the metadata that our inferencer asks for."""

    def to_torch(self, export_root: Path | str, model_file_name: str = "model") -> Path:
        """Export as Anomalib does, and say what kind of file that is."""
        logger.warning(
            "A torch export is a pickle: whoever loads it runs the code in it. Pass on ONNX or OpenVINO instead; our "
            "inferencer takes nothing else."
        )
        return super().to_torch(export_root, model_file_name)

    def to_onnx(  # type: ignore[override]  # as in Anomalib
        self,
        export_root: Path | str,
        model_file_name: str = "model",
        input_size: tuple[int, int] | None = None,
        max_gib: float | None = None,
        **kwargs: Any,
    ) -> Path:
        """Export to ONNX, from the pre-processor to the decision, with metadata.

        Args:
            export_root: Output folder.
            model_file_name: Name of the file without its suffix. The weights go to ``<name>.onnx.data`` beside it.
            input_size: Height and width of the images that will come; None takes any.
            max_gib: Refuse to write a larger file; None sets no limit. On the command line:
                ``--onnx_kwargs '{"max_gib": 2}'``.
            **kwargs: For ``torch.onnx.export``, whose ``verbose`` is off here unless it is given.

        Returns:
            The ``.onnx`` file.

        Raises:
            ValueError: If the opset is below :data:`OPSET`, the model was never validated, or the file would be larger
                than ``max_gib``.
        """
        opset = kwargs.setdefault("opset_version", OPSET)
        if opset is None or opset < OPSET:
            msg = f"opset_version must be at least {OPSET}, not {opset}: torch's exporter writes no earlier one."
            raise ValueError(msg)
        kwargs.setdefault("verbose", False)
        metadata = self.export_metadata()
        if metadata["pre_processing"] != EXACT_RESIZE:
            logger.warning(
                "The pre-processing of %s is %s: our inferencer can only resize, and will refuse the file.",
                type(self).__name__,
                metadata["pre_processing"],
            )
        file_bytes, run_bytes = self.expected_export_bytes()
        logger.info(
            "The exported file will take about %s, running it about %s of memory, exporting it about %s.",
            _size(file_bytes),
            _size(run_bytes),
            _size(4 * run_bytes),
        )
        if max_gib is not None and file_bytes > max_gib * 2**30:
            msg = (
                f"The exported file would take {_size(file_bytes)}, above max_gib={max_gib}: raise the limit, or train "
                "with a smaller bank."
            )
            raise ValueError(msg)
        # What a former export left: torch writes no .data for a small model, and would leave the old one beside it.
        folder = folder_below(export_root, WEIGHTS, ExportType.ONNX.value)
        for name in (f"{model_file_name}.onnx", f"{model_file_name}.onnx.data"):
            (folder / name).unlink(missing_ok=True)
        with _on_cpu(self):  # limits of a device's kernels would become limits of the graph
            path = Path(super().to_onnx(export_root, model_file_name, input_size, **kwargs))
        _describe_onnx(path, metadata)
        return path

    def to_openvino(self, export_root: Path | str, *args: Any, **kwargs: Any) -> Path:
        """Export to OpenVINO, from the pre-processor to the decision, with metadata.

        Args:
            export_root: Output folder.
            *args: As in Anomalib.
            **kwargs: As in Anomalib; ``onnx_kwargs`` takes ``max_gib``, see :meth:`to_onnx`.

        Returns:
            The ``.xml`` file; the weights are in the ``.bin`` beside it.
        """
        compression = kwargs.get("compression_type", args[2] if len(args) > 2 else None)
        folder = folder_below(export_root, WEIGHTS, ExportType.OPENVINO.value)
        for suffix in (".xml", ".bin"):
            (folder / f"{args[0] if args else kwargs.get('model_file_name', 'model')}{suffix}").unlink(missing_ok=True)
        path = Path(super().to_openvino(export_root, *args, **kwargs))
        name = CompressionType(compression).value if compression else None
        _describe_openvino(path, self.export_metadata() | {"compression": name})
        return path

    def _post_training_quantization_ov(  # type: ignore[override]  # a static method there
        self, model: Any, datamodule: Any = None
    ) -> Any:
        """Quantise the encoder, calibrated on training images as the model sees them.

        Anomalib's own hands images of any size to the calibration and quantises everything. Here all that comes after
        the convolutions stays as it is: eight bits cannot tell two neighbours in a bank apart (on ZhangLab that cost
        AnatPaste 6 points of AUROC).
        """
        import nncf

        if datamodule is None:
            msg = "INT8_PTQ needs images to calibrate with: pass a datamodule (--data)."
            raise ValueError(msg)
        datamodule.setup("fit")
        dataset = self.without_augmentation(datamodule.train_data)
        count = min(len(dataset), _CALIBRATION_IMAGES)
        images = nncf.Dataset(range(count), lambda i: dataset[i].image[None].numpy())
        spared = nncf.IgnoredScope(
            names=_after_convolutions(model), types=["MatMul", "Multiply", "Subtract", "Divide"], validate=False
        )
        return nncf.quantize(model, images, subset_size=count, ignored_scope=spared)

    def without_augmentation(self, dataset: Any) -> Any:
        """View of a data set with the model's own resizing and nothing else."""
        raise NotImplementedError

    def expected_export_bytes(self) -> tuple[int, int]:
        """Size of the exported weights and banks, on disk and in memory.

        Returns:
            Bytes of the file, and bytes of the tensors when it runs: half precision is widened then.
        """
        tensors = [t for t in self.model.state_dict().values() if t.is_floating_point()]
        on_disk = sum(t.numel() * t.element_size() for t in tensors)
        return on_disk, sum(t.numel() * max(4, t.element_size()) for t in tensors)

    def export_metadata(self) -> dict[str, Any]:
        """What the exported file says of itself; see :func:`anomalib_cxr.deploy.read_metadata`.

        Raises:
            ValueError: If there is no post-processor that normalises and decides, or one of its ranges and thresholds
                is not known.
        """
        post: Any = self.post_processor
        if not post or not post.enable_normalization or not post.enable_thresholding:
            msg = f"{type(self).__name__} cannot be exported without a post-processor that normalises and decides."
            raise ValueError(msg)
        ranges = {name: float(getattr(post, name)) for name in ("image_min", "image_max", "pixel_min", "pixel_max")}
        thresholds = {"image": float(post.image_threshold), "pixel": float(post.pixel_threshold)}
        unknown = [
            *(name for name, value in ranges.items() if not math.isfinite(value)),
            *(f"{name} threshold" for name, value in thresholds.items() if not math.isfinite(value)),
        ]
        if unknown:
            msg = (
                f"{type(self).__name__} cannot be exported, because it was never validated and so has no "
                f"{', '.join(unknown)}: validate it on a datamodule with a validation split first."
            )
            raise ValueError(msg)
        size = self.input_size
        return {
            "format": FORMAT,
            "package_version": __version__,
            "versions": {"torch": str(torch.__version__), "lightning": lightning_version},
            "model": type(self).__name__,
            "config": without_folders(_plain(dict(self.hparams))),
            "input_size": [int(size[0]), int(size[1])] if size else [],
            "pre_processing": self._pre_processing(),
            "outputs": list(OUTPUTS),
            "normalisation": ranges,
            "thresholds": thresholds,
            "decision": {
                "image": float(post.normalized_image_threshold),
                "pixel": float(post.normalized_pixel_threshold),
            },
            "banks": {
                name: {"shape": list(buffer.shape), "dtype": str(buffer.dtype).removeprefix("torch.")}
                for name, buffer in self.model.named_buffers()
                if name.endswith("references")
            },
            "split_sha256": self.split_sha256,
            "compression": None,
            LIMITS_KEY: None if self.film_limits is None else self.film_limits.record(),
        }

    def _pre_processing(self) -> str:
        """Our exact resize, or the transform in words."""
        pre: Any = self.pre_processor
        exact = isinstance(getattr(pre, "export_transform", None), AntialiasedResize)
        return EXACT_RESIZE if exact else " ".join(str(getattr(pre, "transform", None)).split())


def _describe_onnx(path: Path, metadata: dict[str, Any]) -> None:
    """Add the metadata to an ONNX file and log its size."""
    import onnx

    weights = path.with_name(f"{path.name}.data")
    model = onnx.load(path, load_external_data=False)
    if not weights.is_file():  # torch keeps small models in one file; ours have one layout
        # Axes and shapes stay inside, as torch has it: a runtime must know them before it reads weights.
        onnx.save(model, path, save_as_external_data=True, location=weights.name, size_threshold=256)
        model = onnx.load(path, load_external_data=False)
    onnx.helper.set_model_props(model, {KEY: _text(metadata, weights)})
    onnx.save(model, path)
    seal(path)
    _log_size(ExportType.ONNX, path, weights)


def _describe_openvino(path: Path, metadata: dict[str, Any]) -> None:
    """Add the metadata to an OpenVINO file and log its size."""
    weights = path.with_suffix(".bin")
    tree = ElementTree.parse(path)
    info = tree.getroot().find("rt_info")
    if info is None:
        info = ElementTree.SubElement(tree.getroot(), "rt_info")
    framework = info.find("framework")
    if framework is not None:
        for copied in framework.findall(KEY):  # the ONNX file's, which speaks of other weights
            framework.remove(copied)
    ElementTree.SubElement(info, KEY, value=_text(metadata, weights))
    tree.write(path, encoding="utf-8", xml_declaration=True)
    seal(path)
    _log_size(ExportType.OPENVINO, path, weights)


def _text(metadata: dict[str, Any], weights: Path) -> str:
    """The metadata as it stands in a file that is still to be sealed."""
    return json.dumps(metadata | {"weights": describe_weights(weights), "file_sha256": UNSEALED})


def _after_convolutions(model: Any) -> list[str]:
    """Names of the operations of an OpenVINO model that no convolution waits for."""
    operations = model.get_ordered_ops()
    waiting = [op for op in operations if op.get_type_name() in {"Convolution", "GroupConvolution"}]
    before = {op.get_friendly_name() for op in waiting}
    while waiting:
        for value in waiting.pop().input_values():
            source = value.get_node()
            if source.get_friendly_name() not in before:
                before.add(source.get_friendly_name())
                waiting.append(source)
    kept = {"Constant", "Parameter", "Result"}
    names = {op.get_friendly_name() for op in operations if op.get_type_name() not in kept}
    return sorted(names - before)


def _log_size(kind: ExportType, path: Path, weights: Path) -> None:
    total = path.stat().st_size + weights.stat().st_size
    logger.info("%s: %s and %s, %s together; they belong together.", kind.value, path, weights.name, _size(total))


def _size(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def _plain(value: Any) -> Any:
    """Make hyper-parameters fit for JSON."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if isinstance(value, str | int | float | bool) or value is None else str(value)
