"""Every private or unstable name of Anomalib, Lightning and timm that this package leans on.

A new version of one of them fails here first, by name. A deep import that is not listed fails too, so the list stays
complete. What each is for is said beside it; `.github/CONTRIBUTING.md` says which deserve a pull request upstream.
"""

import ast
import importlib
import inspect
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from anomalib import LearningType
from anomalib.data import AnomalibDataset, Folder, ImageBatch, ImageItem, InferenceBatch
from anomalib.metrics import AUROC
from anomalib.models import AnomalibModule, get_model
from anomalib.post_processing import PostProcessor
from anomalib.pre_processing import PreProcessor
from torchvision.transforms.v2 import Resize

import anomalib_cxr
from anomalib_cxr.plugin import registration

#: ``module:name`` of what is imported, replaced, overridden or called.
NAMES = [
    # Registries: where bare class names and subcommands are looked up.
    "anomalib.models:ALLOWED_MODULES",
    "anomalib.models:get_model",
    "anomalib.data:get_datamodule",
    "anomalib.cli.pipelines:PIPELINE_REGISTRY",
    # Readers that are wrapped, in the modules that hold a name of their own for them.
    "anomalib.data.predict:get_image_filenames",
    "anomalib.data.predict:read_image",
    "anomalib.data.utils.path:validate_path",
    "anomalib.deploy.inferencers.torch_inferencer:read_image",
    "anomalib.deploy.inferencers.openvino_inferencer:read_image",
    "anomalib.visualization.image.item_visualizer:Image.open",
    "anomalib.visualization.image.visualizer:generate_output_filename",
    "anomalib.visualization.image.visualizer:ImageVisualizer.on_test_batch_end",
    "anomalib.visualization.image:visualizer",
    # Runs: where a model is asked for its callbacks, and what the command does before it builds one.
    "anomalib.models.components.base.anomalib_module:AnomalibModule.configure_callbacks",
    "anomalib.cli.cli:AnomalibCLI.__init__",
    "anomalib.cli.cli:AnomalibCLI.add_subcommands",
    "anomalib.cli.cli:AnomalibCLI.before_instantiate_classes",
    "anomalib.cli.cli:AnomalibCLI.instantiate_classes",
    "anomalib.cli.cli:AnomalibCLI._run_subcommand",
    "anomalib.cli.cli:configure_logger",
    "anomalib.cli.cli:main",
    # Folders of runs, and checkpoints.
    "anomalib.engine:engine",
    "anomalib.engine.engine:create_versioned_dir",
    "anomalib.engine.engine:resolve_versioned_path",
    "anomalib.engine.engine:Engine._setup_anomalib_callbacks",
    "anomalib.engine.plugins.checkpoint_io:AnomalibCheckpointIO.load_checkpoint",
    "anomalib.engine.plugins.checkpoint_io:AnomalibCheckpointIO.save_checkpoint",
    "lightning.pytorch.utilities.rank_zero:rank_zero_only",
    # Predictions of a folder.
    "anomalib.engine.engine:PredictDataset",
    "anomalib.engine.engine:Engine.predict",
    # Datamodules: our splits are final, so the methods that would change them are overridden.
    "anomalib.data:AnomalibDataModule._setup",
    "anomalib.data:AnomalibDataModule._create_test_split",
    "anomalib.data:AnomalibDataModule._create_val_split",
    "anomalib.data:AnomalibDataset.collate_fn",
    "anomalib.data:ImageBatch.item_class",
    "anomalib.data:ImageBatch.numpy_class",
    "anomalib.data:ImageItem.numpy_class",
    "anomalib.data.transforms.utils:extract_transforms_by_type",
    # Post-processing that keeps ranks.
    "anomalib.post_processing:PostProcessor._checkpoint_config_keys",
    "anomalib.post_processing:PostProcessor._normalize",
    "anomalib.pre_processing:PreProcessor.load_checkpoint_config",
    # Models, checkpoints and export.
    "anomalib.models:AnomalibModule.checkpoint_safe_globals",
    "anomalib.models:AnomalibModule._post_training_quantization_ov",
    "anomalib.models.components.base:DynamicBufferMixin",
    "anomalib.utils.serialization:anomalib_safe_globals",
    "anomalib.deploy:CompressionType",
    "anomalib.deploy:ExportType",
    "anomalib.metrics.evaluator:Evaluator",
    # Runs and subcommands.
    "anomalib.cli:AnomalibCLI",
    "anomalib.engine:Engine._setup_workspace",
    "anomalib.engine:Engine.best_model_path",
    "anomalib.loggers:configure_logger",
    "anomalib.pipelines.components.base:Pipeline._setup_runners",
    "anomalib.pipelines.components.base.runner:Runner",
    # Lightning: the chosen checkpoint is read by the strategy's reader and takes the place of Anomalib's.
    "lightning.pytorch.strategies:Strategy.checkpoint_io",
    "lightning.fabric.utilities.exceptions:MisconfigurationException",
    "lightning.pytorch.trainer.states:TrainerFn.FITTING",
    "lightning.pytorch.utilities.types:OptimizerLRSchedulerConfig",
    "lightning.pytorch.utilities.types:STEP_OUTPUT",
    # timm: pretrained weights that a checkpoint replaces are not fetched.
    "timm.models._builder:load_pretrained",
    # torch: batch normalisation by its base class.
    "torch.nn.modules.batchnorm:_BatchNorm",
    "torchmetrics.utilities.data:dim_zero_cat",
]

