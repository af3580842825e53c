"""Features of the last training films, place by place."""

import torch
from torch import Tensor, nn

from anomalib_cxr.distributed import gather_with_gradient
from anomalib_cxr.models.squid.sparse_reading import first_slots, read


class MemoryQueue(nn.Module):
    """For each place of the grid the features of the films that were seen last, in a ring.

    Both the ring and where it is written next are buffers, so a run that is resumed goes on with them; in the published
    code the latter starts anew.

    Args:
        places: Windows of a film.
        slots: Features kept for each.
        length: Numbers of a feature.
        top: See :func:`~anomalib_cxr.models.squid.sparse_reading.sparse_weights`.
    """

    slots: Tensor
    position: Tensor

    def __init__(self, places: int, slots: int, length: int, top: int) -> None:
        super().__init__()
        self.top = top
        self.register_buffer("slots", first_slots(places, slots, length))
        self.register_buffer("position", torch.zeros((), dtype=torch.long))

    def forward(self, features: Tensor) -> Tensor:
        """Features (B, places, length) made of those in the queue, which learns nothing by this."""
        return read(features, self.slots, self.top)

    @torch.no_grad()
    def enqueue(self, features: Tensor) -> None:
        """Write features over the oldest ones.

        The ring is replaced and not written into: a loss that has read it has still to go backward. Processes that
        train together give one another theirs, so that their queues stay alike.

        Args:
            features: (B, places, length); of more than there are slots, the last ones stay.
        """
        features = gather_with_gradient(features)
        count, size = len(features), self.slots.shape[1]
        order = torch.arange(max(0, count - size), count, device=features.device)
        rows = features[order].transpose(0, 1).to(self.slots)
        self.slots = self.slots.index_copy(1, (self.position + order) % size, rows)
        self.position = (self.position + count) % size
