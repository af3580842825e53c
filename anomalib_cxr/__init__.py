"""Chest X-ray anomaly detection for Anomalib.

Importing this package is cheap: models, datamodules and the plugin load on use. The detectors and datamodules, and
``read_radiograph``, ``segment_lungs`` and ``ExportedDetector``, can be had from here, each loading its own room only:

    >>> import anomalib_cxr
    >>> anomalib_cxr.read_radiograph.__module__
    'anomalib_cxr.imaging.radiograph'
"""

__version__ = "0.1.0"

#: What is offered here, by the room it comes from; None stands for all that the room's ``__all__`` names.
_OFFERED: dict[str, tuple[str, ...] | None] = {
    "models": None,
    "data": None,
    "imaging": ("read_radiograph",),
    "anatomy": ("segment_lungs",),
    "deploy": ("ExportedDetector",),
}
_rooms: dict[str, str] = {}

TYPE_CHECKING = False  # type checkers take it for True; `typing` would make the import of this package ten times longer
if TYPE_CHECKING:  # what is offered, once more for them; a test compares
    from anomalib_cxr.anatomy import segment_lungs as segment_lungs
    from anomalib_cxr.data import *  # noqa: F403
    from anomalib_cxr.deploy import ExportedDetector as ExportedDetector
    from anomalib_cxr.imaging import read_radiograph as read_radiograph
    from anomalib_cxr.models import *  # noqa: F403
else:

    def _room_of_each() -> dict[str, str]:
        """Room of each name on offer, by the rooms' source, so that none of them is imported for it."""
        if not _rooms:
            import ast
            import pkgutil

            for room, names in _OFFERED.items():
                if names is None:
                    tree = ast.parse(pkgutil.get_data(__name__, f"{room}/__init__.py"))
                    names = next(
                        ast.literal_eval(node.value)
                        for node in tree.body
                        if isinstance(node, ast.Assign) and ast.unparse(node.targets) == "__all__"
                    )
                _rooms.update(dict.fromkeys(names, room))
        return _rooms

    def __getattr__(name: str) -> object:
        """Load a name at its first use."""
        if name.startswith("__") or name not in _room_of_each():
            msg = f"module {__name__!r} has no attribute {name!r}"
            raise AttributeError(msg)
        from importlib import import_module

        globals()[name] = value = getattr(import_module(f"{__name__}.{_rooms[name]}"), name)
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *_room_of_each()})
