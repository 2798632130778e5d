"""The authors' published layouts, against independent forward passes in plain functions."""

import pytest
import torch
import torchvision
from torch.nn import functional as F

from cdvae_ray import load_released_checkpoint
from cdvae_ray.config.model import ModelConfig
from cdvae_ray.core.cdvae import build_cdvae
from cdvae_ray.errors import CheckpointError

TEN = tuple("abcdefghij")
MEAN = torch.tensor((0.4914, 0.4822, 0.4465)).view(1, 3, 1, 1)
STD = torch.tensor((0.2470, 0.2435, 0.2616)).view(1, 3, 1, 1)
IMAGENET_MEAN = torch.tensor((0.485, 0.456, 0.406)).view(1, 3, 1, 1)
IMAGENET_STD = torch.tensor((0.229, 0.224, 0.225)).view(1, 3, 1, 1)


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


@pytest.mark.parametrize("name", ["encoder.0.weight", "fc11.weight", "classifier.linear.weight"])
def test_an_ill_shaped_tensor_is_refused(tmp_path, name):
    path = tmp_path / "model.pth"
    torch.save({**released_state(), name: torch.zeros(7)}, path)
    with pytest.raises(CheckpointError, match="tensor shapes that no CVAE_cifar has"):
        load_released_checkpoint(path)


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


# --- CVAE_imagenet ------------------------------------------------------------------------------


def imagenet_state(width=8, codes=12, depth=18, classes=7, prefix=""):
    """A state dict of CVAE_imagenet, name by name as described, with torchvision's ResNet."""
    torch.manual_seed(3)
    state = {}

    def conv(name, shape, outputs):
        fan = shape[1] * shape[2] * shape[3]
        state[f"{name}.weight"] = torch.randn(shape) / fan**0.5
        state[f"{name}.bias"] = 0.1 * torch.randn(outputs)

    def bn(name, planes):
        state[f"{name}.weight"] = 0.5 + torch.rand(planes)
        state[f"{name}.bias"] = 0.1 * torch.randn(planes)
        state[f"{name}.running_mean"] = 0.1 * torch.randn(planes)
        state[f"{name}.running_var"] = 0.5 + torch.rand(planes)
        state[f"{name}.num_batches_tracked"] = torch.tensor(5)

    def res(name):
        conv(f"{name}.convs.1", (width, width, 3, 3), width)
        bn(f"{name}.convs.2", width)
        conv(f"{name}.convs.4", (width, width, 1, 1), width)

    conv("encoder.0", (width, 3, 4, 4), width)
    bn("encoder.1", width)
    conv("encoder.3", (width, width, 4, 4), width)
    bn("encoder.4", width)
    for place in (6, 8):
        res(f"encoder.{place}")
        bn(f"encoder.{place + 1}", width)
    state["emb.weight"] = torch.randn(width, codes)
    res("decoder.0")
    bn("decoder.1", width)
    res("decoder.2")
    conv("decoder.3", (width, width, 4, 4), width)
    bn("decoder.4", width)
    conv("decoder.6", (width, 3, 4, 4), 3)
    bn("L_bn", 3)
    for name, tensor in resnet(depth, classes).state_dict().items():
        state[f"classifier.{name}"] = tensor
    return {prefix + name: tensor for name, tensor in state.items()}


def resnet(depth, classes):
    """torchvision's network with statistics of its own, so that they show."""
    network = getattr(torchvision.models, f"resnet{depth}")(num_classes=classes)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    return network.eval()


def imagenet_forward(s, images):
    """The released G in eval mode, written from its description: (normalised x, G(x), codes)."""

    def bn(x, name):
        statistics = (s[f"{name}.running_mean"], s[f"{name}.running_var"])
        return F.batch_norm(x, *statistics, s[f"{name}.weight"], s[f"{name}.bias"])

    def conv(x, name, stride=1, padding=1):
        return F.conv2d(x, s[f"{name}.weight"], s[f"{name}.bias"], stride, padding)

    def up(x, name):
        return F.conv_transpose2d(x, s[f"{name}.weight"], s[f"{name}.bias"], 2, 1)

    def res(x, name):
        h = bn(conv(F.leaky_relu(x), f"{name}.convs.1"), f"{name}.convs.2")
        return x + conv(F.leaky_relu(h), f"{name}.convs.4", padding=0)

    size = images.shape[-1]
    x = (images - IMAGENET_MEAN) / IMAGENET_STD
    h = F.pad(x, (0, -size % 4, 0, -size % 4), mode="replicate")
    h = F.leaky_relu(bn(conv(h, "encoder.0", 2), "encoder.1"))
    h = F.leaky_relu(bn(conv(h, "encoder.3", 2), "encoder.4"))
    h = bn(res(bn(res(h, "encoder.6"), "encoder.7"), "encoder.8"), "encoder.9")
    places = h.permute(0, 2, 3, 1)
    codes = torch.cdist(places.flatten(0, 2), s["emb.weight"].t()).argmin(dim=1)
    h = s["emb.weight"].t()[codes].view_as(places).permute(0, 3, 1, 2)
    h = res(bn(res(h, "decoder.0"), "decoder.1"), "decoder.2")
    h = up(F.leaky_relu(bn(up(h, "decoder.3"), "decoder.4")), "decoder.6")
    return x, bn(torch.tanh(h), "L_bn")[..., :size, :size], codes


