import json
import math
import warnings

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, confusion_matrix, jaccard_score, precision_recall_fscore_support

from gfm_hf.metrics.mean_iou import compute, count_pairs, merge, new_state, update


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def random_maps(seed, present=5, shape=(3, 6, 7)):
    """Ids below `present`, some predicted wrongly, some to be ignored."""
    generator = np.random.default_rng(seed)
    true = generator.integers(0, present, shape)
    found = np.where(generator.random(shape) < 0.6, true, generator.integers(0, present, shape))
    return found.astype(np.uint8), np.where(generator.random(shape) < 0.1, 255, true)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("present", [1, 4, 6])
def test_like_scikit_learn(seed, present):
    found, true = random_maps(seed, present)
    true[true == seed % 4] = 255  # one class is predicted only, or nowhere
    kept = true != 255
    state = update(new_state(6), found, true)
    scores = compute(state)
    if not kept.any():
        assert state.sum() == 0
        return
    labels = list(range(6))
    assert (state == confusion_matrix(true[kept], found[kept], labels=labels)).all()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = precision_recall_fscore_support(true[kept], found[kept], labels=labels, zero_division=np.nan)
        ious = jaccard_score(true[kept], found[kept], labels=labels, average=None, zero_division=0)
    for name, values in zip(("precision", "recall", "f1"), theirs):
        np.testing.assert_allclose(scores[f"per_class_{name}"], values, rtol=1e-12)
    ious[[not (found[kept] == k).any() and not (true[kept] == k).any() for k in labels]] = np.nan
    np.testing.assert_allclose(scores["per_class_iou"], ious, rtol=1e-12)
    assert scores["mean_iou"] == pytest.approx(np.nanmean(ious))
    assert scores["mean_accuracy"] == pytest.approx(np.nanmean(theirs[1]))
    assert scores["overall_accuracy"] == pytest.approx(accuracy_score(true[kept], found[kept]))


def test_known_matrix():
    state = update(new_state(3), [[0, 0, 1], [1, 0, 2]], [[0, 0, 1], [0, 255, 1]])
    assert state.dtype == np.int64 and state.tolist() == [[2, 1, 0], [0, 1, 1], [0, 0, 0]]
    scores = compute(state)
    assert scores["per_class_iou"] == [2 / 3, 1 / 3, 0]
    assert scores["mean_iou"] == pytest.approx(1 / 3) and scores["overall_accuracy"] == 0.6
    assert scores["per_class_recall"][:2] == [2 / 3, 1 / 2] and math.isnan(scores["per_class_recall"][2])
    assert scores["mean_accuracy"] == pytest.approx(7 / 12)


def test_absent_classes_are_left_out():
    scores = compute(update(new_state(4), [0, 1], [0, 1]))
    assert scores["mean_iou"] == 1 and scores["mean_accuracy"] == 1
    assert np.isnan(scores["per_class_iou"]).tolist() == [False, False, True, True]


@pytest.mark.parametrize(("found", "true"), [([], []), ([9, -3], [255, 255])])
def test_nothing_that_counts_is_nan(found, true):
    for value in compute(update(new_state(2), found, true)).values():
        assert np.isnan(value).all()


def test_an_ignored_class_has_no_score_but_costs_the_others():
    found, true = [0, 1, 1, 0, 2], [0, 0, 1, 1, 2]
    scores = compute(update(new_state(3), found, true, ignore_index=0), ignore_index=0)
    assert math.isnan(scores["per_class_iou"][0]) and math.isnan(scores["per_class_f1"][0])
    assert scores["per_class_iou"][1:] == [0.5, 1.0] and scores["mean_iou"] == 0.75
    assert scores["overall_accuracy"] == pytest.approx(2 / 3)


def test_batches_add_up_in_any_order_and_leave_their_state():
    batches = [random_maps(seed) for seed in range(4)]
    whole = update(new_state(5), *(np.concatenate(maps) for maps in zip(*batches)))
    states = [update(new_state(5), *batch) for batch in batches]
    assert (merge(states) == whole).all() and (merge(states[::-1]) == whole).all()
    assert (merge([merge(states[:3]), states[3]]) == whole).all()
    before = states[0].copy()
    update(states[0], *batches[1])
    assert (states[0] == before).all()
    json.dumps(compute(whole), allow_nan=False)


def test_pairs_count_as_the_maps():
    found, true = random_maps(1)
    found[0, 0, 0] = 200  # predicted where it does not count
    true[0, 0, 0], true[0, 0, 1] = 255, -100
    *pairs, pixels = count_pairs(found, true)
    assert pixels.sum() == true.size and len(pixels) == len(set(zip(found.ravel(), true.ravel())))
    true[0, 0, 1] = 255
    kept = pairs[1] != -100
    by_pairs = update(new_state(5), pairs[0][kept], pairs[1][kept], pixels=pixels[kept])
    assert (by_pairs == update(new_state(5), found, true)).all()
    assert count_pairs(found.astype(np.uint8), true)[2].sum() == true.size


def test_pairs_may_come_twice():
    state = update(new_state(2), [1, 1, 0], [0, 0, 255], pixels=[3, 4, 5])
    assert state.dtype == np.int64 and state.tolist() == [[0, 7], [0, 0]]


def test_tensors():
    found, true = random_maps(2)
    state = update(new_state(5), torch.from_numpy(found), torch.from_numpy(true))
    assert (state == update(new_state(5), found, true)).all()


@pytest.mark.parametrize(
    ("found", "true", "options", "message"),
    [
        (np.zeros((1, 3, 2, 2), int), np.zeros((1, 2, 2), int), {}, r"\(1, 3, 2, 2\) and references \(1, 2, 2\)"),
        ([0, 3], [0, 1], {}, r"predictions has the id 3 .* expected 0\.\.2"),
        ([0, 255], [0, 1], {}, "predictions has the id 255"),
        ([0, 1], [0, -1], {}, "references has the id -1"),
        ([0, 1], [0, 255], {"ignore_index": None}, "references has the id 255"),
        ([0.5, 1.0], [0, 1], {}, "dtype float64"),
    ],
)
def test_mistakes(found, true, options, message):
    with pytest.raises(ValueError, match=message):
        update(new_state(3), found, true, **options)


def test_mistakes_with_states():
    with pytest.raises(ValueError, match="num_classes is 0"):
        new_state(0)
    with pytest.raises(ValueError, match=r"of \[2, 3\] classes"):
        merge([new_state(2), new_state(3)])
    with pytest.raises(ValueError, match="of no classes"):
        merge([])
    with pytest.raises(ValueError, match="check what is passed as a map"):
        count_pairs([0, 2**40], [0, 1])
