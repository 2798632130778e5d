"""A pool whose actors die of one task, however often they try: what it ends with, on stdout."""

import os
import sys

from cdvae_ray.cli import say
from cdvae_ray.config.attack_job import PoolConfig
from cdvae_ray.errors import AttackError
from cdvae_ray.runtime.pool import connect_pool, run_on_pool


class Mortal:
    def __init__(self, work):
        self.tries = work

    def __call__(self, batch):
        with open(self.tries, "a") as file:  # noqa: PTH123
            file.write("".join(f"{task}\n" for task in batch["task"]))
        if "poison" in batch["task"]:
            os._exit(1)
        return {"done": list(batch["task"])}


if __name__ == "__main__":
    pool = PoolConfig(cpus_per_worker=1)
    allocation = connect_pool(pool, say)
    try:
        for done in run_on_pool(
            ["a", "poison"],
            Mortal,
            sys.argv[1],
            pool=pool,
            allocation=allocation,
            what="attack generation",
        ):
            say(f"done {done}")
    except AttackError as error:
        say(f"error: {error}")
