"""Metrics as exact sums and counts, so that they add up over batches, shards and ranks."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor


class Tally:
    """Named per-image sums with the number of images behind them.

    Sums stay on their device in float64, so that adding needs no host synchronisation.

    Args:
        device: where the summed values live.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self._device = torch.device(device)
        self._names: tuple[str, ...] = ()
        self._sums = torch.zeros(0, dtype=torch.float64, device=self._device)
        self.count = 0

    def add(self, sums: Mapping[str, Tensor], count: int) -> None:
        """Adds sums over `count` more images; the names must be the same at every call."""
        if not self._names:
            self._names = tuple(sums)
            self._sums = torch.zeros(len(sums), dtype=torch.float64, device=self._device)
        assert tuple(sums) == self._names, f"names changed from {self._names} to {tuple(sums)}"
        self._sums += torch.stack([value.detach().double() for value in sums.values()])
        self.count += count

    def reduce(self, all_reduce_sum: Callable[[Tensor], Tensor], names: tuple[str, ...]) -> None:
        """Sums over all ranks, each of which must call this with the same names.

        Args:
            all_reduce_sum: returns the element-wise sum of a tensor over all ranks.
            names: the names, for a rank that was given no image and so never added.
        """
        if not self._names:
            self._names = names
            self._sums = torch.zeros(len(names), dtype=torch.float64, device=self._device)
        assert self._names == names, f"names {self._names}, expected {names}"
        count = torch.tensor([self.count], dtype=torch.float64, device=self._device)
        total = all_reduce_sum(torch.cat([self._sums, count]))
        self._sums, self.count = total[:-1], int(total[-1].item())

    def sums(self) -> dict[str, float]:
        """The sums by name."""
        return dict(zip(self._names, self._sums.tolist(), strict=True))

    def means(self) -> dict[str, float]:
        """Each sum divided by the number of images."""
        assert self.count > 0, "no image was added"
        return {name: value / self.count for name, value in self.sums().items()}
