"""Random numbers that are pure functions of their keys: the same on every device, in any batch, with any workers."""

import torch
from torch import Tensor

# Constants of splitmix64 (Steele, Lea & Flood 2014), as the signed 64-bit integers that torch has.
_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX2 = 0x94D049BB133111EB - (1 << 64)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64, whose own shift keeps the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift(x, 30)) * _MIX1
    x = (x ^ _shift(x, 27)) * _MIX2
    return x ^ _shift(x, 31)


def hash_keys(*keys: int | Tensor) -> Tensor:
    """Mix integers and broadcastable int64 tensors into one int64 hash, in their order."""
    state = torch.zeros((), dtype=torch.int64)
    for key in keys:
        if isinstance(key, Tensor):
            state = state.to(key.device)
        else:
            key = torch.tensor(key, dtype=torch.int64, device=state.device)
        state = _mix((state + _GOLDEN) ^ key * _MIX2)
    return state


def uniform(*keys: int | Tensor, count: int = 1) -> Tensor:
    """`count` numbers in [0, 1) for each key: a float32 tensor of the keys' shape and a last axis of `count`."""
    counter = torch.arange(1, count + 1, dtype=torch.int64)
    base = hash_keys(*keys).unsqueeze(-1)
    # 24 bits: every value is a float32, and 1.0 cannot be rounded to.
    return _shift(_mix(base + counter.to(base.device) * _GOLDEN), 40).float() * 2.0**-24


def generator(*keys: int) -> torch.Generator:
    """A CPU generator seeded by the keys."""
    return torch.Generator().manual_seed(int(_shift(hash_keys(*keys), 1)))
