"""Every Anomalib model's run on our data gets what runs of ours have."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

from lightning.pytorch import Callback

from anomalib_cxr.plugin.wrapping import Wrapping


def _wrap_callbacks(stock: Callable[..., Any]) -> Callable[..., Any]:
    """Put what every run has before the callbacks of a model."""

    @functools.wraps(stock)
    def configure_callbacks(self: Any) -> Callback | Sequence[Callback]:
        # Imported here: the callbacks need Anomalib's models, which are half-way imported when this is put in place.
        from anomalib_cxr.callbacks.attach import with_run_callbacks

        return with_run_callbacks(self, stock(self))

    return configure_callbacks


#: Where Anomalib asks a model for its callbacks.
RUNS = Wrapping(
    [
        (
            "anomalib.models.components.base.anomalib_module",
            "AnomalibModule.configure_callbacks",
            _wrap_callbacks,
        )
    ]
)
