"""Features on Ray Data: one row an image, by layer, found again by the same settings."""

from __future__ import annotations

from dataclasses import dataclass

from cdvae_ray.config.feature_job import FeatureJobConfig, feature_set_identity
from cdvae_ray.config.serialize import to_dict
from cdvae_ray.data.images import ImageSet
from cdvae_ray.data.load import load_split
from cdvae_ray.errors import ConfigError
from cdvae_ray.evaluation.image_computations import FEATURE_PREFIX, FeatureColumns
from cdvae_ray.evaluation.image_source import ImageSource, StoredSet
from cdvae_ray.runtime.parts import Space, require_fit, space_of
from cdvae_ray.runtime.pool import Say
from cdvae_ray.runtime.row_sets import RowSetPlan, make_row_sets
from cdvae_ray.runtime.tracked import embedded_root, ending, require_lasting_places
from cdvae_ray.storage.adversarial_set import stored_set_facts
from cdvae_ray.storage.row_set import row_shards
from cdvae_ray.storage.store import Store
from cdvae_ray.tracking import open_writer


@dataclass(frozen=True, kw_only=True)
class ExtractOutcome:
    """What a feature job came to."""

    run_id: str | None
    config_digest: str
    metrics: dict[str, float]
    layers: dict[str, int]
    """Width of each layer's features."""
    features: str
    """The folder of the set."""


def extract_features(config: FeatureJobConfig, *, preset: str, say: Say) -> ExtractOutcome:
    """Runs on the driver. Extracts the features of a set of images, or finds them.

    Args:
        config: the job.
        preset: the name it was started from, for people.
        say: takes lines of progress.

    Raises:
        CdvaeError: anything that a person can put right, one line each.
    """
    require_lasting_places(config.storage, config.tracking)
    space = space_of(config)
    say(f"data: loading {config.data.source}")
    images = load_split(config.data, config.split)
    say(f"data: {images.name} {len(images):,} images")
    extractor = space.extractor
    require_fit("the network", extractor.class_names, extractor.image_size, images)
    mean, std = space.pixel_units
    source = ImageSource(
        kind=config.source,
        adversarial=_stored_set(config, images) if config.adversarial_set else None,
        seed=config.seed,
        noise_std=config.noise_std if config.source == "gaussian-noise" else 0.0,
        pixel_mean=mean,
        pixel_std=std,
    )
    plan = feature_plan(space, source, images, config.split, Store.at(config.storage))
    writer = open_writer(
        config.tracking,
        embedded_root=embedded_root(config.storage),
        run_name=f"features-{preset}-{plan.digest[:12]}",
        tags={"job": "extract_features", "preset": preset, "config_digest": plan.digest},
    )
    with ending(writer):
        writer.log_config(
            {
                **{name: to_dict(getattr(config, name)) for name in ("data", "pool")},
                "preset": preset,
                "space": config.space,
                "source": source.label,
                "split": config.split,
                "seed": config.seed,
                "checkpoint_digest": space.cdvae_digest or "",
                "classifier_digest": space.classifier_digest or "",
                "storage": config.storage,
            }
        )
        make_row_sets(
            [plan],
            {space.name: FeatureColumns(space.extractor)},
            pool=config.pool,
            doing="extracting features",
            overwrite=config.overwrite,
            say=say,
        )
        right, layers = 0, {}
        for rows in row_shards(plan.store, plan.kind):
            right += int((rows["prediction"] == rows["label"]).sum())
            layers = {
                name.removeprefix(FEATURE_PREFIX): values.shape[1]
                for name, values in rows.columns.items()
                if name.startswith(FEATURE_PREFIX)
            }
        metrics = {"images": float(len(images)), "accuracy": right / len(images)}
        writer.log_metrics(metrics, step=0)
        return ExtractOutcome(
            run_id=writer.run_id(timeout_seconds=15),
            config_digest=plan.digest,
            metrics=metrics,
            layers=layers,
            features=plan.store.uri,
        )


def feature_plan(
    space: Space, source: ImageSource, images: ImageSet, split: str, storage: Store
) -> RowSetPlan:
    """The set of features of some images in a space.

    Args:
        space: with its extractor.
        source: which images.
        images: the clean ones.
        split: which half of the dataset these are.
        storage: the storage root.
    """
    return RowSetPlan(
        label=f"{space.name} {split}, {source.label}",
        identity=feature_set_identity(
            space.name,
            source.identity(),
            cdvae_digest=space.cdvae_digest,
            classifier_digest=space.classifier_digest,
            images_digest=images.digest,
            split=split,
        ),
        root=storage.child("features"),
        source=source,
        images=images,
        image_ids=range(len(images)),
        computation=space.name,
        labels={"space": space.name},
    )


def _stored_set(config: FeatureJobConfig, images: ImageSet) -> StoredSet:
    store = Store.at(config.adversarial_set)
    facts = stored_set_facts(store)
    if facts is None:
        raise ConfigError(
            "adversarial_set",
            got=f"no complete set at {config.adversarial_set}",
            expected=f"a set of {images.name}",
            remedy="make one by jobs/attack.py",
        )
    if facts["identity"]["images"] != images.digest:
        raise ConfigError(
            "adversarial_set",
            got=f"one of images {facts['identity']['images'][:12]}",
            expected=f"one of {images.name} ({images.digest[:12]})",
            remedy="set --data.* and --split as for jobs/attack.py, or choose another set",
        )
    return StoredSet(
        store=store,
        identity_digest=facts["identity_digest"],
        content_digest=facts["content_digest"],
        shard_size=int(facts["shard_size"]),
        attack=facts["label"],
        threat_model=facts["threat_model"],
    )
