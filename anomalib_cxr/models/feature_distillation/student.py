"""The narrow student: a plain stack of convolutions that ends each stage at a width of the teacher's."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

#: Convolutions of each stage, those of VGG-16 (Simonyan and Zisserman 2015, configuration D).
_DEPTHS = (2, 2, 3, 3, 3)


class NarrowStudent(nn.Module):
    """Salehi et al.'s cloner: VGG-16's layout at a sixteenth of its width or less.

    Each stage halves the image: 3 × 3 convolutions without bias, batch normalisation after each but the last of the
    stage, ReLU, and max-pooling. The last has the teacher's width where the teacher has a level at this reduction. Of a
    teacher whose levels have both signs, as an EfficientNet's, a maximum could not follow: no ReLU comes after the last
    convolution then, and the pooling is a mean (ours).

    Args:
        channels: The teacher's channels by its reduction, each a power of two of at least 2.
        width: Channels of all other convolutions.
        rectified: Whether the teacher's levels are 0 or more.
    """

    def __init__(self, channels: Mapping[int, int], width: int = 16, rectified: bool = True) -> None:
        super().__init__()
        self.reductions = sorted(channels)
        self.stages = nn.ModuleList()
        incoming = 1
        for stage in range(self.reductions[-1].bit_length() - 1):
            outgoing = channels.get(2 ** (stage + 1), width)
            layers: list[nn.Module] = []
            for _ in range(_DEPTHS[min(stage, len(_DEPTHS) - 1)] - 1):
                layers += [_convolution(incoming, width), nn.BatchNorm2d(width), nn.ReLU()]
                incoming = width
            layers.append(_convolution(incoming, outgoing))
            layers += [nn.ReLU(), nn.MaxPool2d(2)] if rectified else [nn.AvgPool2d(2)]
            self.stages.append(nn.Sequential(*layers))
            incoming = outgoing
        # A step takes half the time on a CPU so.
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> list[Tensor]:
        """What the student takes the teacher's levels to be.

        Args:
            images: (B, 1, H, W), normalised, H and W multiples of the largest reduction.

        Returns:
            Map of each of the teacher's reductions, the finest first.
        """
        found = []
        for stage, layers in enumerate(self.stages, start=1):
            images = layers(images)
            if 2**stage in self.reductions:
                found.append(images)
        return found


def _convolution(incoming: int, outgoing: int) -> nn.Conv2d:
    convolution = nn.Conv2d(incoming, outgoing, 3, padding=1, bias=False)
    nn.init.xavier_uniform_(convolution.weight)
    return convolution
