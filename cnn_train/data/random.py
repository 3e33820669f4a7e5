"""Random numbers that are pure functions of their keys: the same on every device, in any batch, with any workers."""

import torch
from torch import Tensor

# Constants of splitmix64 (Steele, Lea & Flood 2014).
_GOLDEN = 0x9E3779B97F4A7C15
_MIX1 = 0xBF58476D1CE4E5B9
_MIX2 = 0x94D049BB133111EB
_STREAM = 1024  # numbers that one key may give


def _signed(value: int) -> int:
    """The int64 of the same 64 bits."""
    value &= 2**64 - 1
    return value - (value >> 63 << 64)


def _mix(x: Tensor) -> Tensor:
    # The masks make logical shifts of int64's arithmetic ones.
    x = (x ^ ((x >> 30) & (2**34 - 1))) * _signed(_MIX1)
    x = (x ^ ((x >> 27) & (2**37 - 1))) * _signed(_MIX2)
    return x ^ ((x >> 31) & (2**33 - 1))


def _mix_int(x: int) -> int:
    x &= 2**64 - 1
    x = (x ^ (x >> 30)) * _MIX1 & (2**64 - 1)
    x = (x ^ (x >> 27)) * _MIX2 & (2**64 - 1)
    return x ^ (x >> 31)


def key(*parts: int) -> int:
    """Mix integers, in their order, into one of 64 bits, signed."""
    state = 0
    for part in parts:
        state = _mix_int((state + _GOLDEN) ^ (part * _MIX2))
    return _signed(state)


def uniform(*parts: int, indices: Tensor, count: int = 1) -> Tensor:
    """`count` numbers in [0, 1) for each index under a key of integers: indices (N) int64 -> (N, count) float32."""
    assert count <= _STREAM
    counter = torch.arange(count, device=indices.device) + indices.unsqueeze(1) * _STREAM
    # 24 bits: every value is a float32, and 1.0 cannot be rounded to.
    return ((_mix(counter * _signed(_GOLDEN) + key(*parts)) >> 40) & (2**24 - 1)) * 2.0**-24


def generator(*parts: int) -> torch.Generator:
    """A CPU generator seeded by a key."""
    return torch.Generator().manual_seed(key(*parts) & (2**63 - 1))


def seed_generators(*parts: int, device: torch.device) -> None:
    """Seed by a key the generators that torch draws from by default on `device`.

    `torch.manual_seed` seeds those of absent devices too, and formats a stack trace for each: 0.9 ms.
    """
    seed = key(*parts) & (2**63 - 1)
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)
