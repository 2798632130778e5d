"""Small images in Parquet shards, some of which do not decode."""

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

CLASSES = ["dark", "bright", "red"]


def encoded(index, random):
    """A PNG of 26 x 30 pixels, and its label."""
    label = index % 3
    pixels = random.integers(0, 256, (30, 26, 3)) * 0.2
    pixels[..., 0 if label == 2 else slice(None)] += (20, 150, 150)[label]
    file = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(file, "PNG")
    return file.getvalue(), label


def write(path, count, *, seed, corrupt=()):
    """A shard in row groups of 16; the images numbered in `corrupt` are none."""
    random = np.random.default_rng(seed)
    rows = [encoded(index, random) for index in range(count)]
    images = [b"no image" if i in corrupt else data for i, (data, _) in enumerate(rows)]
    names = {"info": {"features": {"label": {"names": CLASSES, "_type": "ClassLabel"}}}}
    table = pa.table(
        {
            "image": pa.array(
                [{"bytes": data, "path": None} for data in images],
                pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
            ),
            "label": pa.array([label for _, label in rows], pa.int64()),
        }
    ).replace_schema_metadata({"huggingface": json.dumps(names)})
    pq.write_table(table, path, row_group_size=16)
