"""The two runtimes behind one call: images in, named arrays out."""

from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from anomalib_cxr.checks import check_choice
from anomalib_cxr.deploy.metadata import ExportedModelError

Runtime = Literal["onnxruntime", "openvino"]
Precision = Literal["f32", "default"]
Arrays = dict[str, npt.NDArray[Any]]


class Session(Protocol):
    """A model that is ready to run.

    Attributes:
        outputs: Names of the outputs.
        size: Height and width that the graph is fixed to, each None if it takes any.
    """

    outputs: list[str]
    size: tuple[int | None, int | None]

    def __call__(self, images: npt.NDArray[np.float32]) -> Arrays:
        """Run (B, 3, H, W) images in [0, 1]."""
        ...


class OnnxRuntimeSession:
    """ONNX Runtime on the CPU; always in full precision.

    Args:
        path: ``.onnx`` file.
        threads: Cores to use; None lets the runtime choose.
    """

    def __init__(self, path: Path, threads: int | None = None) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        if threads:
            options.intra_op_num_threads = threads
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        (image,) = self._session.get_inputs()
        self._input = image.name
        self.outputs = [output.name for output in self._session.get_outputs()]
        self.size = _fixed(image.shape)

    def __call__(self, images: npt.NDArray[np.float32]) -> Arrays:
        """Run (B, 3, H, W) images in [0, 1]."""
        return dict(zip(self.outputs, self._session.run(None, {self._input: images}), strict=True))


class OpenVINOSession:
    """OpenVINO on the CPU.

    Args:
        path: ``.xml`` or ``.onnx`` file.
        threads: Cores to use; None lets the runtime choose.
        precision: ``"f32"``, or ``"default"``: what the CPU does fastest, which may be bfloat16.
        size: Height and width of the images that will come: a graph that takes any is fixed to it, which is faster.
        batch_size: Images that will come at once, if it is 1 (fixed as well).
        weights: File of the weights of an ``.xml``; None takes the ``.bin`` of its name.

    Raises:
        ValueError: If the precision is unknown.
    """

    def __init__(
        self,
        path: Path,
        threads: int | None = None,
        precision: Precision = "f32",
        size: tuple[int, int] | None = None,
        batch_size: int = 1,
        weights: Path | None = None,
    ) -> None:
        check_choice("precision", precision, Precision)
        import openvino

        core = openvino.Core()
        # An .onnx names its weights itself.
        model = core.read_model(str(path), str(weights) if weights and path.suffix.lower() == ".xml" else "")
        shape = model.input(0).partial_shape
        self.size = _fixed([None if axis.is_dynamic else axis.get_length() for axis in shape])
        if size is not None and None in self.size:
            # Ranges of pixels become constants, which matters in bfloat16: it cannot count beyond 256.
            model.reshape(openvino.PartialShape([1 if batch_size == 1 else -1, 3, *size]))
        config: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32"} if precision == "f32" else {}
        if threads:
            config["INFERENCE_NUM_THREADS"] = threads
        self._model = core.compile_model(model, "CPU", config)
        # An output may have several names, in no order.
        self._names = [sorted(output.get_names()) for output in self._model.outputs]
        self.outputs = [name for names in self._names for name in names]

    def __call__(self, images: npt.NDArray[np.float32]) -> Arrays:
        """Run (B, 3, H, W) images in [0, 1]."""
        # Copies, because the runtime reuses its memory at the next call.
        values = [np.array(value) for value in self._model(images).values()]
        return {name: value for names, value in zip(self._names, values, strict=True) for name in names}


def open_session(
    path: Path,
    runtime: Runtime | None,
    threads: int | None,
    precision: Precision,
    size: tuple[int, int],
    batch_size: int,
    weights: Path,
) -> Session:
    """Open a model with the runtime of its format, or the one named.

    Args:
        path: ``.onnx`` or ``.xml``.
        runtime: None takes ONNX Runtime for ``.onnx`` and OpenVINO for ``.xml``; OpenVINO takes both.
        threads: Cores to use.
        precision: See :class:`OpenVINOSession`.
        size: Height and width of the images that will come.
        batch_size: Images that will come at once.
        weights: File of the weights, the one that was checked.

    Raises:
        ExportedModelError: If the runtime is not installed, does not take the format, or refuses the file.
        ValueError: If runtime or precision is unknown.
    """
    check_choice("runtime", runtime, Runtime | None)
    check_choice("precision", precision, Precision)
    runtime = runtime or ("onnxruntime" if path.suffix.lower() == ".onnx" else "openvino")
    if runtime == "onnxruntime" and path.suffix.lower() != ".onnx":
        msg = f"ONNX Runtime takes .onnx files only, not {path}: leave the runtime out, or name openvino."
        raise ExportedModelError(msg)
    if runtime == "onnxruntime" and precision != "f32":
        msg = "ONNX Runtime computes in f32 only: leave the precision out, or take OpenVINO."
        raise ExportedModelError(msg)
    try:
        if runtime == "onnxruntime":
            return OnnxRuntimeSession(path, threads)
        return OpenVINOSession(path, threads, precision, size, batch_size, weights)
    except ImportError as error:
        msg = f"{path} needs {runtime}, which is not installed: pip install {runtime}."
        raise ExportedModelError(msg) from error
    except Exception as error:
        # The runtimes raise classes of their own for whatever they dislike.
        reason = " ".join(str(error).split())[:300]
        msg = f"{runtime} refuses {path}: {reason}."
        raise ExportedModelError(msg) from error


def _fixed(shape: list[Any]) -> tuple[int | None, int | None]:
    height, width = (side if isinstance(side, int) else None for side in shape[2:4])
    return height, width
