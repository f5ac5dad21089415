"""The three tiny recorded cases: one step in every detail, and five steps of training, in float64.

A: maps smaller than the window. B: the paper's geometry. C: narrow MLP, alpha 0.5, uneven heads.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

from gfm_hf.model.modeling_gfm import GFMForPreTrainingOutput
from gfm_hf.training.optim import CosineSchedule, parameter_groups

from .authors import (
    Case,
    Features,
    Pair,
    assert_close,
    authors_name,
    centre_of_table,
    cosines,
    gradients,
    load_case,
    loss_terms,
    norms,
    read_json,
    rule_numbers,
    rule_tensor,
    statistics,
    student_features,
    token_mask,
    under_authors_names,
)


# Stored tensors are float32, rounded from float64 values below 10.
STORED = {"rtol": 1e-7, "atol": 1e-8}


class Run(NamedTuple):
    """One forward and backward pass of a case."""

    case: Case
    pair: Pair
    output: GFMForPreTrainingOutput
    features: Features


def run_case(case: Case, dtype: torch.dtype = torch.float64) -> Run:
    pair = case.pair(dtype)
    pixel_values = case.pixel_values.to(dtype)
    output = pair.model(pixel_values, case.mask, pair.features(pixel_values), output_hidden_states=True)
    output.loss.backward()
    return Run(case, pair, output, student_features(pair.model, pixel_values, output))


@pytest.fixture(scope="module", params=["a", "b", "c"])
def run(request, parity_dir) -> Run:
    return run_case(load_case(parity_dir, request.param))


def test_rule_gives_the_worked_example():
    expected = [0.5722064971923828, -0.28467893600463867, 0.2086852788925171, -0.2624642848968506]
    assert rule_numbers("swin_t.input", 4).tolist() == expected
    weight = rule_tensor("encoder.layers.0.blocks.0.attn.qkv.weight", (288, 96)).double()
    assert_close(weight[0, :3], [-0.02770468, 0.14294237, 0.09538580], rtol=1e-6)
    assert_close([weight.sum().item(), weight.norm().item()], [8.505439113817, 17.008072799887], rtol=1e-12)


def test_key_map_covers_every_stored_weight(run):
    ours = {authors_name(name)[0] for name, _ in run.pair.model.named_parameters()}
    theirs = {name.removeprefix("state.") for name in run.case.tensors if name.startswith("state.")}
    assert ours == {name for name in theirs if not name.startswith("teacher.")}


def test_loss_and_terms(run):
    config = run.case.record["config"]
    terms = loss_terms(run.output, config["alpha"])
    assert_close(terms, {name: run.case.record["float64"][name] for name in terms})


def test_reconstruction(run):
    record = run.case.record["x_rec"]
    x_rec = run.output.reconstruction.detach()
    strided = x_rec[:, :, :: record["stride"], :: record["stride"]]
    assert_close(strided, run.case.tensors["out.x_rec_strided"], **STORED)
    summary = statistics(x_rec) | {
        "per_sample_l1": x_rec.abs().sum(dim=(1, 2, 3)).tolist(),
        "per_channel_mean": x_rec.mean(dim=(0, 2, 3)).tolist(),
    }
    assert_close(summary, {key: value for key, value in record.items() if key != "stride"}, atol=1e-12)


def test_student_features(run):
    for name in ("zs", "zs_proj", "r"):
        assert_close(getattr(run.features, name), run.case.tensors[f"out.{name}"], what=name, **STORED)


def test_student_stages(run):
    stages = run.case.record["stages"]
    assert_close(statistics(run.features.patch_embed), stages["student.patch_embed"], atol=1e-12)
    for index, tokens in enumerate(run.features.stages):
        assert_close(tokens[:1], run.case.tensors[f"out.student.layers.{index}"], what=f"stage {index}", **STORED)
        assert_close(statistics(tokens), stages[f"student.layers.{index}"], atol=1e-12, what=f"stage {index}")


def test_teacher_features(run):
    target = run.pair.features(run.case.pixel_values)
    assert_close(target, run.case.tensors["out.zt"], **STORED)
    # The cosines were recorded in float64: they tie both sides together to the last digit.
    assert_close(cosines(run.features.zs_proj, target), run.case.record["float64"]["cos_per_sample"])


def test_gradient_norms(run):
    recorded = run.case.record["grad_norm"]
    ours = norms(gradients(run.pair.model))
    assert ours.keys() == recorded.keys()
    assert_close(ours, recorded, atol=1e-12)
    assert_close(math.hypot(*ours.values()), run.case.record["grad_total_norm"])


def test_stored_gradients(run):
    ours = gradients(run.pair.model)
    stored = {name[5:]: tensor for name, tensor in run.case.tensors.items() if name.startswith("grad.")}
    assert len(stored) == 11
    for name, tensor in stored.items():
        gradient = centre_of_table(ours[name], len(tensor)) if "table" in name else ours[name]
        assert_close(gradient, tensor, what=name, **STORED)


def test_teacher_gets_no_gradient(run):
    assert run.case.record["teacher_grads_are_none"]
    assert all(parameter.grad is None for parameter in run.pair.teacher_model.parameters())


@pytest.mark.parametrize("letter", ["a", "b", "c"])
def test_float32_within_its_rounding(parity_dir, letter):
    run = run_case(load_case(parity_dir, letter), torch.float32)
    record, tensors = run.case.record, run.case.tensors
    terms = loss_terms(run.output, record["config"]["alpha"])
    assert_close(terms, {name: record["float64"][name] for name in terms}, rtol=0, atol=2e-6)
    for name in ("zs", "zs_proj", "r"):
        assert_close(getattr(run.features, name), tensors[f"out.{name}"], rtol=0, atol=3e-5, what=name)
    assert_close(norms(gradients(run.pair.model)), record["grad_norm"], rtol=2e-4, atol=1e-6)


# ---- five steps of AdamW ---------------------------------------------------------------------------------------------


class Trainer:
    """The authors' loop around our model: their batches, groups, schedule and clipping."""

    def __init__(self, case: Case, clip: float, warmup_epochs: int, steps_per_epoch: int = 5) -> None:
        self.case, self.clip = case, clip
        self.pair = case.pair()
        self.record = case.record["trajectory"]
        train = self.record["train"]
        self.schedule = CosineSchedule(
            peak=train["BASE_LR"],
            start=train["WARMUP_LR"],
            floor=train["MIN_LR"],
            warmup_steps=warmup_epochs * steps_per_epoch,
            total_steps=train["EPOCHS"] * steps_per_epoch,
            repeat_first=True,
        )
        self.optimizer = torch.optim.AdamW(
            parameter_groups(self.pair.model, self.record["weight_decay"], decay_position_tables=True),
            betas=self.record["betas"],
            eps=self.record["eps"],
        )
        self.losses: list[float] = []
        self.grad_norms: list[float] = []
        self.lr_used: list[float] = []

    def loss(self, step: int) -> torch.Tensor:
        """Loss on the batch of a step: the images rolled further each time, under masks of their own."""
        pixel_values = torch.roll(self.case.pixel_values, (8 * step, 16 * step), dims=(2, 3))
        mask = token_mask(self.record["masks_coarse"][step], self.case.record["config"])
        return self.pair.model(pixel_values, mask, self.pair.features(pixel_values)).loss

    def backward(self, step: int, accumulated: int = 1) -> None:
        """Add a batch's gradient and clip what has been added up so far, as the authors do at every batch."""
        loss = self.loss(step)
        (loss / accumulated).backward()
        self.losses.append(loss.item())
        self.grad_norms.append(nn.utils.clip_grad_norm_(self.pair.model.parameters(), self.clip).item())

    def update(self, schedule_step: int) -> None:
        self.lr_used.append(self.schedule.learning_rate(schedule_step))
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr_used[-1]
        self.optimizer.step()
        self.optimizer.zero_grad()

    def assert_recorded(self, recorded: dict[str, Any]) -> None:
        with torch.no_grad():
            after = self.loss(0).item()
        ours = {"losses": self.losses, "grad_norms": self.grad_norms, "lr_used": self.lr_used}
        assert_close(ours | {"loss_after_on_step0_batch": after}, recorded)


