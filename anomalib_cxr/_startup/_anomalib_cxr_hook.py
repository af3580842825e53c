"""Tell Anomalib about anomalib-cxr the moment it is imported.

Installed at the root of the environment beside ``anomalib_cxr.pth``, which imports it at every Python start. So it
imports nothing, does nothing until Anomalib's own modules are imported, and never raises. ``ANOMALIB_CXR_PLUGIN=0``
switches it off.
"""

import sys

# Registries of Anomalib and the packages whose classes go there (whichever of a pair is imported last registers), and
# packages that read files, run models or list subcommands.
_TARGETS = frozenset(
    {
        "anomalib.models",
        "anomalib.data",
        "anomalib_cxr.models",
        "anomalib_cxr.data",
        "anomalib.cli.cli",
        "anomalib.cli.pipelines",
        "anomalib.deploy",
        "anomalib.engine",
        "anomalib.visualization",
    }
)


class _RegisterAfterImport:
    """A meta path finder that lets the other finders find, and registers once the module has run."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name not in _TARGETS:
            return None
        for finder in sys.meta_path:
            find_spec = None if finder is _RegisterAfterImport else getattr(finder, "find_spec", None)
            spec = find_spec(name, path, target) if find_spec else None
            if spec is not None:
                break
        else:
            return None
        run_module = getattr(spec.loader, "exec_module", None)
        if run_module is None:
            return spec

        def exec_module(module):
            run_module(module)
            try:
                from anomalib_cxr.plugin import on_import

                on_import(name)
            except Exception as error:  # a broken plugin must not break Anomalib
                import warnings

                warnings.warn(
                    f"anomalib-cxr could not register with {name} ({type(error).__name__}: {error}); Anomalib works "
                    "without it, and ANOMALIB_CXR_PLUGIN=0 silences this.",
                    stacklevel=2,
                )

        spec.loader.exec_module = exec_module
        return spec


class _MetaPath(list):
    """Finders, of which ours stays the first.

    Import hooks such as typeguard's insert themselves at the front, and find modules without asking the others. Ours
    asks them, so behind it they have all that they had in front of it.
    """

    def insert(self, index, finder):
        super().insert(index, finder)
        if finder is not _RegisterAfterImport and _RegisterAfterImport in self:
            self.remove(_RegisterAfterImport)
            super().insert(0, _RegisterAfterImport)


def _install():
    import os

    if os.environ.get("ANOMALIB_CXR_PLUGIN", "1") != "0":
        sys.meta_path = _MetaPath([_RegisterAfterImport, *sys.meta_path])


try:
    _install()
except Exception:  # start-up of every Python program: silence is right here
    pass
