"""What the mixins of this room are mixed into: for type checkers an Anomalib module, at run time nothing."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from anomalib.models import AnomalibModule

    MixedIntoModule = AnomalibModule
else:
    # Not AnomalibModule itself: Anomalib's `get_model` and `--model` would take each mixin for a model.
    MixedIntoModule = object
