import json

import numpy as np
import pytest

from gfm_hf.data.splits import cut_off, nested_subset, part_of_name, subset_with_repetition


CLASSES = np.repeat([0, 1, 2, 3], [100, 40, 3, 1])


def counts(positions):
    return np.bincount(CLASSES[positions], minlength=4).tolist()


def test_parts_take_the_same_share_of_every_class():
    validation, test, rest = cut_off(CLASSES, [0.1, 0.2], seed=0)
    assert counts(validation) == [10, 4, 1, 0]
    assert counts(test) == [20, 8, 1, 0]
    assert counts(rest) == [70, 28, 1, 1]  # a class never leaves training
    assert sorted(np.concatenate([validation, test, rest]).tolist()) == list(range(len(CLASSES)))


def test_parts_depend_on_the_seed_alone():
    first, again, other = (cut_off(CLASSES, [0.2], seed)[0].tolist() for seed in (0, 0, 1))
    assert first == again != other


def test_subsets_are_nested_and_keep_every_class():
    smaller = set(nested_subset(CLASSES, 0.01, 5).tolist())
    for fraction in (0.05, 0.1, 0.5, 1.0):
        larger = nested_subset(CLASSES, fraction, 5)
        assert smaller <= set(larger.tolist()) and len(set(larger.tolist())) == len(larger)
        assert min(counts(larger)) >= 1
        smaller = set(larger.tolist())
    assert smaller == set(range(len(CLASSES)))
    assert counts(nested_subset(CLASSES, 0.1, 5)) == [10, 4, 1, 1]
    assert nested_subset(CLASSES, 0.1, 5).tolist() != nested_subset(CLASSES, 0.1, 6).tolist()


def test_the_authors_subset_is_theirs(parity_dir):
    record = json.loads((parity_dir / "data_pipeline.json").read_text())["subset"]
    assert subset_with_repetition(record["n"], record["frac"]).tolist() == record["indices"]
    assert len(set(subset_with_repetition(10000, 0.1).tolist())) == record["unique_in_10pct_of_10000"]


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.1, float("nan")])
def test_fractions_outside_the_range_are_refused(fraction):
    for choose in (lambda: nested_subset(CLASSES, fraction, 0), lambda: subset_with_repetition(9, fraction)):
        with pytest.raises(ValueError, match="train_fraction"):
            choose()
    with pytest.raises(ValueError, match="of 9 samples is none"):
        subset_with_repetition(9, 0.1)


def test_names_of_parts():
    assert [part_of_name(name) for name in ("Train", "val", "valid", "dev", "TEST", "trainyard", "")] == [
        "train", "validation", "validation", "validation", "test", None, None
    ]  # fmt: skip