#: Parameters that our wrappers and overrides pass on or take, by name or by place.
PARAMETERS = {
    "anomalib.data.predict:get_image_filenames": ["path", "base_dir"],
    "anomalib.data.predict:read_image": ["path", "as_tensor"],
    "anomalib.data.utils.path:validate_path": ["path", "base_dir"],
    "anomalib.data:AnomalibDataModule._setup": ["self", "_stage"],
    "anomalib.post_processing:PostProcessor._normalize": ["preds", "norm_min", "norm_max", "threshold"],
    "anomalib.cli:AnomalibCLI": ["args", "run"],
    "anomalib.engine.engine:create_versioned_dir": ["root_dir"],
    "anomalib.engine.engine:resolve_versioned_path": ["path"],
    "anomalib.engine.engine:Engine.predict": ["self", "model"],
    "anomalib.engine.plugins.checkpoint_io:AnomalibCheckpointIO.load_checkpoint": [
        "self",
        "path",
        "map_location",
        "weights_only",
    ],
    "anomalib.engine.plugins.checkpoint_io:AnomalibCheckpointIO.save_checkpoint": [
        "self",
        "checkpoint",
        "path",
        "storage_options",
    ],
    "anomalib.utils.serialization:anomalib_safe_globals": ["extra"],
}

#: Packages whose deep modules may change without notice.
UNSTABLE = ("anomalib", "lightning", "timm", "torchmetrics")

#: Documented names that no `__all__` holds, or that lie deep by design.
PLAIN = {
    "anomalib:LearningType",
    "anomalib:TaskType",
    "torchmetrics:classification",
    "lightning:__version__",
    "lightning.pytorch.callbacks:ModelCheckpoint",
    "anomalib.data.utils:TestSplitMode",
    "anomalib.data.utils:ValSplitMode",
}


def find(listed: str) -> Any:
    module, _, path = listed.partition(":")
    found: Any = importlib.import_module(module)
    for name in path.split("."):
        found = inspect.getattr_static(found, name) if inspect.isclass(found) else getattr(found, name)
    return found


class ContractDetector(AnomalibModule):
    """The least that Anomalib takes for a model."""

    def __init__(self) -> None:
        super().__init__(pre_processor=PreProcessor(Resize((8, 8), antialias=True)), evaluator=False, visualizer=False)
        self.model = torch.nn.Identity()

    trainer_arguments: Any = None
    learning_type: Any = LearningType.ONE_CLASS


@pytest.mark.parametrize("listed", NAMES)
def test_the_name_is_there(listed: str):
    find(listed)


@pytest.mark.parametrize("listed", PARAMETERS)
def test_the_function_takes_what_it_took(listed: str):
    taken = list(inspect.signature(find(listed)).parameters)
    assert taken[: len(PARAMETERS[listed])] == PARAMETERS[listed]


