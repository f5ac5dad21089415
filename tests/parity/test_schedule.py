"""Learning rate of every step, and which parameters the pretraining optimizer decays."""

import pytest
import torch

from gfm_hf.model.modeling_gfm import GFMForPreTraining
from gfm_hf.training.optim import CosineSchedule, parameter_groups, scale_learning_rate

from .authors import TABLE, assert_close, authors_name, read_json, student_config


RULES = ["small_warmup", "small_no_warmup", "accumulation_2", "paper_pretrain_8x128"]
# The records hold names and sizes, not the widths behind them.
SHAPES = {
    "swin_t": {"embed_dim": 96, "depths": (2, 2, 6, 2), "num_heads": (3, 6, 12, 24)},
    "swin_b": {"embed_dim": 128, "depths": (2, 2, 18, 2), "num_heads": (4, 8, 16, 32)},
    "tiny": {"embed_dim": 4, "depths": (1, 1, 2, 1), "num_heads": (1, 2, 4, 8)},
}


def make_schedule(recorded, repeat_first=True):
    steps = recorded["n_iter_per_epoch"]
    return CosineSchedule(
        peak=recorded["BASE_LR"],
        start=recorded["WARMUP_LR"],
        floor=recorded["MIN_LR"],
        warmup_steps=recorded["WARMUP_EPOCHS"] * steps,
        total_steps=recorded["EPOCHS"] * steps,
        repeat_first=repeat_first,
    )


@pytest.fixture
def records(parity_dir):
    return read_json(parity_dir / "lr_schedule.json")


@pytest.mark.parametrize("name", ["small_warmup", "small_no_warmup"])
def test_rate_of_every_update(records, name):
    schedule = make_schedule(records[name])
    rates = [schedule.learning_rate(step) for step in range(schedule.total_steps)]
    assert_close(rates, records[name]["lr_used"], rtol=1e-14)


def test_rate_under_accumulation(records):
    """The authors count batches: update j has the rate that followed batch 2 j - 1."""
    recorded = records["accumulation_2"]
    schedule = make_schedule(recorded)
    updates = schedule.total_steps // recorded["ACCUMULATION_STEPS"]
    rates = [schedule.learning_rate(recorded["ACCUMULATION_STEPS"] * update) for update in range(updates)]
    assert_close(rates, recorded["lr_used_per_update"], rtol=1e-14)


def test_rate_of_the_papers_run(records):
    recorded = records["paper_pretrain_8x128"]
    schedule = make_schedule(recorded)
    for step, rate in recorded["steps"].items():
        assert_close(schedule.learning_rate(int(step)), rate, rtol=1e-14, what=f"step {step}")
    rates = [schedule.learning_rate(step) for step in range(schedule.total_steps)]
    assert max(range(len(rates)), key=rates.__getitem__) == recorded["argmax"]
    assert_close([max(rates), rates[-1]], [recorded["max"], recorded["last"]], rtol=1e-14)


def test_scaled_rates_of_the_papers_run(records):
    recorded = records["paper_pretrain_8x128"]
    rates = [scale_learning_rate(rate, 8 * 128) for rate in (2e-4, 1e-6, 1e-5)]
    assert_close(rates, [recorded["BASE_LR"], recorded["WARMUP_LR"], recorded["MIN_LR"]], rtol=1e-15)


@pytest.mark.parametrize("name", RULES)
def test_default_only_leaves_out_the_repeated_first_rate(records, name):
    theirs, ours = make_schedule(records[name]), make_schedule(records[name], repeat_first=False)
    assert theirs.learning_rate(0) == theirs.learning_rate(1) == ours.learning_rate(0)
    for step in range(ours.total_steps - 1):
        assert ours.learning_rate(step) == theirs.learning_rate(step + 1)


def test_default_is_the_function_itself(records):
    """Behind the last step, where a run never gets, the authors' function stays at the floor; ours is not defined."""
    schedule = make_schedule(records["small_warmup"], repeat_first=False)
    recorded = records["function_f"]
    for step, rate in zip(recorded["t"], recorded["f_t"]):
        if step <= schedule.total_steps:
            assert_close(schedule.learning_rate(step), rate, rtol=1e-14, what=f"t = {step}")


# ---- parameter groups ------------------------------------------------------------------------------------------------


def grouped_names(size, **flags):
    """Authors' names and number of elements of the decayed and the undecayed parameters."""
    config = {
        "image_size": 192,
        "window_size": 6,
        "mask_patch_size": 32,
        "mask_ratio": 0.6,
        "alpha": 1.0,
        "patch_size": 4,
        "in_chans": 3,
        "mlp_ratio": 4.0,
        "qkv_bias": True,
        "ape": False,
        "drop_path_rate": 0.0,
    }
    with torch.device("meta"):
        model = GFMForPreTraining(student_config(config | SHAPES[size]))
    names = {id(parameter): authors_name(name)[0] for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, 0.05, **flags)
    assert [group["weight_decay"] for group in groups] == [0.05, 0.0]
    chosen = [{names[id(parameter)] for parameter in group["params"]} for group in groups]
    return chosen, [sum(parameter.numel() for parameter in group["params"]) for group in groups]


@pytest.fixture
def pretraining_groups(parity_dir):
    return read_json(parity_dir / "layer_decay_groups.json")["pretraining_groups"]


@pytest.mark.parametrize("size", ["swin_t", "swin_b"])
def test_groups_have_the_recorded_sizes(pretraining_groups, size):
    recorded = pretraining_groups[size]
    (decayed, undecayed), elements = grouped_names(size, decay_position_tables=True)
    assert [len(decayed), len(undecayed)] == recorded["counts"]
    assert elements == [recorded["decay_elements"], recorded["no_decay_elements"]]
    assert sum(name.endswith(TABLE) for name in decayed) == recorded["tables_in_decay"]
    assert set(recorded["no_decay_with_ndim_gt_1"]) < undecayed


def test_groups_have_the_recorded_names(pretraining_groups):
    (decayed, undecayed), _ = grouped_names("tiny", decay_position_tables=True)
    assert decayed == set(pretraining_groups["tiny"]["decay"])
    assert undecayed == set(pretraining_groups["tiny"]["no_decay"])


def test_tables_are_decayed_only_with_the_flag(pretraining_groups):
    recorded = pretraining_groups["tiny"]
    tables = {name for name in recorded["decay"] if name.endswith(TABLE)}
    assert len(tables) == recorded["tables_in_decay"]
    (decayed, undecayed), _ = grouped_names("tiny")
    assert decayed == set(recorded["decay"]) - tables
    assert undecayed == set(recorded["no_decay"]) | tables