@pytest.mark.parametrize("prefix", ["", "module."])
def test_outputs_equal_the_released_imagenet_network(tmp_path, prefix):
    state = imagenet_state()
    torch.save(imagenet_state(prefix=prefix), tmp_path / "weights.pth")
    model = load_released_checkpoint(tmp_path / "weights.pth")
    assert not model.training
    images = torch.rand(2, 3, 299, 299)
    classifier = resnet(18, 7)
    classifier.load_state_dict(
        {
            name.removeprefix("classifier."): tensor
            for name, tensor in state.items()
            if name.startswith("classifier.")
        }
    )
    with torch.no_grad():
        normalized, redundant, codes = imagenet_forward(state, images)
        logits = classifier(normalized - redundant)
        parts = model.decompose(images)
    assert len(codes.unique()) > 3
    assert torch.equal(parts.latent.codes.flatten(), codes)
    torch.testing.assert_close(
        parts.class_redundant, redundant * IMAGENET_STD + IMAGENET_MEAN, rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(parts.logits, logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("width", "codes", "depth", "classes"), [(8, 12, 18, 7), (4, 30, 34, 10), (6, 16, 50, 203)]
)
def test_sizes_of_the_imagenet_network_are_those_of_its_tensors(
    tmp_path, width, codes, depth, classes
):
    state = imagenet_state(width, codes, depth, classes)
    torch.save({"state_dict": state}, tmp_path / "weights.pth")
    model = load_released_checkpoint(tmp_path / "weights.pth")
    assert model.config == ModelConfig(
        generator="vq_vae",
        vae_width=width,
        codebook_size=codes,
        classifier_network="resnet",
        classifier_depth=depth,
        classifier_widen_factor=1,
        classifier_dropout=0.0,
        pixel_mean=(0.485, 0.456, 0.406),
        pixel_std=(0.229, 0.224, 0.225),
    )
    assert (model.image_size, len(model.class_names)) == (299, classes)
    found = model.state_dict()
    assert len(found) == len(state)
    for name, tensor in state.items():
        assert torch.equal(found.get(name, found.get(f"generator.{name}")), tensor), name


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"L_bn.running_var": None}, r"missing keys \['generator.L_bn.running_var'\]"),
        ({"decoder.6.bias": None}, "missing keys"),
        ({"encoder.0.weight": None}, "no tensor encoder.0.weight"),
        ({"classifier.fc.weight": None}, "no tensor classifier.fc.weight"),
        ({"classifier.layer1.0.conv1.weight": None}, "no tensor classifier.layer1.0.conv1"),
        ({"extra": torch.zeros(1)}, r"keys left over \['extra'\]"),
        ({"fc11.weight": torch.zeros(3, 3)}, "keys left over"),
        ({"classifier.layer4.2.conv1.weight": torch.zeros(1)}, r"blocks \[2, 2, 2, 3\] that no"),
        (
            {"encoder.3.weight": torch.zeros(8, 7, 4, 4)},
            r"encoder.3.weight of shape \(8, 7, 4, 4\)",
        ),
        ({"emb.weight": torch.zeros(10, 12)}, "of shape"),
        ({"emb.weight": torch.zeros(7, 12)}, "shapes that no CVAE_imagenet has"),
        ({"emb.weight": torch.zeros(8, 1)}, "shapes that no CVAE_imagenet has"),
        ({"emb.weight": torch.zeros(8)}, "shapes that no CVAE_imagenet has"),
        ({"classifier.fc.weight": torch.zeros(1, 512)}, "shapes that no CVAE_imagenet has"),
    ],
)
def test_anything_else_with_codes_is_refused(tmp_path, changes, complaint):
    state = imagenet_state() | changes
    kept = {name: tensor for name, tensor in state.items() if tensor is not None}
    torch.save(kept, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match=complaint):
        load_released_checkpoint(tmp_path / "weights.pth")
