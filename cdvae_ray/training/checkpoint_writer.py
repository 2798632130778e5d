"""Checkpoints that a thread of rank 0 writes, and of which all ranks learn together."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

import torch

from cdvae_ray.errors import CdvaeError
from cdvae_ray.storage.store import Store
from cdvae_ray.training.checkpoint import Snapshot, checkpoint_name, write_checkpoint
from cdvae_ray.training.distributed import from_rank_zero, raise_together, rank
from cdvae_ray.training.epoch import EpochReport


class CheckpointWriter:
    """Writes one checkpoint at a time. A context: leaving it waits for the one in hand.

    Every rank calls every method at the same points of its training.

    Args:
        run: the run's folder.
        device: where the ranks' collectives run.
        on_written: called on every rank once a checkpoint is written, with its name and the report
            of its epoch.
    """

    def __init__(
        self, run: Store, device: torch.device, on_written: Callable[[str, EpochReport], None]
    ) -> None:
        self._run, self._device, self._on_written = run, device, on_written
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._report: EpochReport | None = None
        """Of the checkpoint in hand."""
        self._writing: Future[None] | None = None
        """Of rank 0."""

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._thread.shutdown()

    def begin(self, report: EpochReport, take_snapshot: Callable[[], Snapshot]) -> None:
        """Takes a checkpoint in hand, none being there.

        Args:
            report: of its epoch.
            take_snapshot: called on rank 0, before this returns.
        """
        assert self._report is None
        self._report = report
        if rank() == 0:
            self._writing = self._thread.submit(write_checkpoint, self._run, take_snapshot())

    def settle(self, *, wait: bool) -> None:
        """Tells of the checkpoint in hand, if there is one.

        Args:
            wait: until it is written; otherwise one that is not yet stays in hand.

        Raises:
            CdvaeError: on all ranks together, if it could not be written.
        """
        if self._report is None or not (wait or self._is_over()):
            return
        report, writing = self._report, self._writing
        self._report = self._writing = None
        error = None
        if writing is not None:
            try:
                writing.result()
            except CdvaeError as trouble:
                error = trouble
        raise_together(error, self._device, doing="saving a checkpoint")
        self._on_written(checkpoint_name(report.epoch + 1), report)

    def _is_over(self) -> bool:
        """By rank 0's word."""
        over = self._writing is not None and self._writing.done()
        return bool(from_rank_zero(int(over), self._device))
