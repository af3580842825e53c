"""AnatPaste: blending against a plain per-image reference, draws against the paper's distributions."""

import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from scipy import ndimage, stats
from torchvision.transforms import functional

from anomalib_cxr.augmentations import AnatPasteAugmentation, PasteParameters, apply_anat_paste, pasting
from anomalib_cxr.augmentations.soft_shapes import SoftShapes

UNLIKELY = 1e-3


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def sample(batch: int, height: int, width: int, dtype=torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.rand(batch, 1, height, width, generator=seeded(1), dtype=torch.float64).to(dtype)
    lungs = torch.zeros(batch, 1, height, width, dtype=torch.bool)
    lungs[..., height // 8 : height - height // 8, width // 16 : width // 2 - 3] = True
    lungs[..., height // 5 : height - height // 6, width // 2 + 3 : width - 2] = True
    return images, lungs


def field(parameters: PasteParameters, i: int) -> dict:
    patches, rest = parameters.patches, parameters._asdict()
    intensity = patches.intensity._asdict()
    flat = {**patches._asdict(), **rest, **intensity}
    return {name: value[i].item() for name, value in flat.items() if isinstance(value, torch.Tensor)}


def reference(image: np.ndarray, lungs: np.ndarray | None, p: dict, surround: str) -> tuple[np.ndarray, np.ndarray]:
    """One image, pixel by pixel, from the definition."""
    height, width = image.shape
    pad = 250
    canvas = np.zeros((height + 2 * pad, width + 2 * pad))
    for v in range(-p["half_height"], p["half_height"] + 1):
        for u in range(-p["half_width"], p["half_width"] + 1):
            inside = math.hypot(v / (p["half_height"] + 0.5), u / (p["half_width"] + 0.5)) <= 1
            if inside or not p["ellipse"]:
                canvas[pad + p["centre_y"] + v, pad + p["centre_x"] + u] = p["value"]
    if p["sigma"] > 0:
        canvas = ndimage.gaussian_filter(canvas, p["sigma"], truncate=8)
    mask = canvas[pad:-pad, pad:-pad] * (1 if lungs is None else lungs)

    patch = torch.from_numpy(image[p["top"] : p["top"] + p["height"], p["left"] : p["left"] + p["width"]])[None]
    steps = [(functional.adjust_brightness, p["brightness"]), (functional.adjust_contrast, p["contrast"])]
    for adjust, factor in steps[::-1] if p["contrast_first"] else steps:
        patch = adjust(patch, factor)
    patch = patch[0].numpy()

    out = image.copy()
    for y in range(height):
        for x in range(width):
            row = y - p["centre_y"] + p["height"] // 2
            column = x - p["centre_x"] + p["width"] // 2
            if 0 <= row < p["height"] and 0 <= column < p["width"]:
                pasted = patch[row, column]
            elif surround == "black":
                pasted = 0.0
            else:
                pasted = patch[min(max(row, 0), p["height"] - 1), min(max(column, 0), p["width"] - 1)]
            out[y, x] = image[y, x] * (1 - mask[y, x]) + pasted * mask[y, x]
    return out, mask


@pytest.mark.parametrize("surround", ["black", "edge"])
@pytest.mark.parametrize("segmentation", [True, False])
@pytest.mark.parametrize("blur", [True, False])
@pytest.mark.parametrize("whole_batch", [False, True])
def test_blending_matches_plain_reference(surround, segmentation, blur, whole_batch, monkeypatch):
    if whole_batch:  # how a GPU does it
        monkeypatch.setattr(
            pasting,
            "windows",
            lambda x, _: [pasting.Window(slice(0, len(x)), slice(0, x.shape[2]), slice(0, x.shape[3]))],
        )
    images, lungs = sample(10, 72, 90, torch.float64)
    augmentation = AnatPasteAugmentation(jitter=0.3, segmentation=segmentation, blur=blur, surround=surround)
    used = lungs if segmentation else None
    parameters = augmentation.draw(images, used, seeded(3))
    pasted = apply_anat_paste(images, used, parameters, surround)
    assert (
        {True, False} == set(parameters.ellipse.tolist()) == set(parameters.patches.intensity.contrast_first.tolist())
    )
    for i in range(len(images)):
        plain_lungs = lungs[i, 0].numpy() if segmentation else None
        image, mask = reference(images[i, 0].numpy(), plain_lungs, field(parameters, i), surround)
        np.testing.assert_allclose(pasted.mask[i, 0].numpy(), mask, atol=1e-4)
        np.testing.assert_allclose(pasted.image[i, 0].numpy(), image, atol=1e-4)


def test_forward_applies_what_is_drawn():
    images, lungs = sample(4, 64, 64)
    augmentation = AnatPasteAugmentation()
    (pasted,) = augmentation(images, lungs, seeded(5))
    again = apply_anat_paste(images, lungs, augmentation.draw(images, lungs, seeded(5)))
    assert torch.equal(pasted.image, again.image)
    assert torch.equal(pasted.mask, again.mask)
    assert augmentation.num_classes == 2
    assert not list(augmentation.parameters())


@pytest.mark.parametrize(("half_height", "half_width"), [(0, 0), (0, 9), (12, 0), (7, 7), (20, 11), (33, 58)])
def test_sharp_shapes_match_pil(half_height, half_width):
    size, centre = 128, 64
    box = (centre - half_width, centre - half_height, centre + half_width, centre + half_height)
    for ellipse in (True, False):
        drawn = Image.new("L", (size, size))
        draw = ImageDraw.Draw(drawn)
        (draw.ellipse if ellipse else draw.rectangle)(box, fill=1)
        whole = [torch.tensor([value]) for value in (centre, centre, half_height, half_width, ellipse)]
        shapes = SoftShapes(*whole, torch.zeros(1), (size, size), ([half_height], [half_width]))
        ours = shapes.read(pasting.Window(slice(0, 1), slice(0, size), slice(0, size)))[0].numpy()
        differing = np.abs(ours - np.asarray(drawn)).sum()
        # PIL rounds some pixels of an ellipse's outline the other way.
        assert differing <= (max(1, 0.15 * (half_height + half_width)) if ellipse else 0)


def parameters_of(count: int, side: int, seed: int = 0, **kwargs) -> PasteParameters:
    images = torch.zeros(1).expand(count, 1, side, side)
    return AnatPasteAugmentation(segmentation=False, **kwargs).draw(images, None, seeded(seed))


def pvalue(values: torch.Tensor, low: float, high: float) -> float:
    return stats.kstest(values.double().numpy(), "uniform", (low, high - low)).pvalue


def test_draws_follow_the_paper():
    side = 2048  # so large that whole pixels hardly matter
    p = parameters_of(4000, side)
    patches = p.patches
    assert pvalue(patches.height * patches.width / side**2, 0.02, 0.15) > UNLIKELY
    assert pvalue((patches.width / patches.height).log(), math.log(0.3), math.log(1 / 0.3)) > UNLIKELY
    assert pvalue(patches.top / (side - patches.height), 0, 1) > UNLIKELY
    assert pvalue(patches.left / (side - patches.width), 0, 1) > UNLIKELY
    assert pvalue(patches.intensity.brightness, 0.9, 1.1) > UNLIKELY
    assert pvalue(patches.intensity.contrast, 0.9, 1.1) > UNLIKELY
    assert pvalue(p.value, 150 / 255, 1) > UNLIKELY
    assert pvalue(p.sigma / (side / 256), 0, 15) > UNLIKELY
    for coin in (p.ellipse, patches.intensity.contrast_first):
        assert stats.binomtest(int(coin.sum()), len(coin), 0.5).pvalue > UNLIKELY
    drawn = [p.value, p.sigma, p.ellipse, p.centre_x, p.centre_y, *patches.intensity]
    drawn += [patches.height * patches.width, (patches.width / patches.height).log()]
    drawn += [patches.top / (side - patches.height), patches.left / (side - patches.width)]
    correlation = torch.corrcoef(torch.stack([x.double() for x in drawn]))
    assert (correlation - torch.eye(len(drawn))).abs().max() < 0.07


def test_sizes_are_rounded_as_published():
    p = parameters_of(3000, 256)
    uniform = torch.rand(3000, 11, generator=seeded(), dtype=torch.float64)
    for i in range(0, 3000, 50):
        area = (0.02 + 0.13 * uniform[i, 0].item()) * 256 * 256
        aspect = math.exp(math.log(0.3) + uniform[i, 1].item() * (math.log(1 / 0.3) - math.log(0.3)))
        assert p.patches.width[i] == round(math.sqrt(area * aspect))
        assert p.patches.height[i] == round(math.sqrt(area / aspect))
    assert torch.equal(p.half_height, (p.patches.height // 2 - 10).clamp(min=0))
    assert torch.equal(p.half_width, (p.patches.width // 2 - 10).clamp(min=0))
    assert (p.patches.top + p.patches.height).max() <= 256
    assert (p.patches.left + p.patches.width).max() <= 256


def test_centres_are_uniform_over_lung_pixels():
    lungs = torch.rand(1, 1, 9, 14, generator=seeded(2)) < 0.3
    lungs[0, 0, 0, 0] = lungs[0, 0, -1, -1] = True
    lungs[0, 0, 4] = False
    images = torch.zeros(1).expand(8000, 1, 9, 14)
    p = AnatPasteAugmentation(area=(0.1, 0.2)).draw(images, lungs.expand(8000, 1, 9, 14), seeded(4))
    counts = torch.zeros(9, 14).index_put_((p.centre_y, p.centre_x), torch.ones(8000), accumulate=True)
    assert counts[~lungs[0, 0]].sum() == 0
    assert stats.chisquare(counts[lungs[0, 0]].numpy()).pvalue > UNLIKELY


def test_each_image_uses_its_own_lungs():
    images = torch.zeros(6, 1, 32, 40)
    lungs = torch.zeros(6, 1, 32, 40, dtype=torch.bool)
    pixels = [(0, 0), (31, 39), (0, 39), (31, 0), (16, 20), (7, 33)]
    for i, (y, x) in enumerate(pixels):
        lungs[i, 0, y, x] = True
    p = AnatPasteAugmentation().draw(images, lungs, seeded())
    assert list(zip(p.centre_y.tolist(), p.centre_x.tolist(), strict=True)) == pixels


@pytest.mark.parametrize("segmentation", [True, False])
def test_unchecked_pasting_is_the_checked_one_and_heeds_the_switch(segmentation: bool) -> None:
    images, lungs = sample(4, 64, 64)
    augmentation = AnatPasteAugmentation(segmentation=segmentation)
    unchecked = augmentation.paste(images, lungs, seeded())[0]
    for given in (lungs, *(() if segmentation else (None,))):
        checked = augmentation(images, given, seeded())[0]
        assert torch.equal(unchecked.image, checked.image)
        assert torch.equal(unchecked.mask, checked.mask)
    assert bool((unchecked.mask[~lungs] > 0).any()) != segmentation


def test_without_segmentation_centres_are_anywhere():
    p = parameters_of(8000, 16, area=(0.1, 0.2))
    counts = torch.zeros(16, 16).index_put_((p.centre_y, p.centre_x), torch.ones(8000), accumulate=True)
    assert stats.chisquare(counts.flatten().numpy()).pvalue > UNLIKELY
    images, lungs = sample(8, 64, 64)
    augmentation = AnatPasteAugmentation(segmentation=False)
    with_lungs, without = augmentation(images, lungs, seeded())[0], augmentation(images, None, seeded())[0]
    assert torch.equal(with_lungs.mask, without.mask)
    assert without.mask[~lungs].max() > 0


def test_mask_stays_in_the_lungs_and_always_reaches_them():
    images, lungs = sample(64, 96, 64)
    (pasted,) = AnatPasteAugmentation()(images, lungs, seeded())
    assert pasted.mask[~lungs].abs().max() == 0
    assert pasted.mask.amin() >= 0
    assert pasted.mask.amax() <= 1
    assert pasted.mask.amax(dim=(1, 2, 3)).min() > 0.01
    assert torch.equal(pasted.image[pasted.mask == 0], images[pasted.mask == 0])
    assert ((pasted.image != images).sum(dim=(1, 2, 3)) > 0).all()
    assert pasted.image.amin() >= 0
    assert pasted.image.amax() <= 1


def test_thin_patches_leave_a_line():
    images, lungs = sample(32, 256, 256)
    augmentation = AnatPasteAugmentation(area=(0.02, 0.02), aspect=(0.3, 0.3), margin=40, blur=False)
    parameters = augmentation.draw(images, lungs, seeded())
    assert parameters.half_width.unique().tolist() == parameters.half_height.unique().tolist() == [0]
    mask = augmentation(images, lungs, seeded())[0].mask
    assert (mask > 0).sum(dim=(1, 2, 3)).tolist() == [1] * 32
    for i in range(32):
        value = mask[i, 0, parameters.centre_y[i], parameters.centre_x[i]]
        assert value == pytest.approx(parameters.value[i].item(), abs=1e-6)


def test_without_blur_weights_are_the_value_or_nothing():
    images, lungs = sample(16, 64, 64)
    augmentation = AnatPasteAugmentation(blur=False)
    mask = augmentation(images, lungs, seeded())[0].mask
    value = augmentation.draw(images, lungs, seeded()).value
    for i in range(16):
        assert mask[i].unique().tolist() == pytest.approx([0, value[i].item()], abs=1e-6)


def test_lengths_scale_with_the_image():
    large, small, oblong = (
        AnatPasteAugmentation(segmentation=False).draw(torch.zeros(1).expand(500, 1, *size), None, seeded())
        for size in [(256, 256), (128, 128), (64, 256)]
    )
    for half in (small, oblong):
        torch.testing.assert_close(half.sigma, large.sigma / 2)
        assert torch.equal(half.half_width, (half.patches.width // 2 - 5).clamp(min=0))
        assert torch.equal(half.half_height, (half.patches.height // 2 - 5).clamp(min=0))
    assert (small.patches.width - large.patches.width / 2).abs().max() <= 0.75
    assert torch.equal(small.value, large.value)


def test_images_much_longer_than_wide():
    images, lungs = sample(64, 32, 400)
    parameters = AnatPasteAugmentation().draw(images, lungs, seeded())
    assert parameters.patches.height.max() == 32
    (pasted,) = AnatPasteAugmentation()(images, lungs, seeded())
    assert pasted.mask.amax(dim=(1, 2, 3)).min() > 0


def test_generator_decides_and_companions_do_not():
    images, lungs = sample(7, 64, 64)
    augmentation = AnatPasteAugmentation()
    first = augmentation(images, lungs, seeded(9))[0].image
    assert torch.equal(first, augmentation(images, lungs, seeded(9))[0].image)
    assert not torch.equal(first, augmentation(images, lungs, seeded(10))[0].image)
    assert torch.equal(first[:3], augmentation(images[:3], lungs[:3], seeded(9))[0].image)
    others = torch.cat([images[:3], 1 - images[3:]])
    other_lungs = torch.cat([lungs[:3], ~lungs[3:]])
    assert torch.equal(first[:3], augmentation(others, other_lungs, seeded(9))[0].image[:3])
    state = torch.random.get_rng_state()
    augmentation(images, lungs, seeded(9))
    assert torch.equal(state, torch.random.get_rng_state())
    torch.manual_seed(9)
    assert torch.equal(first, augmentation(images, lungs)[0].image)


def test_inputs_are_left_alone():
    images, lungs = sample(4, 64, 64)
    images, wide = images.clone(), torch.rand(4, 1, 64, 128)
    before, lungs_before = images.clone(), lungs.clone()
    AnatPasteAugmentation()(images, lungs, seeded())
    assert torch.equal(images, before)
    assert torch.equal(lungs, lungs_before)
    view = wide[..., ::2]
    strided, packed = (AnatPasteAugmentation()(x, lungs, seeded())[0] for x in (view, view.contiguous()))
    assert torch.equal(strided.image, packed.image)
    assert torch.equal(strided.mask, packed.mask)


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float16, 1e-3), (torch.bfloat16, 8e-3), (torch.float64, 1e-6)])
def test_other_floats(dtype, atol):
    images, lungs = sample(6, 64, 48, dtype)
    (pasted,) = AnatPasteAugmentation()(images, lungs, seeded())
    (single,) = AnatPasteAugmentation()(images.float(), lungs, seeded())
    assert pasted.image.dtype == pasted.mask.dtype == dtype
    torch.testing.assert_close(pasted.image.float(), single.image, atol=atol, rtol=0)
    torch.testing.assert_close(pasted.mask.float(), single.mask, atol=atol, rtol=0)


def test_mixed_precision_changes_nothing():
    images, lungs = sample(6, 64, 48)
    (plain,) = AnatPasteAugmentation()(images, lungs, seeded())
    with torch.autocast("cpu", torch.bfloat16):
        (mixed,) = AnatPasteAugmentation()(images, lungs, seeded())
    assert torch.equal(plain.image, mixed.image)
    assert torch.equal(plain.mask, mixed.mask)


@pytest.mark.gpu
@pytest.mark.parametrize("surround", ["black", "edge"])
def test_gpu_gives_what_the_cpu_gives(surround):
    images, lungs = sample(32, 256, 200)
    augmentation = AnatPasteAugmentation(surround=surround)
    (on_cpu,) = augmentation(images, lungs, seeded())
    (on_gpu,) = augmentation(images.cuda(), lungs.cuda(), seeded())
    torch.testing.assert_close(on_gpu.mask.cpu(), on_cpu.mask, atol=1e-5, rtol=0)
    torch.testing.assert_close(on_gpu.image.cpu(), on_cpu.image, atol=1e-5, rtol=0)
    generator = torch.Generator("cuda").manual_seed(0)
    (drawn_there,) = augmentation(images.cuda(), lungs.cuda(), generator)
    assert drawn_there.mask.amax(dim=(1, 2, 3)).min() > 0
    (from_there,) = augmentation(images, lungs, torch.Generator("cuda").manual_seed(0))
    torch.testing.assert_close(drawn_there.image.cpu(), from_there.image, atol=1e-5, rtol=0)


def empty_second(lungs: torch.Tensor) -> torch.Tensor:
    lungs = lungs.clone()
    lungs[1] = False
    return lungs


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, m: (x[:, 0], m), "shape"),
        (lambda x, m: (x.expand(-1, 3, -1, -1), m), "grey"),
        (lambda x, m: ((x * 255).byte(), m), "floats in"),
        (lambda x, m: (x * 255, m), "0, 1"),
        (lambda x, m: (x - 0.5, m), "0, 1"),
        (lambda x, m: (torch.where(x > 0.99, torch.nan, x), m), "nan"),
        (lambda x, m: (x[:0], m[:0]), "no pixel"),
        (lambda x, m: (x, None), "segmentation=False"),
        (lambda x, m: (x, m[..., :-1]), "shape of the images"),
        (lambda x, m: (x, m[:2]), "shape of the images"),
        (lambda x, m: (x, m.float()), "bool"),
        (lambda x, m: (x, empty_second(m)), r"batch index \[1\]"),
        (lambda x, m: (x[..., :5, :5], m[..., :5, :5]), "too small for the smallest patch"),
    ],
)
def test_bad_input_is_refused(change, message):
    images, lungs = change(*sample(3, 64, 64))
    with pytest.raises(ValueError, match=message) as error:
        AnatPasteAugmentation()(images, lungs, seeded())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"area": (0.15, 0.02)}, "area.*swap"),
        ({"area": (0.0, 0.1)}, "area"),
        ({"area": (0.1, 1.1)}, "area"),
        ({"area": (0.1, float("nan"))}, "area"),
        ({"area": (0.1, 0.2, 0.3)}, "pair"),
        ({"area": 0.1}, "pair"),
        ({"aspect": (3.3, 0.3)}, "aspect.*swap"),
        ({"aspect": (0.0, 1.0)}, "aspect"),
        ({"aspect": (0.5, float("inf"))}, "aspect"),
        ({"jitter": 1.1}, "jitter"),
        ({"jitter": float("nan")}, "jitter"),
        ({"margin": -1}, "margin"),
        ({"margin": float("nan")}, "margin"),
        ({"value": (1.0, 0.5)}, "value.*swap"),
        ({"value": (0.5, 1.5)}, "value"),
        ({"sigma": (15, 0)}, "sigma.*swap"),
        ({"sigma": (-1, 5)}, "sigma"),
        ({"surround": "white"}, "surround"),
    ],
)
def test_bad_settings_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        AnatPasteAugmentation(**kwargs)
