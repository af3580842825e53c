"""AnatPaste segments the lungs of the pictures that the datamodule reads, at the depth that its table lists."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from anomalib_cxr.models.anat_paste import lightning_model


@pytest.mark.parametrize(("bits", "expected"), [([12.0, np.nan, 10.0], [12, None, 10]), (None, [None] * 3)])
def test_region_masks_get_the_depths_of_the_table(monkeypatch, bits, expected):
    samples = pd.DataFrame({"image_path": ["a.png", "b.png", "c.png"]})
    if bits is not None:
        samples["bits"] = bits
    seen = {}

    def compute(paths, **arguments):
        seen.update(paths=paths, **arguments)
        return SimpleNamespace(summary=lambda: "")

    monkeypatch.setattr(lightning_model.RegionMasks, "compute", compute)
    model = SimpleNamespace(
        datamodule=SimpleNamespace(train_data=SimpleNamespace(samples=samples, augmentations=None)),
        pre_processor=None,
        input_size=(64, 64),
        _region=lambda _: "region",
        num_workers=0,
    )
    lightning_model.AnatPaste._find_region(model)
    assert seen["paths"] == ["a.png", "b.png", "c.png"]
    assert seen["bits"] == expected
