import json

import numpy as np
import pytest
import torch

from gfm_hf.data.mixing import Mix, Mixing, mix_images, soft_targets

from ..parity.authors import rule_input


class TheirGenerator:
    """The legacy NumPy generator that the authors seed, under the names of the new one."""

    def __init__(self, seed):
        state = np.random.RandomState(seed)
        self.random, self.beta, self.integers = state.rand, state.beta, state.randint


@pytest.fixture(scope="module")
def records(parity_dir):
    return json.loads((parity_dir / "finetune.json").read_text())


@pytest.mark.parametrize("run", range(6))
def test_draws_images_and_targets_are_the_authors(records, run):
    record = records["mixup_batch_mode"]["runs"][run]
    mix = Mixing().draw_from(TheirGenerator(record["np_seed"]), 256, 256)
    assert mix.lam == record["lam_used"]
    assert mix.box == (tuple(record["bbox_yl_yh_xl_xh"]) if record["kind"] == "cutmix" else None)
    mixed = mix_images(rule_input("ft256.input", (4, 3, 256, 256)), mix)
    expected = record["mixed_input"]
    assert mixed.flatten()[:6].tolist() == expected["head"] and mixed.flatten()[-6:].tolist() == expected["tail"]
    assert mixed.double().norm().item() == pytest.approx(expected["l2"], rel=1e-9)
    assert mixed.double().mean().item() == pytest.approx(expected["mean"], rel=1e-6)
    targets = soft_targets(torch.tensor(records["ft256"]["targets"]), 21, 0.1, mix.lam)
    assert targets.sum(1).tolist() == pytest.approx(record["target_sum_rows"], abs=2e-7)
    if record["target_row0"]:
        assert targets[0].tolist() == record["target_row0"]


def test_fixed_shares_give_the_authors_targets(records):
    single = soft_targets(torch.tensor(records["ft256"]["targets"]), 21, 0.1, 0.3)
    assert single.tolist() == records["mixup_fixed_lam_0.3"]["target"]
    several = soft_targets(torch.tensor(records["ft128"]["targets"]), 19, 0.1, 0.65)
    assert several.tolist() == records["ft128"]["mixed_lam_0.65_targets"]


def test_mixup_is_a_weighted_sum_with_the_reversed_batch():
    x = torch.randn(3, 2, 4, 4)
    mixed = mix_images(x, Mix(0.25))
    torch.testing.assert_close(mixed[0], 0.25 * x[0] + 0.75 * x[2])
    torch.testing.assert_close(mixed[1], x[1])


def test_cutmix_takes_the_box_from_the_reversed_batch():
    x = torch.randn(2, 5, 6, 8)
    before = x.clone()
    mixed = mix_images(x, Mix(1 - 6 / 48, (1, 3, 2, 5)))
    inside = torch.zeros(6, 8, dtype=torch.bool)
    inside[1:3, 2:5] = True
    assert torch.equal(mixed[0][:, inside], x[1][:, inside]) and torch.equal(mixed[0][:, ~inside], x[0][:, ~inside])
    assert torch.equal(x, before)


def test_one_step_draws_one_mix_everywhere():
    mixing = Mixing()
    assert mixing.draw(1, 2, 3, 64, 64) == mixing.draw(1, 2, 3, 64, 64)
    assert len({mixing.draw(1, 0, step, 64, 64).lam for step in range(20)}) == 20
    assert mixing.draw(1, 2, 3, 64, 64) not in [mixing.draw(1, 3, 3, 64, 64), mixing.draw(0, 2, 3, 64, 64)]


def test_kinds_and_shares_follow_the_settings():
    def kinds(**settings):
        mixes = [Mixing(**settings).draw(0, 0, step, 60, 64) for step in range(400)]
        return np.mean([m.box is not None for m in mixes]), np.mean([m.lam == 1 and m.box is None for m in mixes])

    assert kinds()[0] == pytest.approx(0.5, abs=0.08)
    assert kinds(switch_probability=0.1)[0] == pytest.approx(0.1, abs=0.05)
    assert kinds(cutmix_alpha=0)[0] == 0
    assert kinds(mixup_alpha=0)[0] == 1
    assert kinds(probability=0.3)[1] == pytest.approx(0.7, abs=0.08)
    assert kinds(mixup_alpha=0, cutmix_alpha=0)[1] == 1


def test_the_share_is_that_of_the_clipped_box():
    for step in range(100):
        lam, box = Mixing(mixup_alpha=0).draw(0, 0, step, 60, 64)
        top, bottom, left, right = box
        assert 0 <= top <= bottom <= 60 and 0 <= left <= right <= 64
        assert lam == 1 - (bottom - top) * (right - left) / (60 * 64)


def test_smoothing_alone():
    targets = soft_targets(torch.tensor([2, 0]), 4, 0.2)
    torch.testing.assert_close(targets, torch.tensor([[0.05, 0.05, 0.85, 0.05], [0.85, 0.05, 0.05, 0.05]]))
    assert torch.equal(soft_targets(torch.tensor([1]), 2, 0.0), torch.tensor([[0.0, 1.0]]))


@pytest.mark.parametrize("wrong", [{"mixup_alpha": -1}, {"probability": 1.5}, {"label_smoothing": -0.1}])
def test_settings_that_cannot_be_are_refused(wrong):
    with pytest.raises(ValueError, match="cannot be"):
        Mixing(**wrong)
