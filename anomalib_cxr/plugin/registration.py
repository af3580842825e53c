"""Registration with Anomalib: the only place that touches its registries.

Anomalib 2.7 has no entry points, so the wheel installs a start-up hook (``_startup/``) that calls :func:`on_import`
when one of Anomalib's registries has just been imported. From then on the stock ``anomalib`` command,
``get_model``, ``get_datamodule`` and ``anomalib benchmark`` know our classes. :func:`register` does the same by hand.
"""

import importlib
import os
import sys
from types import ModuleType

from anomalib_cxr.plugin.wrapping import Wrapping

#: Set to 0, this environment variable keeps everything here from happening.
SWITCH = "ANOMALIB_CXR_PLUGIN"

#: Where Anomalib looks bare class names up, and the package of ours whose public classes go there.
_REGISTRIES = {"anomalib.data": "anomalib_cxr.data", "anomalib.models": "anomalib_cxr.models"}

#: Where Anomalib keeps its subcommands.
_PIPELINES = "anomalib.cli.pipelines"

_imported: set[str] = set()


def register() -> None:
    """Make Anomalib know this package's models, datamodules, readers and subcommands.

    Does nothing the second time, and nothing when the environment variable ``ANOMALIB_CXR_PLUGIN`` is ``0``.

    Raises:
        RuntimeError: If Anomalib has a class of the same name as one of ours.
    """
    if os.environ.get(SWITCH, "1") == "0":
        return
    for registry, ours in _REGISTRIES.items():
        _register(importlib.import_module(registry), importlib.import_module(ours))
    importlib.import_module(_PIPELINES)
    _register_subcommands()


def on_import(module_name: str) -> None:
    """Register what a module that has just been imported completes; called by the start-up hook.

    Importing ``anomalib_cxr.data`` imports ``anomalib.data`` half-way through. Our classes do not exist yet then, so
    whichever of the two is done last registers.

    Args:
        module_name: A registry of Anomalib, the package of ours that goes there, or a package of Anomalib's that
            reads files, runs models or lists subcommands.
    """
    if module_name == _PIPELINES:
        _register_subcommands()
        return
    if module_name not in {*_REGISTRIES, *_REGISTRIES.values()}:
        _wrap()
        return
    _imported.add(module_name)
    for registry, ours in _REGISTRIES.items():
        if module_name == registry and ours not in sys.modules:
            importlib.import_module(ours)  # the hook calls again, with this name
        elif module_name in {registry, ours} and {registry, ours} <= _imported:
            _register(sys.modules[registry], sys.modules[ours])


def unregister() -> None:
    """Take back all that :func:`register` did."""
    for wrapping in _wrappings():
        wrapping.take_back()
    for registry_name, our_name in _REGISTRIES.items():
        registry, ours = sys.modules.get(registry_name), sys.modules.get(our_name)
        if registry is None or ours is None:
            continue
        for name, cls in _public_classes(ours).items():
            if getattr(registry, name, None) is cls:
                delattr(registry, name)
        getattr(registry, "ALLOWED_MODULES", set()).discard(our_name)
    if _PIPELINES in sys.modules:
        from anomalib_cxr.pipelines import SUBCOMMANDS

        for name in SUBCOMMANDS:
            (sys.modules[_PIPELINES].PIPELINE_REGISTRY or {}).pop(name, None)


def _register(registry: ModuleType, ours: ModuleType) -> None:
    for name, cls in _public_classes(ours).items():
        if getattr(registry, name, cls) is not cls:
            msg = f"Anomalib already has a {name}: use ours by its full path, {ours.__name__}.{name}."
            raise RuntimeError(msg)
        setattr(registry, name, cls)
    if registry.__name__ == "anomalib.models":
        registry.ALLOWED_MODULES.add(ours.__name__)
    _wrap()


def _register_subcommands() -> None:
    from anomalib_cxr.pipelines import SUBCOMMANDS

    registry = sys.modules[_PIPELINES].PIPELINE_REGISTRY
    if registry is not None:  # None where Anomalib was installed without its pipelines
        registry.update(SUBCOMMANDS)


def _wrap() -> None:
    """Wrap what is loaded of Anomalib by now; ``anomalib.models`` brings most of the rest."""
    for wrapping in _wrappings():
        wrapping.put()


def _wrappings() -> tuple[Wrapping, ...]:
    from anomalib_cxr.plugin.checkpoint_io import CHECKPOINT_IO
    from anomalib_cxr.plugin.command_line import COMMAND_LINE
    from anomalib_cxr.plugin.ending import ENDING
    from anomalib_cxr.plugin.log_lines import LOG_LINES
    from anomalib_cxr.plugin.mistakes import MISTAKES
    from anomalib_cxr.plugin.predicting import PREDICTING
    from anomalib_cxr.plugin.reading import READING
    from anomalib_cxr.plugin.run_folders import RUN_FOLDERS
    from anomalib_cxr.plugin.runs import RUNS

    return READING, RUNS, RUN_FOLDERS, PREDICTING, CHECKPOINT_IO, COMMAND_LINE, LOG_LINES, ENDING, MISTAKES


def _public_classes(module: ModuleType) -> dict[str, type]:
    public = {name: getattr(module, name) for name in module.__all__}
    return {name: value for name, value in public.items() if isinstance(value, type)}
