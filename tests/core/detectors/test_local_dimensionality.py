"""Local dimensionality and its neighbours against literal loops."""

import math

import numpy as np
import pytest
import torch

from cdvae_ray.core.detectors import neighbours as module
from cdvae_ray.core.detectors.local_dimensionality import (
    LARGEST_DIMENSIONALITY,
    dimensionality,
    fit_lid,
    reference_lid,
)
from cdvae_ray.core.detectors.neighbours import index_references, merge_nearest, nearest
from cdvae_ray.errors import ConfigError, DataError
from tests.core.detectors.synthetic import gaussian_classes

K = (2, 5, 20)


def loop_lid(distances, k):
    """-k / sum log(r_i / r_k) over the k smallest of a list."""
    closest = sorted(distances)[:k]
    return -k / sum(math.log(r / closest[-1]) for r in closest)


def distances_to(query, references):
    return [float(np.linalg.norm(query - reference)) for reference in references]


def test_scores_are_those_of_a_loop():
    references, _ = gaussian_classes(80)
    queries, _ = gaussian_classes(20, seed=1)
    detector = fit_lid(references, torch.arange(80))
    scores = detector.scores(queries, K)
    for row, query in zip(scores.tolist(), queries.numpy(), strict=True):
        distances = distances_to(query, references.numpy())
        assert row == pytest.approx([loop_lid(distances, k) for k in K], rel=1e-10)
    assert torch.equal(detector.score(queries, 5), scores[:, 1])


def test_a_query_is_left_out_by_its_id_and_by_nothing_else():
    references, _ = gaussian_classes(60)
    ids = torch.randperm(60, generator=torch.Generator().manual_seed(0)) + 100
    detector = fit_lid(references, ids)
    known = detector.scores(references[:10], K, query_ids=ids[:10])
    for index, row in enumerate(known.tolist()):
        others = np.delete(references.numpy(), index, axis=0)
        distances = distances_to(references[index].numpy(), others)
        assert row == pytest.approx([loop_lid(distances, k) for k in K], rel=1e-10)
    # An unknown id, or another image that is a copy, excludes nothing: it has a neighbour at 0.
    foreign = torch.full((10,), 7)
    found = detector.nearest(references[:10], 3, query_ids=foreign)
    assert torch.equal(found.distances[:, 0], torch.zeros(10, dtype=torch.float64))
    assert torch.equal(found.ids[:, 0], ids[:10])


