"""AutoEncoder's scores by hand, and every combination that makes no model."""

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from anomalib_cxr.models import AutoEncoder
from anomalib_cxr.models.auto_encoder.torch_model import AutoEncoderModel

SMALL: dict[str, Any] = {"image_size": 32, "width": 2, "hidden_size": 8, "latent_size": 3}


def films(count: int, seed: int, side: int = 32) -> torch.Tensor:
    coarse = torch.rand(count, 1, 5, 5, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(coarse, side, mode="bilinear").expand(-1, 3, -1, -1)


@torch.no_grad()
def test_the_norm_of_the_code_by_numpy_and_the_errors_map_beside_it() -> None:
    torch.manual_seed(0)
    model = AutoEncoderModel(**SMALL, variant="vae", score="code_norm").eval()
    images = films(4, 0)
    features = model.network.encoder(2 * images[:, :1] - 1)
    mean = model.network.bottleneck.squeeze(features).numpy()[:, :3]
    found = model(images)
    np.testing.assert_allclose(found.pred_score.numpy(), np.sqrt((mean.astype(float) ** 2).sum(axis=1)), rtol=1e-5)
    made = model.network.decoder(model.network.bottleneck.expand(torch.from_numpy(mean)))
    torch.testing.assert_close(found.anomaly_map, (2 * images[:, :1] - 1 - made).square())
    again = model(images)
    assert torch.equal(found.pred_score, again.pred_score)
    assert torch.equal(found.anomaly_map, again.anomaly_map)


@pytest.mark.parametrize("variant", ["dae", "context"])
def test_what_was_spoilt_is_to_be_made_whole(variant: Any) -> None:
    torch.manual_seed(0)
    model = AutoEncoderModel(**SMALL, variant=variant)
    images, generator = films(4, 0), torch.Generator().manual_seed(5)
    clean = 2 * images[:, :1] - 1
    spoilt = model.corruption(clean, torch.Generator().manual_seed(5))
    assert not torch.equal(spoilt, clean)
    loss = model.losses(images, generator)["reconstruction"]
    torch.testing.assert_close(loss, (clean - model.network(spoilt).made).square().mean())
    model.eval()
    torch.testing.assert_close(model(images).anomaly_map, (clean - model.network(clean).made).square())


def test_what_makes_no_model_says_so() -> None:
    for arguments, message in (
        ({"variant": "memory", "score": "code_norm"}, "variant=memory has none: take variant=vae"),
        ({"network": "unet"}, "network=unet copies its input, and variant=ae has no noise"),
        ({"variant": "dae", "latent_size": 4}, "latent_size is of a code, and network=unet has none: leave it out"),
        ({"image_size": 100}, "image_size must be a multiple of 16, 32 or more, not 100: take 96"),
        ({"latent_size": 0}, "latent_size must be 1 or more, not 0"),
        ({"width": 0}, "width must be 1 or more, not 0"),
        ({"variant": "vaee"}, "did you mean 'vae'"),
        ({"error": "square"}, "did you mean 'squared'"),
        ({"score": "norm"}, "score must be one of 'error', 'code_norm', not 'norm'"),
        ({"network": "resnet"}, "network must be one of 'conv', 'unet', 'pix2pixhd', not 'resnet'"),
        ({"relative_map": "yes"}, "relative_map must be one of"),
        ({"preset": "best", "network": "pix2pixhd"}, "preset must be one of 'laptop', 'paper', not 'best'"),
        ({"kl_weight": 0.1}, "kl_weight belongs to variant=vae, and this is variant=ae"),
        ({"variant": "vae", "kl_weight": -1}, "kl_weight must be 0 or more, not -1"),
        ({"noise": 0.1, "variant": "context"}, "noise belongs to variant=dae, and this is variant=context"),
        ({"variant": "memory", "memory_slots": 0}, "A memory has 1 slot or more"),
        ({"top_q": 0}, "top_q must lie in"),
        ({"learning_rate": -1}, "learning_rate must be positive"),
        ({"error": "perceptual", "backbone": "resnet18x"}, "timm knows no model 'resnet18x'"),
    ):
        with pytest.raises(ValueError, match=message):
            AutoEncoder(**arguments)


def test_networks_bring_their_own_optimisers() -> None:
    def group(**arguments: Any) -> tuple[dict[str, Any], Any]:
        model = AutoEncoder(preset="paper", width=2, **arguments)
        optimizer: Any = model.configure_optimizers()["optimizer"]
        return optimizer.param_groups[0], model.trainer_arguments.get("gradient_clip_val")

    conv, _ = group(hidden_size=8)
    assert (conv["initial_lr"], conv["weight_decay"], conv["betas"], conv["amsgrad"]) == (1e-3, 0, (0.9, 0.999), False)
    denoiser, clip = group(variant="dae")
    assert (denoiser["initial_lr"], denoiser["weight_decay"], denoiser["amsgrad"], clip) == (1e-4, 1e-5, True, 0.5)
    generator, clip = group(network="pix2pixhd", hidden_size=8)
    assert (generator["initial_lr"], generator["betas"], clip) == (2e-4, (0.5, 0.999), None)