def comparable(named: Iterator[tuple[str, nn.Parameter]]) -> dict[str, torch.Tensor]:
    """Parameters under the authors' names, without those that hold a key bias.

    Softmax ignores the key bias: its gradient is rounding noise, which Adam scales up to whole steps.
    """
    joined = under_authors_names((name, parameter.clone()) for name, parameter in named)
    return {name: tensor for name, tensor in joined.items() if not name.endswith("qkv.bias")}


@pytest.mark.parametrize("letter", ["a", "b", "c"])
def test_five_steps(parity_dir, letter):
    case = load_case(parity_dir, letter)
    record = case.record["trajectory"]
    trainer = Trainer(case, record["clip_grad"], record["train"]["WARMUP_EPOCHS"])
    before = comparable(trainer.pair.model.named_parameters())
    for step in range(5):
        trainer.backward(step)
        trainer.update(step)
    trainer.assert_recorded(record["float64"])

    after = comparable(trainer.pair.model.named_parameters())
    assert after.keys() == {name for name in record["final_param_l2"] if not name.endswith("qkv.bias")}
    for name, tensor in after.items():
        assert_close(tensor.norm(), record["final_param_l2"][name], what=f"l2 of {name}")
        assert_close(tensor.sum(), record["final_param_sum"][name], atol=1e-9, what=f"sum of {name}")
        assert_close((tensor - before[name]).norm(), record["delta_l2"][name], what=f"step of {name}")


