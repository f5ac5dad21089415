"""The authors' fine-tuning: transferred weights, losses, gradients, groups and a trajectory."""

import json

import pytest
import torch
from safetensors.torch import load_file

from gfm_hf import GFMForImageClassification, convert_checkpoint
from gfm_hf.training.optim import CosineSchedule, layer_decay_groups, set_learning_rate

from . import authors


SHAPES = {
    "swin_t": {"embed_dim": 96, "depths": (2, 2, 6, 2), "num_heads": (3, 6, 12, 24)},
    "swin_b": {"embed_dim": 128, "depths": (2, 2, 18, 2), "num_heads": (4, 8, 16, 32)},
    "tiny": {"embed_dim": 4, "depths": (1, 1, 2, 1), "num_heads": (1, 2, 4, 8)},
}


@pytest.fixture(scope="module")
def records(parity_dir):
    return json.loads((parity_dir / "finetune.json").read_text())


@pytest.fixture(scope="module")
def tensors(parity_dir):
    return load_file(parity_dir / "finetune.safetensors")


@pytest.fixture(scope="module")
def pretrained(parity_dir, tmp_path_factory):
    """The bare student, converted and saved: what a person fine-tunes from."""
    folder = tmp_path_factory.mktemp("pretrained")
    convert_checkpoint(parity_dir / "bare_student.pth").save_pretrained(folder)
    return folder


def classifier(folder, image_size, window_size, classes, head, dtype=torch.float64, **overrides):
    """The pretrained encoder at another window, with a head by the rule."""
    model = GFMForImageClassification.from_pretrained(
        folder, image_size=image_size, window_size=window_size, num_labels=classes, **overrides
    )
    with torch.no_grad():
        model.classifier.weight.copy_(authors.rule_tensor(f"{head}.head.weight", (classes, 32)))
        model.classifier.bias.copy_(authors.rule_tensor(f"{head}.head.bias", (classes,)))
    return model.to(dtype)


def ft256(folder, **settings):
    return classifier(folder, 256, 8, 21, "ft256", **settings)


def ft128(folder, classes=19, **settings):
    return classifier(folder, 128, 4, classes, "ft128", **settings)


def gradient_norms(model, loss):
    loss.backward()
    norms = authors.norms(authors.gradients(model))
    # A classifier of the authors has no prefix in front of its encoder.
    return {name.removeprefix("encoder.").replace("classifier", "head"): value for name, value in norms.items()}


def smoothed(targets, classes, smoothing):
    return torch.full((len(targets), classes), smoothing / classes).scatter(
        1, targets[:, None], 1 - smoothing + smoothing / classes
    )


@pytest.mark.parametrize("case", ["ft256", "ft128"])
def test_tables_are_resized_as_theirs(pretrained, tensors, case):
    model = {"ft256": ft256, "ft128": ft128}[case](pretrained, dtype=torch.float32)
    recorded = {name.removeprefix(f"{case}."): tensor for name, tensor in tensors.items() if name.startswith(case)}
    found = authors.under_authors_names((name, tensor) for name, tensor in model.state_dict().items())
    assert recorded
    for name, table in recorded.items():
        assert torch.equal(found[f"encoder.{name}"], table), name


def test_single_label(pretrained, records):
    record = records["ft256"]
    model = ft256(pretrained)
    pixel_values = authors.rule_input("ft256.input", (4, 3, 256, 256)).double()
    targets = torch.tensor(record["targets"])
    output = model(pixel_values, labels=targets)
    authors.assert_close(output.logits.detach(), record["logits"], rtol=0, atol=1e-6)
    authors.assert_close(output.loss.item(), record["cross_entropy"], rtol=1e-7)
    model.config.problem_type = "single_label_classification"
    loss = model(pixel_values, labels=smoothed(targets, 21, 0.1)).loss
    authors.assert_close(loss.item(), record["label_smoothing_0.1"], rtol=1e-7)
    norms = gradient_norms(model, loss)
    authors.assert_close(norms, record["grad_norm_label_smoothing"], rtol=1e-5, atol=1e-9)


def test_mixed_images_and_soft_targets(pretrained, records):
    record = records["mixup_fixed_lam_0.3"]
    model = ft256(pretrained, problem_type="single_label_classification")
    pixel_values = authors.rule_input("ft256.input", (4, 3, 256, 256)).double()
    mixed = 0.3 * pixel_values + 0.7 * pixel_values.flip(0)
    output = model(mixed, labels=torch.tensor(record["target"]))
    authors.assert_close(output.logits.detach(), record["logits"], rtol=0, atol=1e-6)
    authors.assert_close(output.loss.item(), record["soft_target_ce"], rtol=1e-6)
    authors.assert_close(gradient_norms(model, output.loss), record["grad_norm"], rtol=1e-5, atol=1e-9)


