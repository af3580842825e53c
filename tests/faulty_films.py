"""Films that no detector should judge: real ones with drawn faults, drawn lateral views, and photographs."""

import cv2
import numpy as np
import numpy.typing as npt
import skimage.data
from skimage.color import rgb2gray

from anomalib_cxr.data import phantom

Film = npt.NDArray[np.float32]

PHOTOGRAPHS = (
    "astronaut", "brick", "camera", "cat", "cell", "chelsea", "clock", "coffee", "coins", "colorwheel", "grass",
    "gravel", "hubble_deep_field", "immunohistochemistry", "microaneurysms", "moon", "page", "retina", "rocket", "text",
)  # fmt: skip
"""What scikit-image has without a download."""


def turned(film: Film, degrees: float) -> Film:
    """Turn against the clock; what comes in at the corners is the film mirrored, which gives nothing away."""
    if degrees % 90 == 0:
        return np.ascontiguousarray(np.rot90(film, int(degrees) // 90))
    height, width = film.shape
    turn = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, 1)
    return cv2.warpAffine(film, turn, (width, height), borderMode=cv2.BORDER_REFLECT_101)


def cropped(film: Film, top: float = 0, bottom: float = 0, left: float = 0, right: float = 0) -> Film:
    """Cut shares of the film off at its borders."""
    height, width = film.shape
    rows = slice(round(top * height), height - round(bottom * height))
    return np.ascontiguousarray(film[rows, round(left * width) : width - round(right * width)])


def photograph(name: str) -> Film:
    """One of :data:`PHOTOGRAPHS` in grey, in [0, 1]."""
    pixels = np.asarray(getattr(skimage.data, name)())
    grey = rgb2gray(pixels[..., :3]) if pixels.ndim == 3 else pixels / 255
    return np.clip(grey, 0, 1).astype(np.float32)


def lateral(number: int, size: int = 256) -> Film:
    """Draw a lateral view by the phantom's own means: one field of lung, the spine behind it, the heart in front."""
    rng = np.random.default_rng(number)
    patient = phantom._draw_patient(rng)
    canvas = phantom._Canvas(size, size, patient)
    forwards = rng.choice([-1, 1])  # where the patient looks

    def curve(*points: tuple[float, float]) -> phantom.Points:
        return np.array(points) * [forwards, 1] + rng.normal(0, 0.15, (len(points), 2))

    front = curve((5, -40), (5.5, -18), (8, -15), (11.5, -9), (12.5, -2), (12.5, 8), (12.8, 16), (13, 22), (13, 60))
    back = curve((-5, -40), (-6, -18), (-9.5, -14), (-12.5, -6), (-13, 2), (-12, 12), (-12, 22), (-12, 60))
    outline = np.concatenate([phantom._open_spline(front, 4), phantom._open_spline(back, 4)[::-1]])
    body = canvas.inside(canvas.fill(outline), 5, 32)
    soft = np.maximum(body + canvas.noise(rng, 9, 0.6) + canvas.noise(rng, 4, 0.3), 0) * np.float32(0.15)
    lung = phantom._spline(
        curve(
            (-1, -14), (2.5, -13), (6, -9.5), (9.3, -4), (10.2, 2), (9, 6), (5, 7), (1, 8), (-4, 9.5), (-9, 13),
            (-10, 8), (-10.3, 0), (-9, -7), (-5, -12.5),
        )
    )  # fmt: skip
    heart = phantom._spline(curve((2, -2), (6, 0), (8.6, 4), (8, 7.5), (4, 9), (-0.5, 8.4), (-2.6, 4.5), (-1, 0)))
    arch = phantom._spline(curve((0, -6), (2, -7), (3.5, -4), (2.5, 0), (-1, 0), (-2, -4)))
    tissue = canvas.inside(canvas.fill(heart), 1.5, 11) + canvas.inside(canvas.fill(arch), 1, 4)
    air = np.maximum(canvas.inside(canvas.fill(lung), 4, 22) - tissue, 0) * np.float32(phantom._AIR * phantom._SOFT)
    heights = np.arange(-19, 24, 2.45)
    vertebrae = [phantom._ellipse((-8.2 + 0.6 * np.sin(y / 9)) * forwards, y, 1.5, 1.02) for y in heights]
    bones = canvas.blur(canvas.fill(np.stack(vertebrae), values=(0.7,)), 0.15) * np.float32(0.9 * patient.bone)
    breastbone = phantom._band(phantom._open_spline(curve((5.5, -11), (8.5, -6), (10.6, 0), (11, 5))), 1.0)
    bones += canvas.blur(canvas.fill(breastbone), 0.15) * np.float32(0.5)
    for y in np.arange(-12, 8, 2.4):
        rib = phantom._band(phantom._open_spline(curve((-8.5, y), (-5, y + 1.5), (2, y + 4), (8.5, y + 7))), 0.9)
        bones += canvas.blur(canvas.fill(rib), 0.1) * np.float32(0.18)
    arms = canvas.blur(canvas.fill(phantom._band(curve((2, -12), (6, -17), (12, -21)), 5.5)), 0.5) * np.float32(0.8)
    attenuation = np.asarray((soft + bones + arms - air) * (body > 0), np.float32)
    film = np.clip(phantom._expose(attenuation, canvas, patient, rng), 0, 1)
    # Half of them collimated to the body, as is usual.
    return cropped(film, 0.1, 0.1, 0.17, 0.17) if number % 2 else film
