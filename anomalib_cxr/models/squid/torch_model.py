"""SQUID's networks, losses, score and map: what is exported."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from anomalib.data import InferenceBatch
from torch import Tensor, nn
from torch.nn import functional as F

from anomalib_cxr.models.components.adversarial import adversarial_loss, refuse_running_statistics
from anomalib_cxr.models.components.players import held
from anomalib_cxr.models.components.windows import cut_windows
from anomalib_cxr.models.squid.decoder import WINDOW_STEPS, Decoded, Decoder
from anomalib_cxr.models.squid.discriminator import Discriminator
from anomalib_cxr.models.squid.encoder import HALVINGS, WindowEncoder
from anomalib_cxr.models.squid.inpainting import HEADS, InPainting
from anomalib_cxr.models.squid.memory_matrix import MemoryMatrix

#: Weights of the terms of the loss, as published.
WEIGHTS: Mapping[str, float] = {"student": 10.0, "teacher": 0.01, "distillation": 0.001, "adversarial": 0.005}


class Seen(NamedTuple):
    """What the student made of films, and what it made it from.

    Attributes:
        maps: The encoder's, the finest first; windows film by film.
        features: What the queue may be given, (B, grid², d).
        student: Its films and levels.
    """

    maps: list[Tensor]
    features: Tensor
    student: Decoded


class SQUIDModel(nn.Module):
    """Encodes the windows of a film, in-paints them, decodes the whole, and asks whether that looks real.

    Args:
        image_size: Side of the square films, a multiple of 16 · grid.
        width: Channels of the first map.
        grid: Windows along each side of a film, 2 or more.
        slots: Slots of each memory.
        top: Rank from which on the weight of a slot is 0.
        shortcut: Share of the places that pass a memory by in training, in [0, 1).

    Raises:
        ValueError: If an argument makes no model; the message names it.
    """

    def __init__(
        self,
        image_size: int = 128,
        width: int = 32,
        grid: int = 2,
        slots: int = 200,
        top: int = 5,
        shortcut: float = 0.05,
    ) -> None:
        super().__init__()
        _check(image_size, width, grid, slots, top, shortcut)
        side = image_size // grid // 2**HALVINGS
        self.grid = grid
        self.encoder = WindowEncoder(width)
        self.inpainting = InPainting(width * 2**HALVINGS, side, grid, slots, top, shortcut)
        self.student = Decoder(
            width,
            grid,
            [
                MemoryMatrix(width * 2 ** (HALVINGS - step), side * 2**step, slots, top, shortcut)
                for step in range(1, WINDOW_STEPS + 1)
            ],
        )
        self.teacher = Decoder(width, grid)
        self.discriminator = Discriminator(image_size)
        refuse_running_statistics(self.discriminator)

    @property
    def generator(self) -> nn.ModuleList:
        """All that makes films."""
        return nn.ModuleList([self.encoder, self.inpainting, self.student, self.teacher])

    def see(self, films: Tensor, generator: torch.Generator | None = None) -> Seen:
        """Make films anew by the student.

        Args:
            films: (B, 1, H, W) in [0, 1].
            generator: On the CPU, for the places that pass the memories by in training; None lets none.
        """
        maps = self.encoder(cut_windows(films, self.grid))
        bottom, features = self.inpainting(maps[-1], generator)
        return Seen(maps, features, self.student(bottom, _skipped(maps), generator))

    def losses(self, films: Tensor, generator: torch.Generator, makes: bool) -> dict[str, Tensor]:
        """Terms of the loss of normal films, each player's of its own; the queue is given what was seen.

        Args:
            films: (B, 1, H, W) in [0, 1].
            generator: On the CPU, for all that is drawn.
            makes: Whether what makes films learns in this step; the discriminator does in each.

        Returns:
            Scalars whose sum is trained, by name, weighted.
        """
        with torch.set_grad_enabled(makes):
            seen = self.see(films, generator)
        terms = self.makers_terms(films, seen) if makes else {}
        if makes:
            self.inpainting.queue.enqueue(seen.features)
        real, made = self.discriminator(films), self.discriminator(seen.student.films.detach())
        terms["discriminator"] = WEIGHTS["adversarial"] * (
            adversarial_loss(real, real=True) + adversarial_loss(made, real=False)
        )
        return terms

    def makers_terms(self, films: Tensor, seen: Seen) -> dict[str, Tensor]:
        """Terms that encoder, memories and decoders learn from, weighted.

        The teacher sees what the encoder gives and does not move it; student and teacher are drawn to one another.

        Args:
            films: See :meth:`losses`.
            seen: What the student made of them.
        """
        teacher = self.teacher(seen.maps[-1].detach(), [maps.detach() for maps in _skipped(seen.maps)])
        apart = [F.mse_loss(*pair) for pair in zip(seen.student.levels, teacher.levels, strict=True)]
        with held(self.discriminator):
            looks = self.discriminator(seen.student.films)
        terms = {
            "student": F.mse_loss(seen.student.films, films),
            "teacher": F.mse_loss(teacher.films, films),
            "distillation": torch.stack(apart).sum(),
            "adversarial": adversarial_loss(looks, real=True),
        }
        return {name: WEIGHTS[name] * term for name, term in terms.items()}

    def forward(self, images: Tensor) -> InferenceBatch:
        """Score images.

        Args:
            images: (B, 3 or 1, H, W) in [0, 1].

        Returns:
            ``pred_score`` (B,), minus the discriminator's logit of what the student makes of a film; ``anomaly_map``
            (B, 1, H, W), how far that is from the film, in grey values. Higher is more abnormal.
        """
        films = grey(images)
        made = self.see(films).student.films
        return InferenceBatch(pred_score=-self.discriminator(made), anomaly_map=(films - made).abs())


def grey(images: Tensor) -> Tensor:
    """Grey images (B, 1, H, W) of images (B, 3 or 1, H, W)."""
    return images.mean(dim=1, keepdim=True)


def _skipped(maps: list[Tensor]) -> list[Tensor]:
    """The encoder's maps that decoders join, the coarsest first."""
    return maps[-2 : -2 - WINDOW_STEPS : -1]


def _check(image_size: int, width: int, grid: int, slots: int, top: int, shortcut: float) -> None:
    factor = max(grid, 2) * 2**HALVINGS
    for wrong, message in (
        (grid < 2, f"grid must be 2 or more, for a window is made from its neighbours, not {grid}."),
        (
            image_size < factor or image_size % factor,
            f"image_size must be a multiple of {factor} for grid={grid}, not {image_size}: "
            f"take {max(1, round(image_size / factor)) * factor}.",
        ),
        (width < 1, f"width must be 1 or more, not {width}."),
        (
            4 * width * (image_size // factor) ** 2 % HEADS,
            f"width={width} and image_size={image_size} make features that {HEADS} heads cannot divide: "
            "make width an even number.",
        ),
        (not 2 <= top <= slots, f"top must lie between 2 and slots={slots}, not be {top}."),
        (not 0 <= shortcut < 1, f"shortcut must lie in [0, 1), not be {shortcut}."),
    ):
        if wrong:
            raise ValueError(message)