def test_several_labels(pretrained, records):
    record = records["ft128"]
    model = ft128(pretrained, problem_type="multi_label_classification")
    pixel_values = authors.rule_input("ft128.input", (6, 3, 128, 128)).double()
    output = model(pixel_values, labels=torch.tensor(record["targets"]).double())
    authors.assert_close(output.logits.detach(), record["logits"], rtol=0, atol=1e-6)
    authors.assert_close(output.loss.item(), record["multilabel_soft_margin"], rtol=1e-7)
    authors.assert_close(gradient_norms(model, output.loss), record["grad_norm"], rtol=1e-5, atol=1e-9)


def test_twelve_bands_take_the_filters_of_three(pretrained, tensors):
    stem = GFMForImageClassification.from_pretrained(pretrained, num_channels=12, rgb_channels=(3, 2, 1))
    filters = stem.swin.embeddings.patch_embeddings.projection.weight
    assert torch.equal(filters[:, [3, 2, 1]], tensors["stem.3_to_12.weight"][:, [3, 2, 1]])


@pytest.mark.parametrize("name", SHAPES)
def test_groups_of_layer_decay(parity_dir, name):
    record = json.loads((parity_dir / "layer_decay_groups.json").read_text())[name]
    with torch.device("meta"):
        config = convert_config(**SHAPES[name])
        model = GFMForImageClassification(config)
    groups = {group["name"]: group for group in layer_decay_groups(model, 0.05, 0.9)}
    names = {parameter: name for name, parameter in model.named_parameters()}
    found = {}
    for group in groups.values():
        level, decayed = int(group["name"].split("_")[1]), int(group["weight_decay"] > 0)
        for parameter in group["params"]:
            ours = names[parameter]
            theirs, _ = authors.authors_name(ours)
            found[theirs.removeprefix("encoder.").replace("classifier", "head")] = [level, decayed]
        assert group["lr_scale"] == pytest.approx(record["scale_of_id"][level], rel=1e-12)
    assert found == record["param"]


def convert_config(**shape):
    from gfm_hf import GFMConfig

    return GFMConfig(num_labels=21, **shape)


def test_trajectory(pretrained, records):
    """Eight updates with layer decay; their scheduler lowers the peak of each group alone (timm 0.5.4)."""
    record = records["finetune_trajectory_timm_0.5.4"]
    config = record["config"]
    model = ft128(pretrained, classes=5, dtype=torch.float32, problem_type="single_label_classification").train()
    steps = config["n_iter_per_epoch"]
    schedule = CosineSchedule(
        peak=config["BASE_LR"],
        start=config["WARMUP_LR"],
        floor=config["MIN_LR"],
        warmup_steps=config["WARMUP_EPOCHS"] * steps,
        total_steps=config["EPOCHS"] * steps,
        repeat_first=True,
        scale_peak_only=True,
    )
    optimizer = torch.optim.AdamW(
        layer_decay_groups(model, config.get("WEIGHT_DECAY", 0.05), config["LAYER_DECAY"]), lr=0.0
    )
    losses, rates = [], []
    for step in range(len(record["losses"])):
        set_learning_rate(optimizer, schedule, step)
        rates.append({group["name"]: group["lr"] for group in optimizer.param_groups})
        pixel_values = authors.rule_input(f"fttrain.input.{step}", (2, 3, 128, 128))
        targets = torch.tensor([step % 5, (3 * step + 1) % 5])
        smoothing = config.get("LABEL_SMOOTHING", 0.1)
        loss = model(pixel_values, labels=smoothed(targets, 5, smoothing)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.get("CLIP_GRAD", 5.0))
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    for step, recorded in zip((0, 1, 2, 5, 7), record["lr_used_by_group_step_0_1_2_5_7"]):
        assert rates[step] == pytest.approx(recorded, rel=1e-9), step
    authors.assert_close(losses, record["losses"], rtol=0, atol=5e-6)
    with torch.no_grad():
        logits = model(authors.rule_input("ft128.input", (6, 3, 128, 128))).logits
    authors.assert_close(logits, record["logits_after_8_steps_on_ft128.input"], rtol=0, atol=1e-4)
