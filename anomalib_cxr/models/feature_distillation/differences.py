"""How far a student's feature map is from its teacher's: of the whole map, and place by place."""

from torch import Tensor
from torch.nn import functional as F


def whole_map_cosine(teacher: Tensor, student: Tensor) -> Tensor:
    """One minus the cosine of two maps, each taken as one long vector (Salehi et al. 2021, equation of L_dir).

    Args:
        teacher: (B, C, h, w).
        student: (B, C, h, w).

    Returns:
        (B,), in [0, 2].
    """
    return 1 - F.cosine_similarity(teacher.flatten(1), student.flatten(1))


def whole_map_squares(teacher: Tensor, student: Tensor) -> Tensor:
    """Mean squared difference of two maps (Salehi et al. 2021, L_val).

    Args:
        teacher: (B, C, h, w).
        student: (B, C, h, w).

    Returns:
        (B,), 0 or more.
    """
    return (teacher - student).square().flatten(1).mean(dim=1)


def place_wise(teacher: Tensor, student: Tensor) -> Tensor:
    """Half the squared difference of unit-length features at each place: STFPM's map (Wang et al. 2021).

    Args:
        teacher: (B, C, h, w).
        student: (B, C, h, w).

    Returns:
        (B, 1, h, w), one minus the cosine, in [0, 2].
    """
    difference = F.normalize(teacher, dim=1) - F.normalize(student, dim=1)
    return difference.square().sum(dim=1, keepdim=True) / 2
