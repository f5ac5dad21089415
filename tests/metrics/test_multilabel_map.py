import json
import math
import warnings

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from gfm_hf.metrics import authors_batch_map
from gfm_hf.metrics.multilabel_map import compute, merge, new_state, update


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def random_batch(seed, count=40, digits=1):
    """Scores of 5 classes with many ties, labels of about a third of them."""
    generator = np.random.default_rng(seed)
    labels = generator.random((count, 5)) < 0.3
    return np.round(labels * 0.3 + generator.random((count, 5)), digits), labels


@pytest.mark.parametrize("digits", [0, 1, 9])
@pytest.mark.parametrize("seed", range(5))
def test_like_scikit_learn(seed, digits):
    scores, labels = random_batch(seed, digits=digits)
    results = compute(update(new_state(), scores, labels))
    per_class = average_precision_score(labels, scores, average=None)
    np.testing.assert_allclose(results["per_class_ap"], per_class, rtol=1e-12)
    assert results["macro_map"] == pytest.approx(per_class.mean())
    assert results["micro_map"] == pytest.approx(average_precision_score(labels, scores, average="micro"))


def test_known_order():
    # ranked: hit, miss, hit -> (1/1 + 2/3) / 2
    results = compute(update(new_state(), [[3.0], [2.0], [1.0]], [[1], [0], [1]]))
    assert results["per_class_ap"] == [pytest.approx(5 / 6)]
    # all equal: one threshold, the precision is the share of positives
    assert compute(update(new_state(), [[0.5]] * 4, [[1], [0], [0], [0]]))["micro_map"] == 0.25


def test_a_class_without_positives_is_left_out():
    scores, labels = random_batch(0)
    labels[:, 2] = False
    results = compute(update(new_state(), scores, labels))
    known = average_precision_score(np.delete(labels, 2, axis=1), np.delete(scores, 2, axis=1), average=None)
    assert math.isnan(results["per_class_ap"][2]) and results["macro_map"] == pytest.approx(known.mean())
    assert results["micro_map"] == pytest.approx(average_precision_score(labels.ravel(), scores.ravel()))


def test_no_positives_or_no_images_is_nan():
    for state in (new_state(), update(new_state(), np.zeros((0, 5)), np.zeros((0, 5)))):
        assert math.isnan(compute(state)["micro_map"]) and math.isnan(compute(state)["macro_map"])
    results = compute(update(new_state(), np.ones((3, 2)), np.zeros((3, 2))))
    assert np.isnan(results["per_class_ap"]).all() and math.isnan(results["micro_map"])


def test_batches_add_up_in_any_order_and_leave_their_state():
    batches = [random_batch(seed, count) for seed, count in enumerate((7, 20, 1))]
    whole = compute(update(new_state(), *(np.concatenate(parts) for parts in zip(*batches))))
    states = [update(new_state(), *batch) for batch in batches]
    assert compute(merge(states)) == whole == compute(merge(states[::-1]))
    assert compute(merge([update(states[0], *batches[1]), states[2], new_state()])) == whole
    assert len(states[0]) == 1
    json.dumps(whole, allow_nan=False)


def test_authors_mean_of_batches():
    # torchmetrics 1.9.0, labels and scores of random_batch(7), halved to lie in [0, 1]; three batches 16, 16, 8:
    # mean([binary_average_precision(scores[i:i+16].ravel(), labels[i:i+16].ravel()) for i in (0, 16, 32)]), then
    # binary_average_precision of all, and multilabel_average_precision(scores, labels, 5, average="macro").
    batches, micro, macro = 0.6550911864, 0.6360516548, 0.6341197491
    scores, labels = random_batch(7)
    assert authors_batch_map(scores / 2, labels, batch_size=16) == pytest.approx(batches, abs=1e-6)
    results = compute(update(new_state(), scores / 2, labels))
    assert (results["micro_map"], results["macro_map"]) == (
        pytest.approx(micro, abs=1e-6),
        pytest.approx(macro, abs=1e-6),
    )
    assert authors_batch_map(scores, labels, batch_size=100) == results["micro_map"]


def test_authors_mean_leaves_out_batches_without_positives():
    scores, labels = random_batch(1)
    labels[20:] = False
    assert authors_batch_map(scores, labels, 20) == authors_batch_map(scores[:20], labels[:20], 20)
    assert math.isnan(authors_batch_map(scores[20:], labels[20:], 20))
    assert math.isnan(authors_batch_map(scores[:0], labels[:0], 20))


def test_tensors_in_low_precision():
    scores, labels = random_batch(2, digits=0)
    state = update(new_state(), torch.from_numpy(scores).bfloat16().requires_grad_(), torch.from_numpy(labels).float())
    assert compute(state) == compute(update(new_state(), scores, labels))


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        ([0.1, 0.2], [0, 1], r"expected \(B, K\)"),
        ([[0.1, 0.2]], [[0, 1, 1]], r"\(1, 2\) and references \(1, 3\)"),
        ([[0.1, 0.2]], [[0, 2]], "multi-hot"),
        ([[0.1, math.nan]], [[0, 1]], "nan"),
        ([[0.1], [0.2, 0.3]], [[0], [1]], "predictions has rows of different lengths"),
        ([["a"]], [[0]], "dtype <U1"),
    ],
)
def test_mistakes(scores, labels, message):
    with pytest.raises(ValueError, match=message):
        update(new_state(), scores, labels)


def test_mistakes_with_states():
    one, two = update(new_state(), [[0.1]], [[1]]), update(new_state(), [[0.1, 0.2]], [[1, 0]])
    with pytest.raises(ValueError, match=r"expected \(B, 1\)"):
        update(one, [[0.1, 0.2]], [[1, 0]])
    with pytest.raises(ValueError, match=r"of \[1, 2\] classes"):
        merge([one, two])
    with pytest.raises(ValueError, match="batch_size is 0"):
        authors_batch_map([[0.1]], [[1]], batch_size=0)
