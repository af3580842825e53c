"""Speed of the AnatPaste augmentation against a plain PIL / NumPy / scikit-image version of the published one.

The plain version segments the lungs again at every step, as the published code does. Both run on one thread, in
alternation, on the same image; the least CPU time of the rounds is what the machine's other work disturbs least.
"""

import math
import random
import time

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter
from skimage import exposure, filters, measure, morphology, segmentation

from anomalib_cxr.augmentations import AnatPasteAugmentation

SIZE, BATCH, ROUNDS = 256, 32, 12

RANDOM = np.random.default_rng(0)

pytestmark = pytest.mark.benchmark


def radiograph_like() -> np.ndarray:
    """A grey image with two dark ellipses for lungs, 8 bit."""
    y, x = np.mgrid[:SIZE, :SIZE] / SIZE
    body = 0.75 - 0.5 * ((x - 0.5) ** 2 + (y - 0.5) ** 2)
    for centre in (0.3, 0.7):
        body -= 0.45 / (1 + np.exp(40 * (np.hypot((x - centre) / 0.15, (y - 0.5) / 0.33) - 1) / 4))
    noise = np.random.default_rng(0).normal(0, 0.02, body.shape)
    return (np.clip(body + noise, 0, 1) * 255).astype(np.uint8)


def plain_lungs(pixels: np.ndarray) -> np.ndarray:
    equal = exposure.equalize_adapthist(pixels, clip_limit=0.01)
    dark = equal < filters.threshold_otsu(equal)
    square = np.ones((3, 3), dtype=bool)
    opened = morphology.opening(dark, square).astype(np.uint8)
    dilated = morphology.dilation(segmentation.clear_border(opened), square)
    labels = measure.label(dilated)
    for region in measure.regionprops(labels):
        if region.area < 400:
            top, left, bottom, right = region.bbox
            labels[top:bottom, left:right] = 0
    return labels > 0


def plain_anat_paste(image: Image.Image) -> Image.Image:
    columns, rows = image.size
    area = random.uniform(0.02, 0.15) * rows * columns
    aspect = math.exp(random.uniform(math.log(0.3), -math.log(0.3)))
    width, height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
    left, top = random.randrange(columns - width), random.randrange(rows - height)
    patch = image.crop((left, top, left + width, top + height))
    enhancers = [ImageEnhance.Brightness, ImageEnhance.Contrast]
    random.shuffle(enhancers)
    for enhancer in enhancers:
        patch = enhancer(patch).enhance(random.uniform(0.9, 1.1))

    lungs = plain_lungs(np.asarray(image))
    if not lungs.any():
        lungs[:] = True
    y, x = divmod(int(RANDOM.choice(np.flatnonzero(lungs))), columns)
    mask = Image.new("L", image.size)
    margin = 10
    draw = ImageDraw.Draw(mask)
    shape = draw.ellipse if random.random() < 0.5 else draw.rectangle
    right, bottom = max(width // 2 - margin, 0), max(height // 2 - margin, 0)
    shape((x - right, y - bottom, x + right, y + bottom), fill=random.randrange(150, 255))
    mask = np.asarray(mask.filter(ImageFilter.GaussianBlur(random.randrange(15)))) * lungs

    placed = Image.new("L", image.size)
    placed.paste(patch, (x - width // 2, y - height // 2))
    pasted = image.copy()
    pasted.paste(placed, (0, 0), Image.fromarray(mask.astype(np.uint8)))
    return pasted


def cpu_ms(function, images: int) -> float:
    start = time.process_time()
    function()
    return (time.process_time() - start) * 1e3 / images


def test_anat_paste_speed():
    pixels = radiograph_like()
    image = Image.fromarray(pixels)
    # Our lungs are the dark side; they only have to be of lung-like size here.
    lungs = torch.from_numpy(filters.gaussian(pixels, 2) < filters.threshold_otsu(pixels) / 255)
    batch = torch.from_numpy(pixels).float().div(255).expand(BATCH, 1, SIZE, SIZE).clone()
    masks = lungs.expand(BATCH, 1, SIZE, SIZE).clone()
    augmentation, generator = AnatPasteAugmentation(), torch.Generator().manual_seed(0)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    random.seed(0)
    ours, plain, segmenting = [], [], []
    try:
        for _ in range(ROUNDS):
            ours.append(cpu_ms(lambda: augmentation(batch, masks, generator), BATCH))
            plain.append(cpu_ms(lambda: [plain_anat_paste(image) for _ in range(8)], 8))
            segmenting.append(cpu_ms(lambda: [plain_lungs(pixels) for _ in range(8)], 8))
    finally:
        torch.set_num_threads(threads)
    ours, plain, segmenting = ours[1:], plain[1:], segmenting[1:]
    best, best_plain = min(ours), min(plain)
    print(f"\nlungs: {masks.float().mean():.2f} of the image, by the plain version {plain_lungs(pixels).mean():.2f}")
    print(f"ours  {best:6.3f} ms an image at batch {BATCH} (median {np.median(ours):.3f})")
    print(f"plain {best_plain:6.3f} ms an image, {min(segmenting):.3f} of it lungs (median {np.median(plain):.3f})")
    print(f"ratio {best_plain / best:6.1f} least to least, {np.median(np.divide(plain, ours)):.1f} median of rounds")
    assert augmentation(batch, masks, generator)[0].image.shape == batch.shape
