"""The paper's CIFAR-10 experiment on one device in the time there is, piece by piece.

At home, once:     python benchmarks/paper_scale.py prepare --data FOLDER --out PREPARED [--encoded]
On the device:     python benchmarks/paper_scale.py --data PREPARED --out OUT --budget-seconds N
At home, at last:  python benchmarks/paper_scale.py combine --out OUT

The second command needs torch, NumPy and this package's folder on PYTHONPATH (for images that were
prepared with --encoded also Pillow or torchvision), but neither Ray nor MLflow. It measures the
speed of the training step, decides by it how many epochs fit into --plan-seconds, trains the
CD-VAE and the classifiers of x and G(x), and fills Tables 1-4 and 6. A call that runs out of its
budget, or is killed, is gone on with by the same command. OUT gets summary.json, pictures.png and
scores.safetensors, all small; checkpoints lie in --state (OUT/state), 0.2 GB a finished network and
three times that of one in training. The third fits what needs scikit-learn, the logistic
regressions of the paper's detectors, to the scores.

The paper's Table 6 is of a CD-VAE of its own, with gamma 0.002. Beside a finished OUT:
  mkdir -p OUT6/state; cp -r OUT/state/speed OUT/state/plan OUT/state/classifier-x OUT6/state
  python benchmarks/paper_scale.py --data PREPARED --out OUT6 --budget-seconds N --gamma 0.002 \\
      --stages cdvae classifier-g tables --tables 6
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from paper_scale_parts.prepared import prepare
from paper_scale_parts.run import PROFILE, STAGES, Arguments, run
from paper_scale_parts.scale_preset import SCALE_PRESETS
from paper_scale_parts.tables import TABLES

from cdvae_ray.errors import CdvaeError


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one of the three commands; returns the exit code."""
    started = time.perf_counter()
    given = list(sys.argv[1:] if arguments is None else arguments)
    command = given.pop(0) if given[:1] in (["prepare"], ["combine"], ["run"]) else "run"
    parser = argparse.ArgumentParser(
        prog=f"paper_scale.py {command}",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, help="folder that gets the results")
    if command == "prepare":
        parser.add_argument("--data", type=Path, required=True, help="Parquet or torchvision files")
        parser.add_argument("--encoded", action="store_true", help="keep Parquet's JPEG or PNG")
    elif command == "combine":
        parser.add_argument("--resamples", type=int, default=1000, help="behind the intervals")
    else:
        _add_run(parser)
    chosen = parser.parse_args(given)
    try:
        if command == "prepare":
            index = prepare(chosen.data, chosen.out, encoded=chosen.encoded)
            for name, split in index["splits"].items():
                size = sum(part["bytes"] for part in split["parts"]) / 2**20
                print(
                    f"{name}: {split['images']} images, {len(split['parts'])} files, {size:.1f} MiB"
                )
        elif command == "combine":
            from paper_scale_parts.combine import combine

            count = combine(chosen.out, resamples=chosen.resamples)
            print(f"{count} rows in {chosen.out / 'combined.json'}")
        else:
            run(Arguments(**vars(chosen)), started=started)
    except CdvaeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _add_run(parser: argparse.ArgumentParser) -> None:
    summaries = "; ".join(f"{name}: {each.summary}" for name, each in SCALE_PRESETS.items())
    parser.add_argument("--preset", default="paper", help=summaries)
    parser.add_argument(
        "--data", required=True, help="what prepare wrote, unprepared images, or: synthetic"
    )
    parser.add_argument("--state", type=Path, help="folder of checkpoints (default: OUT/state)")
    parser.add_argument("--budget-seconds", type=float, required=True, help="of this call")
    parser.add_argument(
        "--plan-seconds",
        type=float,
        help="of all calls together, by which epochs are planned once (default: the first budget)",
    )
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto")
    parser.add_argument(
        "--stages",
        nargs="+",
        choices=(*STAGES, PROFILE),
        default=list(STAGES),
        help=f"in this order (all but {PROFILE})",
    )
    parser.add_argument("--tables", nargs="+", choices=TABLES, help="rows of these alone (all)")
    parser.add_argument("--gamma", type=float, help="another weight of the classification")
    parser.add_argument(
        "--recalibration-steps",
        type=int,
        default=0,
        help="batches from which trained networks take their statistics anew, without dropout (0)",
    )


if __name__ == "__main__":
    sys.exit(main())
