"""The authors' published layout, against an independent forward pass in plain functions."""

import pytest
import torch
from torch.nn import functional as F

from cdvae_ray import load_released_checkpoint
from cdvae_ray.config.model import ModelConfig
from cdvae_ray.core.cdvae import build_cdvae
from cdvae_ray.errors import CheckpointError

TEN = tuple("abcdefghij")
MEAN = torch.tensor((0.4914, 0.4822, 0.4465)).view(1, 3, 1, 1)
STD = torch.tensor((0.2470, 0.2435, 0.2616)).view(1, 3, 1, 1)


def released_state(width=8, latent=24, depth=16, widen=2, prefix=""):
    """A state dict with the key layout of the authors' CVAE_cifar and non-trivial statistics."""
    config = ModelConfig(
        vae_width=width,
        latent_size=latent,
        classifier_depth=depth,
        classifier_widen_factor=widen,
    )
    model = build_cdvae(config, image_size=32, class_names=TEN, seed=3)
    torch.manual_seed(3)
    model.train()
    for _ in range(3):
        model(torch.rand(16, 3, 32, 32))
    return {
        prefix + name.removeprefix("generator."): tensor.clone()
        for name, tensor in model.state_dict().items()
    }


def released_forward(s, images, depth):
    """The released network in eval mode, written from its description: (G(x), logits)."""

    def bn(x, name):
        return F.batch_norm(
            x,
            s[f"{name}.running_mean"],
            s[f"{name}.running_var"],
            s[f"{name}.weight"],
            s[f"{name}.bias"],
        )

    def conv(x, name, stride=1, padding=1):
        return F.conv2d(x, s[f"{name}.weight"], s.get(f"{name}.bias"), stride, padding)

    def res(x, name):
        h = bn(conv(F.leaky_relu(x), f"{name}.convs.1"), f"{name}.convs.2")
        return x + conv(F.leaky_relu(h), f"{name}.convs.4", padding=0)

    x = (images - MEAN) / STD
    h = F.relu(bn(conv(x, "encoder.0", 2), "encoder.1"))
    h = F.relu(bn(conv(h, "encoder.3", 2), "encoder.4"))
    h = res(bn(res(h, "encoder.6"), "encoder.7"), "encoder.8")
    mean = F.linear(h.flatten(1), s["fc11.weight"], s["fc11.bias"])
    h = F.linear(mean, s["fc21.weight"], s["fc21.bias"]).view(h.shape)
    h = bn(res(bn(res(h, "decoder.0"), "decoder.1"), "decoder.2"), "decoder.3")
    h = F.conv_transpose2d(h, s["decoder.4.weight"], stride=2, padding=1)
    h = F.leaky_relu(bn(h, "decoder.5"))
    h = F.conv_transpose2d(h, s["decoder.7.weight"], stride=2, padding=1)
    redundant = bn(torch.tanh(h), "xi_bn")
    h = conv(x - redundant, "classifier.conv1")
    for layer in (1, 2, 3):
        for block in range((depth - 4) // 6):
            name = f"classifier.layer{layer}.{block}"
            stride = 2 if layer > 1 and block == 0 else 1
            out = conv(F.relu(bn(h, f"{name}.bn1")), f"{name}.conv1")
            out = conv(F.relu(bn(out, f"{name}.bn2")), f"{name}.conv2", stride)
            if f"{name}.shortcut.0.weight" in s:
                h = conv(h, f"{name}.shortcut.0", stride, padding=0)
            h = out + h
    h = F.avg_pool2d(F.relu(bn(h, "classifier.bn1")), 8).flatten(1)
    return redundant, F.linear(h, s["classifier.linear.weight"], s["classifier.linear.bias"])


@pytest.mark.parametrize("prefix", ["", "module."])
def test_outputs_equal_the_released_network(tmp_path, prefix):
    torch.save(released_state(prefix=prefix), tmp_path / "weights.pth")
    model = load_released_checkpoint(tmp_path / "weights.pth")
    assert not model.training
    assert (model.config.vae_width, model.config.latent_size) == (8, 24)
    assert (model.config.classifier_depth, model.config.classifier_widen_factor) == (16, 2)
    images = torch.rand(4, 3, 32, 32)
    with torch.no_grad():
        redundant, logits = released_forward(released_state(), images, depth=16)
        parts = model.decompose(images)
    torch.testing.assert_close(parts.logits, logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(parts.class_redundant, redundant * STD + MEAN, rtol=1e-4, atol=1e-5)


def test_a_file_without_batch_counts_loads(tmp_path):
    state = released_state()
    old = {name: t for name, t in state.items() if not name.endswith("num_batches_tracked")}
    torch.save(old, tmp_path / "weights.pth")
    assert load_released_checkpoint(tmp_path / "weights.pth").config.vae_width == 8


def damaged(change):
    state = released_state()
    change(state)
    return state


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (lambda: damaged(lambda s: s.pop("decoder.2.convs.2.bias")), "missing keys"),
        (lambda: damaged(lambda s: s.update(extra=torch.zeros(1))), "left over"),
        (lambda: damaged(lambda s: s.update({"fc21.bias": torch.zeros(3)})), "of shape"),
        (lambda: damaged(lambda s: s.update({"module.x": torch.zeros(3)})), "prefix module"),
        (lambda: {"something": torch.zeros(1)}, "no tensor encoder"),
        (lambda: [1, 2], "no state dict"),
    ],
)
def test_anything_else_is_refused(tmp_path, content, complaint):
    torch.save(content(), tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match=complaint):
        load_released_checkpoint(tmp_path / "weights.pth")


def test_a_missing_or_truncated_file_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="no such file"):
        load_released_checkpoint(tmp_path / "nothing.pth")
    torch.save(released_state(), tmp_path / "whole.pth")
    (tmp_path / "half.pth").write_bytes((tmp_path / "whole.pth").read_bytes()[:5000])
    with pytest.raises(CheckpointError, match="unreadable"):
        load_released_checkpoint(tmp_path / "half.pth")


class _RanError(Exception):
    pass


class _Payload:
    def __reduce__(self):
        return _raise, ()


def _raise():
    raise _RanError


def test_nothing_in_the_file_is_executed(tmp_path):
    torch.save({"encoder.0.weight": _Payload()}, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match="unreadable"):
        load_released_checkpoint(tmp_path / "weights.pth")
