"""Every job on a VQ-VAE and ResNets, as on restricted ImageNet: no special case anywhere."""

import pytest

from .conftest import summary
from .parquet_images import write

pytestmark = pytest.mark.jobs
IMAGES = (
    *("--data.source", "parquet", "--data.path", "images", "--data.image-size", "24"),
    *("--data.train-limit", "None", "--data.test-limit", "None"),
)
QUIET = ("--tracking.no-enabled",)
POOL = ("--pool.cpus-per-worker", "1")
TRAINING = (
    *("--training.epochs", "2", "--training.cosine-period-epochs", "2"),
    *("--training.global-batch-size", "30", "--resources.cpus-per-worker", "1"),
)


class Chain:
    """Jobs one after another in one folder, each given the models of those before."""

    def __init__(self, cluster, folder):
        self.cluster, self.folder = cluster, folder
        self.checkpoints = {}

    def run(self, job, *arguments, name=""):
        done = self.cluster.train(
            self.folder, *arguments, *IMAGES, *QUIET, "--summary", "summary.json", job=job
        )
        assert done.returncode == 0, done.stdout + done.stderr
        found = summary(self.folder / "summary.json")
        self.checkpoints[name] = found["checkpoint"]
        return done.stdout, found["metrics"]


@pytest.fixture(scope="module")
def chain(cluster, tmp_path_factory):
    """A CD-VAE and classifiers of x and of G(x), after two epochs."""
    folder = tmp_path_factory.mktemp("restricted")
    (folder / "images").mkdir()
    write(folder / "images" / "train-0.parquet", 180, seed=0)
    write(folder / "images" / "test-0.parquet", 90, seed=1)
    chain = Chain(cluster, folder)
    small = ("--model.vae-width", "4", "--evaluation.attack-images", "8")
    chain.run("train", "restricted-smoke", *small, *TRAINING, name="cdvae")
    plain = ("restricted-smoke", *TRAINING)
    chain.run("train_classifier", *plain, name="x")
    behind = ("--cdvae", chain.checkpoints["cdvae"])
    chain.run("train_classifier", *plain, "--input", "class_redundant", *behind, name="G(x)")
    return chain


def test_either_part_is_attacked(chain):
    for threat_model in ("class-essential", "class-redundant"):
        models = ("--checkpoint", chain.checkpoints["cdvae"])
        if threat_model == "class-redundant":
            models += ("--classifier", chain.checkpoints["G(x)"])
        output, _ = chain.run("attack", "smoke", "--threat-model", threat_model, *models, *POOL)
        assert "PGD-Linf" in output


def test_detection_has_a_table(chain):
    output, metrics = chain.run(
        "detect",
        *("smoke", "--checkpoint", chain.checkpoints["cdvae"]),
        *("--classifier", chain.checkpoints["x"], *POOL),
    )
    assert "MD(R(x))" in output
    assert metrics


def test_the_study_has_every_part(chain):
    output, _ = chain.run(
        "analyze",
        *("smoke", "--checkpoint", chain.checkpoints["cdvae"]),
        *("--classifier", chain.checkpoints["x"]),
        *("--redundant-classifier", chain.checkpoints["G(x)"], *POOL),
    )
    for title in ("Table 1", "Table 2", "Table 3", "Figure 3"):
        assert title in output


def test_defences_are_trained_and_attacked(chain):
    few = ("--training.epochs", "1", "--training.global-batch-size", "30")
    threads = ("--resources.cpus-per-worker", "1")
    chain.run(
        "finetune_adversarial",
        *("smoke", "--cdvae", chain.checkpoints["cdvae"], "--classifier", chain.checkpoints["x"]),
        *(*few, *threads, "--attack.num-steps", "2"),
        name="ours",
    )
    for baseline in ("at-pgd-linf", "hgd"):
        chain.run(
            "train_baseline",
            *("smoke", "--baseline", baseline, "--classifier", chain.checkpoints["x"]),
            *(*few, *threads, "--recipe.num-steps", "2"),
            name=baseline,
        )
    rows = [f"{name}={chain.checkpoints[name]}" for name in ("ours", "at-pgd-linf", "hgd")]
    output, _ = chain.run("evaluate_defense", "smoke", "--defenses", *rows, *POOL)
    for name in ("ours", "at-pgd-linf", "hgd"):
        assert name in output