def test_five_steps_with_clipping_at_work(parity_dir):
    case = load_case(parity_dir, "b")
    record = case.record["trajectory_clip_active"]
    trainer = Trainer(case, record["train"]["CLIP_GRAD"], record["train"]["WARMUP_EPOCHS"])
    for step in range(5):
        trainer.backward(step)
        trainer.update(step)
    assert min(trainer.grad_norms) > record["train"]["CLIP_GRAD"]
    trainer.assert_recorded(record["float64"])


def test_accumulation_over_two_batches(parity_dir):
    """The authors count batches, not updates, in the schedule, and clip at every batch."""
    case = load_case(parity_dir, "a")
    trainer = Trainer(case, case.record["trajectory"]["clip_grad"], warmup_epochs=0, steps_per_epoch=4)
    for step in range(4):
        trainer.backward(step, accumulated=2)
        if step % 2 == 1:
            # The rate of an update was set after the last batch of the update before.
            trainer.update(step - 1)
    trainer.assert_recorded(case.record["trajectory_accumulation"]["float64"])


def test_trainable_teacher_of_the_authors_changes_nothing(parity_dir):
    """Frozen or not, their teacher stays as it is, so that ours, outside the model, stands for both."""
    record = read_json(parity_dir / "case_c.json")
    variant = record["teacher_not_frozen_variant"]
    assert variant["teacher_unchanged"] and variant["losses"] == record["trajectory"]["float32"]["losses"]


def test_groups_count_as_the_authors(parity_dir):
    """Our query, key and value are one tensor of theirs."""
    for letter in "abc":
        case = load_case(parity_dir, letter)
        model = case.pair().model
        names = {id(parameter): authors_name(name)[0] for name, parameter in model.named_parameters()}
        groups = parameter_groups(model, 0.05, decay_position_tables=True)
        counts = [len({names[id(parameter)] for parameter in group["params"]}) for group in groups]
        assert counts == case.record["trajectory"]["groups"]
