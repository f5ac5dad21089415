import pytest

from gfm_hf.data.seeding import CROP_STREAM, MASK_STREAM, sample_rng


def test_every_argument_changes_the_numbers():
    base = (1, 2, 3, CROP_STREAM)
    keys = [base, (0, 2, 3, CROP_STREAM), (1, 0, 3, CROP_STREAM), (1, 2, 0, CROP_STREAM), (1, 2, 3, MASK_STREAM)]
    assert len({sample_rng(*key).integers(2**62) for key in keys}) == len(keys)
    assert sample_rng(*base).integers(2**62) == sample_rng(*base).integers(2**62)


def test_negative_seed_is_refused_with_the_flag():
    with pytest.raises(ValueError, match="seed -1.*--seed"):
        sample_rng(-1, 0, 0, CROP_STREAM)
