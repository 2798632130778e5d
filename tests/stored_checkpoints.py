"""Checkpoints of models that no training made."""

from cdvae_ray.training.checkpoint import take_snapshot, write_checkpoint


def save_checkpoint(run, state, **facts):
    """Writes a replica as it is now; `facts` are those of `take_snapshot`. Returns its name."""
    snapshot = take_snapshot(state, **facts)
    write_checkpoint(run, snapshot)
    return snapshot.name
