"""CutPaste variants: pasting against a plain per-image reference, draws against the paper's ranges."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from torchvision.transforms import functional

from anomalib_cxr.augmentations import (
    AnatPasteAugmentation,
    CutParameters,
    CutPaste3Way,
    CutPasteNormal,
    CutPasteScar,
    CutPasteUnion,
    Patches,
    apply_cut_paste,
    build_pasting,
    pasting,
)
from anomalib_cxr.augmentations.intensity import Intensity

UNLIKELY = 1e-3
VARIANTS = ["cutpaste_normal", "cutpaste_scar", "cutpaste_3way", "cutpaste_union"]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def sample(batch: int, height: int, width: int) -> torch.Tensor:
    return torch.rand(batch, 1, height, width, generator=seeded(1), dtype=torch.float64)


def shape_only(batch: int, height: int, width: int) -> torch.Tensor:
    return torch.zeros(1).expand(batch, 1, height, width)


def jittered(image: torch.Tensor, parameters: CutParameters, i: int) -> np.ndarray:
    patches = parameters.patches
    top, left, height, width = (int(x[i]) for x in patches[:4])
    patch = image[None, top : top + height, left : left + width]
    brightness, contrast, contrast_first = (x[i].item() for x in patches.intensity)
    steps = [(functional.adjust_brightness, brightness), (functional.adjust_contrast, contrast)]
    for adjust, factor in steps[::-1] if contrast_first else steps:
        patch = adjust(patch, factor)
    return patch[0].numpy()


@pytest.fixture(params=[False, True], ids=["windows", "whole_batch"])
def whole_batch(request, monkeypatch):
    """Blend image by image as on a CPU, or all at once as on a GPU."""
    if request.param:
        frame = lambda x, _: [pasting.Window(slice(0, len(x)), slice(0, x.shape[2]), slice(0, x.shape[3]))]  # noqa: E731
        monkeypatch.setattr(pasting, "windows", frame)


@pytest.mark.usefixtures("whole_batch")
def test_normal_pastes_the_jittered_rectangle():
    images = sample(10, 70, 90)
    parameters = CutPasteNormal(jitter=0.4).draw(images, seeded(2))
    pasted = apply_cut_paste(images, parameters)
    for i in range(10):
        patch = jittered(images[i, 0], parameters, i)
        top, left = int(parameters.top[i]), int(parameters.left[i])
        box = (slice(top, top + patch.shape[0]), slice(left, left + patch.shape[1]))
        image, mask = images[i, 0].numpy().copy(), np.zeros((70, 90))
        image[box], mask[box] = patch, 1
        np.testing.assert_allclose(pasted.image[i, 0].numpy(), image, atol=1e-12)
        np.testing.assert_array_equal(pasted.mask[i, 0].numpy(), mask)


@pytest.mark.usefixtures("whole_batch")
def test_scar_turns_the_patch():
    images = sample(12, 128, 100)
    parameters = CutPasteScar(jitter=0.4, rotation=(-180, 180), height=(20, 40)).draw(images, seeded(3))
    pasted = apply_cut_paste(images, parameters)
    for i in range(12):
        patch, angle = jittered(images[i, 0], parameters, i), math.radians(parameters.angle[i])
        height, width = patch.shape
        rows = math.ceil(height * abs(math.cos(angle)) + width * abs(math.sin(angle)))
        columns = math.ceil(width * abs(math.cos(angle)) + height * abs(math.sin(angle)))
        image, mask = images[i, 0].numpy().copy(), np.zeros((128, 100))
        for y in range(128):
            for x in range(100):
                # Counter-clockwise on the screen, whose rows count downwards: a complex number, y up, turned back.
                across, up = (
                    x + 0.5 - parameters.left[i].item() - columns / 2,
                    parameters.top[i].item() + rows / 2 - y - 0.5,
                )
                turned = complex(across, up) * complex(math.cos(angle), -math.sin(angle))
                row, column = math.floor(height / 2 - turned.imag), math.floor(width / 2 + turned.real)
                if 0 <= row < height and 0 <= column < width:
                    image[y, x], mask[y, x] = patch[row, column], 1
        # A pixel centre may fall on the patch's edge, where rounding decides.
        assert (pasted.mask[i, 0].numpy() != mask).sum() <= 1
        agree = pasted.mask[i, 0].numpy() == mask
        assert np.isclose(pasted.image[i, 0].numpy(), image, atol=1e-9)[agree].mean() > 0.999
        assert mask.sum() == pytest.approx(height * width, rel=0.2, abs=8)


def test_rotation_turns_as_pil_does():
    pattern = np.zeros((25, 11), dtype=np.uint8)
    pattern[:8] = 255  # bright on top
    image = np.zeros((64, 64), dtype=np.uint8)
    image[:25, :11] = pattern
    rotated = np.asarray(Image.fromarray(pattern).rotate(30, expand=True)) / 255
    one = lambda value: torch.tensor([value])  # noqa: E731
    intensity = Intensity(one(1.0).double(), one(1.0).double(), one(True))
    parameters = CutParameters(
        Patches(one(0), one(0), one(25), one(11), intensity), one(30.0).double(), one(30), one(30)
    )
    pasted = apply_cut_paste(torch.from_numpy(image / 255)[None, None], parameters)
    ours = pasted.image[0, 0, 30 : 30 + rotated.shape[0], 30 : 30 + rotated.shape[1]].numpy()
    assert np.abs(ours - rotated).mean() < 0.03
    assert np.abs(ours[:, ::-1] - rotated).mean() > 0.1


def pvalue(values: torch.Tensor, low: float, high: float) -> float:
    return stats.kstest(values.double().numpy(), "uniform", (low, high - low)).pvalue


def test_normal_draws_follow_the_paper():
    side = 2048
    p = CutPasteNormal().draw(shape_only(4000, side, side), seeded())
    height, width = p.patches.height, p.patches.width
    assert pvalue(height * width / side**2, 0.02, 0.15) > UNLIKELY
    assert pvalue((width / height).log(), math.log(0.3), math.log(1 / 0.3)) > UNLIKELY
    tall, wide = side - height, side - width
    places = [p.patches.top / tall, p.patches.left / wide, p.top / tall, p.left / wide]
    assert min(pvalue(place, 0, 1) for place in places) > UNLIKELY
    drawn = [*places, *p.patches.intensity, height * width, (width / height).log()]
    correlation = torch.corrcoef(torch.stack([x.double() for x in drawn]))
    assert (correlation - torch.eye(len(drawn))).abs().max() < 0.07
    assert pvalue(p.patches.intensity.brightness, 0.9, 1.1) > UNLIKELY
    assert pvalue(p.patches.intensity.contrast, 0.9, 1.1) > UNLIKELY
    assert p.angle.abs().max() == 0


def test_scar_draws_follow_the_paper():
    side = 4096
    p = CutPasteScar().draw(shape_only(4000, side, side), seeded())
    scale = side / 256
    assert pvalue(p.patches.width / scale, 2, 16) > UNLIKELY
    assert pvalue(p.patches.height / scale, 10, 25) > UNLIKELY
    assert pvalue(p.angle, -45, 45) > UNLIKELY
    assert pvalue(p.patches.top / (side - p.patches.height), 0, 1) > UNLIKELY
    assert pvalue(p.patches.left / (side - p.patches.width), 0, 1) > UNLIKELY
    small = CutPasteScar().draw(shape_only(4000, 128, 128), seeded())
    assert small.patches.width.unique().tolist() == list(range(1, 9))
    assert small.patches.height.unique().tolist() == list(range(5, 13))


def test_scars_lie_inside_and_reach_the_edges():
    images = sample(300, 40, 56).float()
    mask = CutPasteScar(width=(40, 60), height=(60, 80)).forward(images, None, seeded())[0].mask
    parameters = CutPasteScar(width=(40, 60), height=(60, 80)).draw(images, seeded())
    area = parameters.patches.height * parameters.patches.width
    # Nothing is cut off at the image's edge.
    np.testing.assert_allclose(mask.sum(dim=(1, 2, 3)).numpy(), area.numpy(), rtol=0.15, atol=3)
    assert mask[:, :, 0].any()
    assert mask[:, :, -1].any()
    assert mask[..., 0].any()
    assert mask[..., -1].any()


def test_three_way_gives_both_kinds():
    images = sample(16, 256, 256).float()
    augmentation = CutPaste3Way()
    normal, scar = augmentation(images, None, seeded())
    assert augmentation.num_classes == 3
    assert normal.mask.sum(dim=(1, 2, 3)).min() >= 0.019 * 256**2
    assert scar.mask.sum(dim=(1, 2, 3)).max() <= 1.15 * 16 * 25
    generator = seeded()
    assert torch.equal(normal.image, CutPasteNormal()(images, None, generator)[0].image)
    assert torch.equal(scar.image, CutPasteScar()(images, None, generator)[0].image)


def test_union_gives_one_kind_an_image_half_the_time():
    images = torch.rand(400, 1, 128, 128, generator=seeded())
    augmentation = CutPasteUnion()
    (pasted,) = augmentation(images, None, seeded())
    areas = pasted.mask.sum(dim=(1, 2, 3))
    scars = areas <= 1.3 * 8 * 13
    assert (areas[~scars] >= 0.019 * 128**2).all()
    assert stats.binomtest(int(scars.sum()), 400, 0.5).pvalue > UNLIKELY
    assert augmentation.num_classes == 2


@pytest.mark.parametrize("variant", VARIANTS)
def test_generator_decides_and_images_are_left_alone(variant):
    images = sample(5, 64, 80).float()
    before, augmentation = images.clone(), build_pasting(variant)
    first, again, other = (augmentation(images, None, seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(images, before)
    for a, b, c in zip(first, again, other, strict=True):
        assert torch.equal(a.image, b.image)
        assert not torch.equal(a.image, c.image)
        assert torch.equal(a.image[a.mask == 0], images[a.mask == 0])
    assert len(first) == augmentation.num_classes - 1
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(augmentation(images, None, seeded(1))[0].image, first[0].image)
    half = augmentation(images.half(), None, seeded(1))[0]
    assert half.image.dtype == half.mask.dtype == torch.float16
    torch.testing.assert_close(half.image.float(), first[0].image, atol=2e-3, rtol=0)


@pytest.mark.gpu
@pytest.mark.parametrize("variant", VARIANTS)
def test_gpu_gives_what_the_cpu_gives(variant):
    images = sample(16, 128, 200).float()
    augmentation = build_pasting(variant)
    for on_cpu, on_gpu in zip(
        augmentation(images, None, seeded()), augmentation(images.cuda(), None, seeded()), strict=True
    ):
        # A pixel centre may fall on a turned patch's edge, where rounding decides.
        assert (on_gpu.mask.cpu() != on_cpu.mask).sum() <= 4
        assert ((on_gpu.image.cpu() - on_cpu.image).abs() > 1e-5).sum() <= 32


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("cutpaste_normal", {"area": (0.2, 0.1)}), "area.*swap"),
        (("cutpaste_scar", {"width": (16, 2)}), "width.*swap"),
        (("cutpaste_scar", {"height": (25, 10)}), "height.*swap"),
        (("cutpaste_scar", {"rotation": (45, -45)}), "rotation.*swap"),
        (("cutpaste_scar", {"rotation": (-45, 450)}), "rotation"),
        (("cutpaste_3way", {"jitter": -0.1}), "jitter"),
        (("cutpaste_union", {"width": (0, 2)}), "width"),
        (("cutmix", {}), "variant must be one of 'anatpaste', .*, not 'cutmix'"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        build_pasting(settings[0], **settings[1])


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.rand(2, 3, 64, 64), "grey"),
        (torch.rand(2, 64, 64), "shape"),
        (torch.rand(2, 1, 64, 64) * 255, "0, 1"),
        (torch.rand(2, 1, 4, 4), "too small"),
    ],
)
def test_bad_images_are_refused(variant, images, message):
    with pytest.raises(ValueError, match=message):
        build_pasting(variant)(images)


def test_scars_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"20 x 2000 pixels are too small for scars"):
        CutPasteScar()(torch.rand(2, 1, 20, 2000))


def test_factory_passes_settings_on():
    augmentation = build_pasting("anatpaste", segmentation=False, blur=False)
    assert isinstance(augmentation, AnatPasteAugmentation)
    assert not augmentation.segmentation
    assert not augmentation.blur
    assert isinstance(build_pasting("cutpaste_scar", width=(3, 4)), CutPasteScar)
