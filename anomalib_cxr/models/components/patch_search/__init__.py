"""Exact search for the nearest normal patch at about the same place, and the bank that it searches."""

from anomalib_cxr.models.components.patch_search.local_search import Distance, LocalSearch, top_q_mean
from anomalib_cxr.models.components.patch_search.reference_bank import (
    BankDtype,
    ReferenceBank,
    Selection,
    expected_bytes,
)

__all__ = ["BankDtype", "Distance", "LocalSearch", "ReferenceBank", "Selection", "expected_bytes", "top_q_mean"]
