"""A node on loopback with a model built by hand, as its file has it."""

from pathlib import Path

import yaml
from archive import free_port
from exported_by_hand import write_onnx

from anomalib_cxr.node.configuration import Configuration, load


def drawn_settings(folder: Path) -> dict:
    """A configuration: a free port, no page, one destination that nobody listens at."""
    write_onnx(folder / "model")
    return {
        "folder": "node",
        "receive": {"ae_title": "NODE", "calling": ["MODALITY"], "port": 0},
        "models": [{"name": "mean", "path": "model/model.onnx", "threads": 1}],
        "destinations": [{"name": "archive", "ae_title": "ARCHIVE", "host": "127.0.0.1", "port": free_port()}],
        "page": None,
        "retry": {"first_s": 0.05, "longest_s": 0.2, "tries": 50},
        "reserve_gib": 0,
    }


def configuration(folder: Path, settings: dict) -> Configuration:
    """The configuration, by way of its file."""
    (folder / "node.yaml").write_text(yaml.safe_dump(settings))
    return load(folder / "node.yaml")