def test_shards_merge_to_the_whole():
    references, _ = gaussian_classes(90)
    ids = torch.arange(90)
    queries = torch.cat([references[:10], gaussian_classes(20, seed=1)[0]])
    query_ids = torch.cat([ids[:10], torch.arange(500, 520)])
    whole = nearest(queries, index_references(references, ids), 20, query_ids=query_ids)
    merged = None
    for rows in (slice(0, 5), slice(5, 6), slice(6, 90)):
        index = index_references(references[rows], ids[rows])
        part = nearest(queries, index, 20, query_ids=query_ids)
        merged = part if merged is None else merge_nearest(merged, part, 20)
    assert torch.equal(merged.distances, whole.distances)
    assert torch.equal(merged.ids, whole.ids)
    index = index_references(references[5:6], ids[5:6])
    lonely = nearest(queries[5:6], index, 3, query_ids=query_ids[5:6])
    assert lonely.distances.tolist() == [[math.inf]] and lonely.ids.tolist() == [[-1]]
    with pytest.raises(DataError, match="neighbours to merge"):
        merge_nearest(whole, lonely, 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("spread", [1.0, 1e-3, 1e-6])
def test_neighbours_are_exact_far_from_the_origin_and_close_together(dtype, spread):
    # At the smaller spreads one far reference makes float32 products useless for the others.
    references, _ = gaussian_classes(300, 16, dtype=dtype)
    references, queries = references * spread + 30, gaussian_classes(15, 16, seed=1)[0] * spread
    references[0] = 1e3
    queries = queries.to(dtype) + 30
    found = nearest(queries, index_references(references, torch.arange(300)), 12)
    differences = queries[:, None].double() - references[None].double()
    expected = torch.linalg.vector_norm(differences, dim=2).sort(dim=1)
    torch.testing.assert_close(found.distances, expected.values[:, :12], rtol=1e-14, atol=0)
    exact_ids = torch.linalg.vector_norm(queries[:, None].double() - references[found.ids].double(),
                                         dim=2)  # fmt: skip
    torch.testing.assert_close(exact_ids, found.distances, rtol=1e-14, atol=0)


def test_the_certificate_sends_only_doubtful_queries_to_float64(monkeypatch):
    doubtful = []
    search = module._search

    def counted(queries, excluded, index, count):
        if index.points.dtype == torch.float64:
            doubtful.append(len(queries))
        return search(queries, excluded, index, count)

    monkeypatch.setattr(module, "_search", counted)
    references, _ = gaussian_classes(500, 16)
    queries, _ = gaussian_classes(15, 16, seed=1)
    queries[3] = 1e7  # so far that float32 cannot tell which reference is the nearest
    nearest(queries, index_references(references, torch.arange(500)), 10)
    assert doubtful == [1]
    references[0] = 1e6
    nearest(queries, index_references(references, torch.arange(500)), 10)
    assert doubtful == [1, 15]


def test_blocks_change_nothing(monkeypatch):
    references, _ = gaussian_classes(50)
    queries, _ = gaussian_classes(30, seed=1)
    detector = fit_lid(references, torch.arange(50))
    whole = detector.scores(queries, K)
    monkeypatch.setattr(module, "_BLOCK_ELEMENTS", 700)
    monkeypatch.setattr(module, "_DIFFERENCES", {"cpu": 300})
    assert torch.equal(detector.scores(queries, K), whole)


def test_uniform_balls_have_their_own_dimension():
    generator = torch.Generator().manual_seed(0)
    for dimension in (2, 6):
        plane = torch.randn(dimension, 20, generator=generator, dtype=torch.float64)
        points = torch.rand(4000, dimension, generator=generator, dtype=torch.float64) - 0.5
        queries = 0.2 * (torch.rand(200, dimension, generator=generator).double() - 0.5)
        basis = torch.linalg.qr(plane.T).Q.T  # the same ball, turned into 20 dimensions
        detector = fit_lid(points @ basis, torch.arange(4000))
        # (k - 1) / k times the estimate is unbiased; the median is robust against its tail.
        estimate = float(detector.score(queries @ basis, 50).median())
        assert abs(estimate - dimension) < 0.1 * dimension


def test_duplicates_and_equal_distances_have_stated_values():
    distances = torch.tensor(
        [[0.0, 1.0, 2.0, 4.0], [0.0, 0.0, 2.0, 4.0], [0.0, 0.0, 0.0, 0.0], [3.0, 3.0, 3.0, 3.0],
         [0.0, 5e-324, 1e-310, 2e-310]], dtype=torch.float64,
    )  # fmt: skip
    one, two, all_duplicates, equal, subnormal = dimensionality(distances, (4,))[:, 0].tolist()
    floor = math.log(torch.finfo(torch.float64).tiny)
    assert one == pytest.approx(4 / (4 * math.log(4) - math.log(8) - floor))
    assert 0 < two < one < 0.01
    assert all_duplicates == subnormal == 0
    assert equal == LARGEST_DIMENSIONALITY
    assert torch.isfinite(dimensionality(distances, (2, 3, 4))).all()


def test_gradients_are_right_and_finite_at_duplicates():
    references, _ = gaussian_classes(30, 4)
    queries, _ = gaussian_classes(5, 4, seed=1)
    detector = fit_lid(references, torch.arange(30))
    assert torch.autograd.gradcheck(lambda x: detector.scores(x, (3, 10)), queries.requires_grad_())
    copies = references[:3].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(detector.score(copies, 5).sum(), copies)
    assert torch.isfinite(gradient).all()


def test_the_reference_formula_drops_the_nearest_of_the_clean_minibatch():
    clean, _ = gaussian_classes(50, dtype=torch.float32)
    twins = clean + 0.1 * gaussian_classes(50, seed=1, dtype=torch.float32)[0]
    for queries in (clean, twins):
        scores = reference_lid(queries, clean, (5, 20), batch_size=15)
        for index, row in enumerate(scores.tolist()):
            batch = clean[index // 15 * 15 : index // 15 * 15 + 15].double().numpy()
            distances = sorted(distances_to(queries[index].double().numpy(), batch))[1:]
            sizes = (min(5, len(batch) - 1), min(20, len(batch) - 1))
            assert row == pytest.approx([loop_lid(distances, k) for k in sizes], rel=1e-9)


def test_what_cannot_be_fitted_or_searched_is_refused():
    features, _ = gaussian_classes(10)
    ids = torch.arange(10)
    for wrong_ids in (ids[:9], ids.float(), ids - 1, torch.zeros(10, dtype=torch.int64)):
        with pytest.raises(DataError, match="reference_ids"):
            fit_lid(features, wrong_ids)
    for wrong, message in (
        (features[:0], "empty"),
        (features * torch.nan, "NaN or infinity in 10 of 10 rows"),
        (features.int(), "floating"),
        (torch.ones(10, 3), "the same for all images"),
    ):
        with pytest.raises(DataError, match=message):
            fit_lid(wrong, ids[: len(wrong)])
    detector = fit_lid(features, ids)
    for k in ((), (1,), (5, 0)):
        with pytest.raises(ConfigError, match="num_neighbours"):
            detector.scores(features, k)
    with pytest.raises(DataError, match="got 10 besides the query itself, expected at least 11"):
        detector.score(features, 11)
    assert detector.score(features, 10).shape == (10,)
    with pytest.raises(DataError, match="got 9 besides the query itself"):
        detector.score(features, 10, query_ids=ids)
    with pytest.raises(DataError, match="query_ids"):
        detector.score(features, 3, query_ids=ids[:3])
    with pytest.raises(DataError, match=r"queries: got shape"):
        detector.score(features[:, :2], 3)
    with pytest.raises(ConfigError, match="num_neighbours: got 0"):
        nearest(features, detector.index, 0)
    with pytest.raises(ConfigError, match="batch_size"):
        reference_lid(features, features, (2,), batch_size=2)
    for queries, batch in ((features[:5], 5), (features, 9)):
        with pytest.raises(DataError, match="images for the reference"):
            reference_lid(queries, features, (2,), batch_size=batch)
