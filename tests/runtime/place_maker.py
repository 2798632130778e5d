"""A job whose actors ask for places without end, and how it ends: orderly, or killed.

python place_maker.py orderly|killed
python place_maker.py detached      an actor that outlives its job, with a group
python place_maker.py end-detached  its end
python place_maker.py look          the number of groups that hold places
python place_maker.py give-back     the number of groups that were given back

A place is a byte of memory: of thousands made and removed at once Ray's node now and then keeps one
for good, and a CPU's thousandth would be missed by the tests that need all of them.
"""

import os
import sys
import threading
import time

import ray
from ray.util.placement_group import (
    placement_group,
    placement_group_table,
    remove_placement_group,
)

from cdvae_ray.runtime.leftovers import end_own_actors, give_back_of_ended_jobs


def keep_making():
    while True:
        group = placement_group([{"memory": 1}])
        ray.get(group.ready())
        remove_placement_group(group)


@ray.remote(num_cpus=0)
class Maker:
    def begin(self):
        for _ in range(8):
            threading.Thread(target=keep_making, daemon=True).start()

    def one(self):
        self.group = placement_group([{"memory": 1}])
        ray.get(self.group.ready())


@ray.remote(num_cpus=0)
class Parent:
    """Between a driver and what makes groups, as a search's trial is."""

    def begin(self):
        self.maker = Maker.remote()
        ray.get(self.maker.begin.remote())


def main(how):
    ray.init(
        address=os.environ["RAY_ADDRESS"],
        namespace="places",
        log_to_driver=False,
        logging_level="ERROR",
    )
    if how == "look":
        groups = placement_group_table().values()
        sys.stdout.write(str(sum(each["state"] != "REMOVED" for each in groups)))
    elif how == "give-back":
        sys.stdout.write(str(give_back_of_ended_jobs()))
    elif how == "detached":
        ray.get(Maker.options(lifetime="detached", name="lasting").remote().one.remote())
    elif how == "end-detached":
        ray.kill(ray.get_actor("lasting"))
    else:
        parent = Parent.remote()
        ray.get(parent.begin.remote())
        time.sleep(1)
        if how == "killed":
            os._exit(1)
        end_own_actors()


if __name__ == "__main__":
    main(sys.argv[1])
