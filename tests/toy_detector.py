"""A detector as `anomalib_cxr/models/README.md` says how to add one: a linear autoencoder, and the error as its map."""

from typing import Any

import torch
from anomalib.data import ImageBatch, InferenceBatch
from anomalib.models import AnomalibModule
from torch import Tensor, nn

from anomalib_cxr.models.components.presets import resolve_preset
from anomalib_cxr.models.components.step_training import StepTrainingMixin

PRESETS: dict[str, dict[str, Any]] = {
    "laptop": {"image_size": 16, "code": 4, "max_steps": 4, "steps_per_epoch": 2},
    "paper": {"image_size": 32, "code": 16, "max_steps": 40, "steps_per_epoch": 10},
}


class ToyModel(nn.Module):
    """Codes each image, and scores it by what the code loses."""

    def __init__(self, pixels: int, code: int) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(pixels, code), nn.Linear(code, pixels)

    def errors(self, images: Tensor) -> Tensor:
        grey = images.mean(dim=1, keepdim=True)
        return (self.decoder(self.encoder(grey.flatten(1))).reshape(grey.shape) - grey).square()

    def forward(self, images: Tensor) -> InferenceBatch:
        errors = self.errors(images)
        return InferenceBatch(pred_score=errors.mean(dim=(1, 2, 3)), anomaly_map=errors)


class ToyDetector(StepTrainingMixin, AnomalibModule):
    """Learns to reconstruct normal images."""

    map_description = "squared error of the reconstruction"

    def __init__(
        self,
        preset: str = "laptop",
        image_size: int | None = None,
        code: int | None = None,
        max_steps: int | None = None,
        seed: int = 0,
    ) -> None:
        chosen = resolve_preset(PRESETS, preset, image_size=image_size, code=code, max_steps=max_steps)
        super().__init__(self.configure_pre_processor((chosen.image_size, chosen.image_size)))
        length = PRESETS[preset]["steps_per_epoch"]
        self.set_up_training(
            seed=seed, max_steps=chosen.max_steps, steps_per_epoch=None, default_steps_per_epoch=length
        )
        self.keep_resolved(**vars(chosen))
        torch.manual_seed(seed)
        self.model: ToyModel = ToyModel(chosen.image_size**2, chosen.code)

    def training_loss(self, batch: ImageBatch, generator: torch.Generator) -> Tensor:
        del generator
        return self.model.errors(batch.image).mean()
