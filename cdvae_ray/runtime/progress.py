"""How far training has come, in lines that read well on a terminal and in a log file."""

from __future__ import annotations

import time
from collections.abc import Callable

from cdvae_ray.training.epoch import EpochReport, Progress

_NAMED = 5
"""Images that do not decode and are named; the others are counted, epoch by epoch."""


class ProgressLines:
    """One line an epoch, and one every so often within a long epoch.

    Args:
        epochs: epochs of the whole run.
        say: takes a line.
        quiet_seconds: the least time between two lines within an epoch.
    """

    def __init__(
        self, epochs: int, say: Callable[[str], None], *, quiet_seconds: float = 10.0
    ) -> None:
        self._epochs, self._say, self._quiet_seconds = epochs, say, quiet_seconds
        self._width = len(str(epochs))
        self._spoke = time.monotonic()
        self._corrupt = 0

    def resumed(self, epochs_done: int) -> None:
        """The run goes on after these epochs."""
        self._say(f"resuming after epoch {epochs_done} of {self._epochs}")

    def epoch(self, report: EpochReport) -> None:
        """An epoch is done."""
        metrics = report.metrics
        left = (self._epochs - report.epoch - 1) * report.seconds
        self._spoke = time.monotonic()
        # Of the loss's terms, those that the task has.
        terms = "".join(
            f"  {name} {metrics[f'train_{name}']:.4f}"
            for name in ("reconstruction", "kl", "codebook")
            if f"train_{name}" in metrics
        )
        self._say(
            f"{self._position(report.epoch)}  loss {metrics['train_loss']:.4f}{terms}"
            f"  accuracy {metrics['train_accuracy']:6.2%}"
            f"  {metrics['images_per_second']:,.0f} images/s  left {clock(left)}"
        )
        if report.epoch + 1 == self._epochs:
            self._say("evaluating on the test images")

    def corrupt(self, names: tuple[str, ...]) -> None:
        """Streamed images do not decode; only the first of them are named."""
        for name in names[: max(0, _NAMED - self._corrupt)]:
            self._say(f"  does not decode, another image takes its place: {name}")
        self._corrupt += len(names)

    def within_epoch(self, progress: Progress) -> None:
        """An epoch has come this far."""
        if time.monotonic() - self._spoke < self._quiet_seconds:
            return
        self._spoke = time.monotonic()
        done = progress.batches_done / progress.batches
        left = (self._epochs - progress.epoch - done) * progress.seconds / done
        self._say(
            f"{self._position(progress.epoch)}  {done:4.0%}"
            f"  {progress.images_per_second:,.0f} images/s  left {clock(left)}"
        )

    def _position(self, epoch: int) -> str:
        return f"epoch {epoch + 1:>{self._width}}/{self._epochs}"


def clock(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
