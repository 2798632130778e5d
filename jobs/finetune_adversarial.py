"""Fine-tunes a CD-VAE with D_G on adversarial examples of the defence D_G(G(x)).

python jobs/finetune_adversarial.py [preset] [--flag value ...]
"""

from __future__ import annotations

import sys

from cdvae_ray.cli import conclude_training, parse, run_job, say
from cdvae_ray.config.finetune_job import FinetuneJobConfig
from cdvae_ray.config.finetune_presets import FINETUNE_PRESETS, finetune_preset


def main() -> None:
    """Parses the command line, trains, prints and writes the final numbers."""
    name, config = parse(
        FinetuneJobConfig,
        sys.argv[1:],
        job="jobs/finetune_adversarial.py",
        presets={key: (each.summary, each.config) for key, each in FINETUNE_PRESETS.items()},
        default_preset="quickstart",
        choose=finetune_preset,
    )
    # Ray takes a second to import, which the help does not owe.
    from cdvae_ray.runtime.finetune import finetune

    outcome = finetune(config, preset=name, say=say)
    conclude_training(outcome, job="finetune_adversarial", stored="numbers", summary=config.summary)


if __name__ == "__main__":
    run_job(main)
