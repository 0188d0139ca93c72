"""A device that is not the CPU and computes on it: what meets a tensor of the CPU there is an error.

It goes by the name of `meta`. Its tensors hold a hidden tensor of the CPU on which every operation is done,
so that results are bit for bit those of the CPU; as on a GPU only numbers (tensors without a dimension) may
be mixed in.
"""

from __future__ import annotations

import torch
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

NAME = "meta"


class Elsewhere(torch.Tensor):
    """A tensor of that device."""

    hidden: torch.Tensor

    @staticmethod
    def __new__(cls, hidden: torch.Tensor) -> Elsewhere:
        outer = torch.Tensor._make_wrapper_subclass(
            cls,
            hidden.size(),
            strides=hidden.stride(),
            storage_offset=hidden.storage_offset(),
            dtype=hidden.dtype,
            device=NAME,
            requires_grad=hidden.requires_grad,
        )
        outer.hidden = hidden
        return outer

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})


class OtherDevice(TorchDispatchMode):
    """While it is active the device exists."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})


def run(func, args, kwargs):
    given = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, torch.Tensor)]
    asked = kwargs.get("device")
    moves = func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
    strange = [t for t in given if not isinstance(t, Elsewhere) and t.dim() > 0]
    here = [t for t in given if isinstance(t, Elsewhere)]
    if here and strange and not moves:
        raise AssertionError(f"{func} meets a tensor of the CPU, of shape {tuple(strange[0].shape)}")
    inner = {id(t.hidden): t for t in here}
    there = torch.device(asked).type == NAME if asked is not None else bool(here)
    if asked is not None:
        kwargs = {**kwargs, "device": "cpu"}
    out = func(*unwrapped(args), **unwrapped(kwargs))
    if here and torch.Tag.inplace_view in func.tags:
        # The outer tensor's shape changes with the hidden one's.
        with no_dispatch():
            func(*args, **kwargs)

    def wrapped(value):
        if not isinstance(value, torch.Tensor):
            return value
        if id(value) in inner:
            return inner[id(value)]
        return Elsewhere(value) if there else value

    return tree_map(wrapped, out)


def unwrapped(values):
    return tree_map(lambda value: value.hidden if isinstance(value, Elsewhere) else value, values)
