import json
import math
import warnings

import numpy as np
import pytest
import torch
from sklearn.metrics import jaccard_score, precision_recall_fscore_support

from gfm_hf.metrics import change_detection
from gfm_hf.metrics.change_detection import compute, count_pairs, merge, new_state, update


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def random_maps(seed, changed=0.2, shape=(3, 6, 7)):
    generator = np.random.default_rng(seed)
    true = (generator.random(shape) < changed).astype(np.uint8)
    found = np.where(generator.random(shape) < 0.7, true, generator.random(shape) < changed)
    return found, np.where(generator.random(shape) < 0.1, 255, true)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("changed", [0.0, 0.03, 0.5, 1.0])
def test_like_scikit_learn(seed, changed):
    found, true = random_maps(seed, changed)
    scores = compute(update(new_state(), found, true))
    kept = true != 255
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        options = {"labels": [1], "zero_division": np.nan}
        theirs = precision_recall_fscore_support(true[kept], found[kept], **options)
        iou = jaccard_score(true[kept], found[kept], zero_division=0)
    ours = [scores["precision"], scores["recall"], scores["f1"]]
    np.testing.assert_allclose(ours, [value[0] for value in theirs[:3]], rtol=1e-12)
    if (found[kept] | true[kept]).any():
        assert scores["iou"] == pytest.approx(iou)
    else:
        assert math.isnan(scores["iou"])


def test_counts():
    state = update(new_state(), [1, 1, 1, 0, 0, 0, 1], [1, 1, 0, 1, 0, 0, 255])
    assert state.dtype == np.int64 and state.tolist() == [2, 1, 1, 2]
    assert compute(state) == {"precision": 2 / 3, "recall": 2 / 3, "f1": 2 / 3, "iou": 0.5}


def test_nothing_under_the_fraction_is_nan():
    missed = compute(update(new_state(), [0, 0], [1, 0]))
    assert math.isnan(missed["precision"]) and (missed["recall"], missed["f1"], missed["iou"]) == (0, 0, 0)
    invented = compute(update(new_state(), [1, 0], [0, 0]))
    assert math.isnan(invented["recall"]) and (invented["precision"], invented["f1"], invented["iou"]) == (0, 0, 0)
    for found, true in [([0, 0], [0, 0]), ([1, 7], [255, 255]), ([], [])]:
        assert all(math.isnan(value) for value in compute(update(new_state(), found, true)).values())


def test_batches_add_up_in_any_order_and_leave_their_state():
    batches = [random_maps(seed) for seed in range(4)]
    whole = update(new_state(), *(np.concatenate(maps) for maps in zip(*batches)))
    states = [update(new_state(), *batch) for batch in batches]
    assert (merge(states) == whole).all() and (merge(states[::-1]) == whole).all()
    assert (merge([merge(states[:3]), states[3], new_state()]) == whole).all()
    before = states[0].copy()
    update(states[0], *batches[1])
    assert (states[0] == before).all() and (merge([]) == 0).all()
    json.dumps(compute(whole), allow_nan=False)


def test_pairs_count_as_the_maps():
    found, true = random_maps(1)
    *pairs, pixels = count_pairs(found, true)
    assert len(pixels) <= 6 and pixels.sum() == true.size
    assert (update(new_state(), *pairs, pixels=pixels) == update(new_state(), found, true)).all()


def test_tensors_and_bools():
    found, true = random_maps(2)
    state = update(new_state(), found, true)
    assert (update(new_state(), torch.from_numpy(found), torch.from_numpy(true).long()) == state).all()
    assert update(new_state(), np.array([True, False]), np.array([True, True])).tolist() == [1, 0, 1, 0]


@pytest.mark.parametrize(
    ("found", "true", "options", "message"),
    [
        ([0, 1], [0, 1, 1], {}, r"\(2,\) and references \(3,\)"),
        ([0, 2], [0, 1], {}, "predictions has the label 2"),
        ([0, 255], [0, 1], {}, "predictions has the label 255"),
        ([0, 1], [0, -1], {}, "references has the label -1"),
        ([0, 1], [0, 255], {"ignore_index": None}, "references has the label 255"),
        ([0.2, 0.9], [0, 1], {}, "dtype float64"),
        (None, [0, 1], {}, "dtype object"),
    ],
)
def test_mistakes(found, true, options, message):
    with pytest.raises(ValueError, match=message):
        change_detection.update(new_state(), found, true, **options)
