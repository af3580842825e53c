"""What computing devices can do."""

import torch


def has_float64(device: torch.device) -> bool:
    """Whether a device computes in float64; Apple's (``mps``) does not, and refuses such tensors."""
    return device.type != "mps"


def on_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Move a tensor to a device, float64 as float32 where the device has no other.

    A CUDA device is sent it from page-locked memory, and nothing waits: a plain copy waits until all that the device
    was told to do is done.
    """
    if tensor.dtype == torch.float64 and not has_float64(device):
        tensor = tensor.float()
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def widen(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor in float64 where its device has it, otherwise in float32."""
    return tensor.double() if has_float64(tensor.device) else tensor.float()
