"""The path of full-size photographs, at 299 x 299 with the paper's networks, on real ones."""

import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from cdvae_ray import attacks, detectors
from cdvae_ray.config.presets import preset
from cdvae_ray.core.features import features_of_essential, pooled_layers
from cdvae_ray.data.stream_order import StreamOrder
from cdvae_ray.data.stream_read import assemble, read_chunk
from cdvae_ray.data.streamed import open_streamed
from cdvae_ray.training.cdvae_task import CdvaeTask
from cdvae_ray.training.state import TrainState

pytestmark = [
    pytest.mark.skipif(
        "CDVAE_IMAGENET_SAMPLE" not in os.environ,
        reason="CDVAE_IMAGENET_SAMPLE is not set to a folder with restricted ImageNet in Parquet",
    ),
    pytest.mark.timeout(120),
]


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """The photographs as both halves, in row groups as jobs/prepare_data.py writes them."""
    folder = tmp_path_factory.mktemp("photographs")
    (file, *_) = sorted(Path(os.environ["CDVAE_IMAGENET_SAMPLE"]).glob("test*.parquet"))
    table = pq.read_table(file)
    for split in ("train", "test"):
        pq.write_table(table, folder / f"{split}-0.parquet", row_group_size=100)
    return folder


def test_decode_crop_train_attack_and_detect(shards):
    config = preset("restricted-imagenet")
    size = config.data.image_size
    images = open_streamed(str(shards), size, max_corrupt_fraction=0.0, say=lambda line: None)
    assert (len(images), images.num_classes, size) == (203, 203, 299)
    order = StreamOrder(
        [group.rows for group in images.groups],
        global_batch_size=4,
        lanes=4,
        seed=0,
        rank=0,
        world_size=1,
    )
    # Every photograph is decoded and cropped once, the grey-scale one among them.
    min_area = config.augmentation.min_crop_area
    chunks = [
        read_chunk(images, chunk, min_crop_area=min_area, seed=0, epoch=0)
        for chunk in order.chunks(0)
    ]
    batches = list(assemble(iter(chunks), order))
    assert len(batches) == 50
    assert not any(chunk.corrupt for chunk in chunks)
    ids = torch.cat([batch.image_ids for batch in batches])
    assert len(ids.unique()) == len(ids) == 200
    assert batches[0].images.shape == (4, 3, 299, 299)

    task = CdvaeTask(
        model=config.model,
        objective=config.objective,
        training=config.training,
        augmentation=config.augmentation,
        image_size=size,
        class_names=images.class_names,
    )
    state = TrainState(task, torch.device("cpu"))
    before = {name: value.clone() for name, value in state.model.named_parameters()}
    sums = state.train_step(batches[0], epoch=0, index=0)
    assert all(torch.isfinite(value) for value in sums.values())
    moved = [not torch.equal(before[name], now) for name, now in state.model.named_parameters()]
    assert all(moved)
    assert 1 <= state.end_epoch(epoch=0)["train_codes_used"] <= config.model.codebook_size

    model = state.model.eval()
    clean, labels = batches[1].on(torch.device("cpu"))
    parts = model.decompose(clean)
    torch.testing.assert_close(parts.class_redundant + parts.class_essential, clean)
    result = attacks.pgd(
        model.classify_essential, clean, labels, epsilon=8 / 255, num_steps=1, seed=0
    )
    distance = (result.images - clean).abs().amax().item()
    assert 0 < distance <= 8 / 255 + 1e-6
    assert result.images.min() >= 0 and result.images.max() <= 1

    with torch.inference_mode():
        found = features_of_essential(model, torch.cat([clean, result.images]))
    layers = pooled_layers(found)
    assert layers[-1] == "layer4" and found["layer4"].shape == (8, 2048)
    two = torch.tensor([0, 0, 1, 1])
    for layer in layers:
        fitted = detectors.fit_mahalanobis(detectors.class_moments(found[layer][:4], two, 2))
        scores = fitted.score(found[layer])
        assert scores.shape == (8,) and torch.isfinite(scores).all()
