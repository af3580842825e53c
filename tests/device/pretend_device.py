"""A pretend device, ``pretend:0``: it computes on the CPU and refuses to mix devices, as a real one does.

PyTorch keeps a dispatch key for backends that it does not know, and lets Python stand behind it. Every tensor here
holds one of the CPU's: an operation takes them out, computes, and wraps what comes out. As on a GPU, an operation fails
that is given a CPU tensor of more than a number, or a generator of the other device. What is tested with it: that no
code of ours leaves a tensor behind on the CPU. What cannot be: other rounding, and time.
"""

import sys
from typing import Any

import torch
from torch.utils import _pytree, backend_registration

NAME = "pretend"
#: Operations whose arguments may be of several devices on a GPU, too: copies, and indices of the CPU.
_MIXED = {"copy_", "_copy_from", "_to_copy", "index", "index_put_", "_index_put_impl_", "index_put"}
_library: list[torch.library.Library] = []
#: Operations since this was last emptied that would have made a real device be waited for: what is read from it, and
#: what is sent to it from memory that is not page-locked (all but what ``on_device`` sends).
waits: list[str] = []


class PretendTensor(torch.Tensor):
    """A tensor of the pretend device; ``held`` is the CPU's that it stands for."""

    held: torch.Tensor

    @staticmethod
    def wrap(held: torch.Tensor) -> "PretendTensor":
        """Stand for a tensor of the CPU."""
        outer = torch.Tensor._make_wrapper_subclass(
            PretendTensor, held.shape, held.stride(), held.storage_offset(), dtype=held.dtype, device=f"{NAME}:0"
        )
        outer.held = held
        return outer

    def tolist(self) -> Any:
        """Numbers, which PyTorch gives of no subclass."""
        return self.held.tolist()

    def new_tensor(self, data: Any, **keywords: Any) -> torch.Tensor:
        """A tensor of this device and type; PyTorch's own would not ask Python."""
        return torch.tensor(data, **({"dtype": self.dtype, "device": self.device} | keywords))

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, op: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        """Compute what has a tensor of this device among its arguments."""
        del types
        return _compute(op, *arguments, **(keywords or {}))


class _Backend(backend_registration._DummyBackendModule):
    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


def register() -> torch.device:
    """Make the device known to PyTorch, once a process."""
    if not _library:
        backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=_Backend())
        library = torch.library.Library("_", "IMPL")
        library.fallback(_compute, "PrivateUse1")  # what has no tensor among its arguments: torch.zeros(2, device=…)
        _library.append(library)
        torch.tensor = _tensor
    return torch.device(NAME, 0)


_of_torch = torch.tensor


def _tensor(data: Any, *, device: Any = None, **keywords: Any) -> torch.Tensor:
    """``torch.tensor``, which copies to its device without asking Python."""
    return _of_torch(data, **keywords) if device is None else _of_torch(data, **keywords).to(device)


def _sent_by_on_device() -> bool:
    frame: Any = sys._getframe(1)
    while frame and frame.f_code.co_name != "on_device":
        frame = frame.f_back
    return frame is not None


def _compute(op: Any, *arguments: Any, **keywords: Any) -> Any:
    name = op.overloadpacket.__name__
    keywords = dict(keywords)
    device = keywords.get("device")
    leaves, _ = _pytree.tree_flatten((arguments, keywords))
    tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
    strangers = [leaf for leaf in tensors if not isinstance(leaf, PretendTensor) and leaf.ndim]
    if strangers and name not in _MIXED:
        msg = f"Expected all tensors to be on the same device, but {op} got one on the CPU, {tuple(strangers[0].shape)}"
        raise RuntimeError(msg)
    if isinstance(keywords.get("generator"), torch.Generator):
        msg = f"Expected a '{NAME}' device type for generator but found 'cpu', in {op}"
        raise RuntimeError(msg)
    if device is not None:
        keywords["device"] = torch.device("cpu")
    owners = {id(leaf.held): leaf for leaf in tensors if isinstance(leaf, PretendTensor)}
    arguments, keywords = _pytree.tree_map(
        lambda leaf: leaf.held if isinstance(leaf, PretendTensor) else leaf, (arguments, keywords)
    )
    out = op(*arguments, **keywords)
    if name in {"_local_scalar_dense", "is_nonzero", "nonzero", "masked_select", "equal"}:
        waits.append(str(op))
    to_cpu = (device is not None and device.type == "cpu") or (
        name == "copy_" and tensors and not isinstance(tensors[0], PretendTensor)
    )

    sent = name in {"_to_copy", "copy_", "_copy_from"} and any(not isinstance(leaf, PretendTensor) for leaf in tensors)
    if to_cpu or (sent and not _sent_by_on_device()):
        waits.append(str(op))

    def outer(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor) or to_cpu:
            return leaf
        return owners.get(id(leaf)) if id(leaf) in owners else PretendTensor.wrap(leaf)

    return _pytree.tree_map(outer, out)