def test_every_wrapped_reader_is_listed():
    wrapped = {f"{module}:{name}" for group in registration._wrappings() for module, name, _ in group.wrappers}
    listed = {name.removesuffix(".open") for name in NAMES}
    assert wrapped <= listed, wrapped - listed


def test_every_deep_import_of_the_package_is_listed():
    """Public is what a package of at most two parts (`anomalib.data`) has in its `__all__`; all else is listed."""
    listed = {name.partition(":")[0] + ":" + name.partition(":")[2].split(".")[0] for name in NAMES}
    unlisted = set()
    for path in Path(anomalib_cxr.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.ImportFrom) or (node.module or "").split(".")[0] not in UNSTABLE:
                continue
            public = getattr(importlib.import_module(str(node.module)), "__all__", ())
            for alias in node.names:
                is_public = alias.name in public and str(node.module).count(".") <= 1
                if not is_public and f"{node.module}:{alias.name}" not in listed | PLAIN:
                    unlisted.add(f"{node.module}:{alias.name} in {path.name}")
    assert not unlisted


def test_the_post_processor_keeps_its_state_under_these_names():
    processor = PostProcessor()
    buffers = {"_image_threshold", "_pixel_threshold", "image_min", "image_max", "pixel_min", "pixel_max"}
    assert buffers <= set(dict(processor.named_buffers()))
    metrics = {"_image_threshold_metric", "_image_min_max_metric", "_pixel_min_max_metric"}
    assert metrics <= set(dict(processor.named_children()))
    for name in ("normalized_image_threshold", "normalized_pixel_threshold", "image_threshold", "pixel_threshold"):
        assert hasattr(processor, name), name


def test_the_pre_processor_exports_a_transform_of_its_own():
    processor = PreProcessor(Resize((8, 8), antialias=True))
    assert processor.export_transform is not processor.transform
    assert not processor.export_transform.antialias


def test_a_checkpoint_says_these_things_of_the_components():
    checkpoint: dict[str, Any] = {}
    ContractDetector().on_save_checkpoint(checkpoint)
    components = {"anomalib_components_enabled", "anomalib_pre_processor_config", "anomalib_post_processor_config"}
    assert components <= set(checkpoint)


def test_models_are_found_among_the_direct_subclasses():
    assert ContractDetector in AnomalibModule.__subclasses__()
    assert isinstance(get_model("ContractDetector"), ContractDetector)


def test_a_dataset_and_a_datamodule_keep_their_table_as_samples(tmp_path: Path):
    data = Folder(name="own", root=tmp_path, normal_dir="normal")
    assert {"_samples", "train_batch_size", "eval_batch_size", "num_workers", "external_collate_fn"} <= set(vars(data))
    assert {"_samples", "augmentations"} <= set(vars(AnomalibDataset()))


def test_a_metric_counts_its_updates_under_this_name():
    """Ours ask it whether there is anything to compute."""
    metric = AUROC(fields=["pred_score", "gt_label"])
    assert metric._update_count == 0


def test_predictions_and_batches_have_these_fields():
    assert InferenceBatch._fields == ("pred_score", "pred_label", "anomaly_map", "pred_mask")
    fields = {"image", "gt_label", "gt_mask", "image_path", "mask_path", "anomaly_map", "pred_score", "pred_label"}
    for cls in (ImageItem, ImageBatch):
        assert fields <= set(cls.__dataclass_fields__)


def test_the_command_hands_out_engine_model_and_datamodule():
    source = inspect.getsource(find("anomalib.cli:AnomalibCLI"))
    for name in ("self.engine", "self.model", "self.datamodule"):
        assert f"{name} = " in source, name


def test_the_engine_keeps_checkpoints_where_we_look_for_them():
    source = inspect.getsource(find("anomalib.engine:Engine"))
    assert '"weights" / "lightning"' in source
    assert 'filename="model"' in source


def test_timm_fetches_weights_by_the_name_that_is_held_back(monkeypatch: pytest.MonkeyPatch):
    """`weights_come_later` replaces this name: if timm fetched by another, loading a checkpoint would go online."""
    fetched: list[bool] = []
    monkeypatch.setattr("timm.models._builder.load_pretrained", lambda *_, **__: fetched.append(True))
    timm.create_model("resnet10t", pretrained=True)
    assert fetched == [True]
