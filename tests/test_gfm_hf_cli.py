"""The command, as a person types it. In-process, except where the process itself is the point."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoImageProcessor, AutoModel, SwinForImageClassification

import gfm_hf_cli
from gfm_hf import GFMForImageClassification, GFMForPreTraining, GFMModel
from gfm_hf.convert import write_checkpoint


@pytest.fixture
def pretrained(tiny_config, tmp_path):
    """A pretraining checkpoint in the authors' layout."""
    model = GFMForPreTraining(tiny_config).eval()
    write_checkpoint(model, tmp_path / "theirs.pth", "authors")
    return model


@pytest.fixture
def run(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(*words):
        code = gfm_hf_cli.main([str(word) for word in words])
        out, err = capsys.readouterr()
        return code, out, err

    return run


def test_help_needs_no_heavy_import():
    """The promise of an answer at once, as a fact about imports; the time is measured in benchmarks/."""
    probe = "import sys, gfm_hf_cli; gfm_hf_cli.build_parser(); print(sorted(set(sys.modules) & {'torch', 'transformers', 'numpy', 'gfm_hf'}))"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_convert_makes_a_folder_that_the_auto_classes_load(run, pretrained, tmp_path):
    code, out, err = run("convert", "theirs.pth", "ours")
    assert code == 0 and "authors -> GFMForPreTraining" in out and "wrote" in out
    model = AutoModel.from_pretrained(tmp_path / "ours")
    assert torch.equal(model.layernorm.weight, pretrained.swin.layernorm.weight)
    assert AutoImageProcessor.from_pretrained(tmp_path / "ours").size["height"] == 64
    account = json.loads((tmp_path / "ours" / "conversion.json").read_text())
    assert account["facts"]["converted_from"] == "theirs.pth" and account["assumed"]["mask_ratio"] == 0.6
    card = (tmp_path / "ours" / "README.md").read_text()
    assert "library_name: transformers" in card and "theirs.pth" in card
    assert not list(tmp_path.glob(".unfinished*"))


def test_settings_reach_model_and_processor(run, pretrained, tmp_path):
    code, out, _ = run(
        "convert", "theirs.pth", "ours", "--set", "gsd=10", "--set", 'band_names=["B04","B03","B02"]',
        "--set", "image_mean=[0.1,0.2,0.3]", "--set", "image_std=[0.4,0.5,0.6]", "--set", "rescale_factor=0.0001",
    )  # fmt: skip
    assert code == 0
    config = json.loads((tmp_path / "ours" / "config.json").read_text())
    processor = json.loads((tmp_path / "ours" / "preprocessor_config.json").read_text())
    assert config["gsd"] == 10 and config["band_names"] == ["B04", "B03", "B02"]
    assert processor["image_mean"] == [0.1, 0.2, 0.3] and processor["rescale_factor"] == 1e-4


@pytest.mark.parametrize("target", ["authors", "mmseg", "timm", "torchvision", "swin"])
def test_way_back_writes_plain_tensors(run, pretrained, tmp_path, target):
    assert run("convert", "theirs.pth", "ours")[0] == 0
    code, out, _ = run("convert", "ours", "back.pth", "--to", target)
    assert code == 0 and f"under the names of {target}" in out
    stored = torch.load(tmp_path / "back.pth", weights_only=True)
    tensors = stored.get("model", stored.get("state_dict", stored))
    assert tensors and all(isinstance(tensor, torch.Tensor) for tensor in tensors.values())


def test_stock_folder_comes_with_a_processor(run, tiny_config, tmp_path):
    tiny_config.image_size = 128  # stock Swin's last map must not be smaller than the window
    model = GFMForImageClassification(tiny_config).eval()
    model.save_pretrained(tmp_path / "ours")
    assert run("convert", "ours", "stock", "--to", "swin")[0] == 0
    stock = SwinForImageClassification.from_pretrained(tmp_path / "stock").eval()
    image = torch.randint(0, 255, (3, 128, 128), dtype=torch.uint8).numpy()
    pixel_values = AutoImageProcessor.from_pretrained(tmp_path / "stock")(image, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(stock(pixel_values).logits, model(pixel_values).logits, rtol=0, atol=1e-5)


def test_info_of_a_file_and_of_a_folder(run, pretrained, tmp_path):
    code, out, _ = run("info", "theirs.pth")
    lines = dict(line.split("  ", 1) for line in out.splitlines())
    lines = {name: value.strip() for name, value in lines.items()}
    assert code == 0 and lines["becomes"] == "GFMForPreTraining" and lines["bands"] == "3"
    assert lines["image size"] == "64 px" and lines["window"] == "4 tokens" and lines["depths"] == "1, 1, 2, 1"
    run("convert", "theirs.pth", "ours", "--set", "gsd=0.5")
    facts = json.loads(run("info", "ours", "--json")[1])
    assert facts["becomes"] == "GFMForPreTraining" and facts["ground sampling distance"] == "0.5 m"
    assert facts["normalisation"].startswith("mean 0.485, 0.456, 0.406")
    assert facts["parameters in the file"] == f"{sum(p.numel() for p in pretrained.parameters()):,}"


BAD = [
    (["convert", "theirs.pth", "ours.pth"], "--to gfm writes a folder"),
    (["convert", "theirs.pth", "ours", "--to", "timm"], "has to be a file"),
    (["convert", "missing.pth", "ours"], "does not exist"),
    (["convert", "theirs.pth", "ours", "--set", "window_size"], "KEY=VALUE"),
    (["convert", "theirs.pth", "ours", "--set", "windowsize=8"], "names no field"),
    (["convert", "theirs.pth", "ours", "--set", "embed_dim=16"], "by your wish"),
    (["convert", "theirs.pth", "taken"], "already exists"),
    (["info", "page.html"], "web page"),
    (["push", "taken", "someone/x"], "has no config.json"),
]


@pytest.mark.parametrize(("words", "sentence"), BAD)
def test_bad_input_is_one_sentence_and_code_2(run, pretrained, tmp_path, words, sentence):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").write_text("mine")
    (tmp_path / "page.html").write_text("<!DOCTYPE html>")
    code, _, err = run(*words)
    assert code == 2 and err.startswith("error: ") and sentence in err and err.count("\n") == 1
    assert (tmp_path / "taken" / "file").read_text() == "mine"
    assert {path.name for path in tmp_path.iterdir()} == {"taken", "page.html", "theirs.pth"}


@pytest.mark.parametrize("target", ["gfm", "swin", "authors"])
def test_what_exists_is_never_replaced(run, pretrained, tmp_path, target):
    """Not even an empty folder, the working directory or the source itself."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "mine.pth").write_text("mine")
    before = sorted(path.name for path in tmp_path.iterdir())
    for output in ("empty", ".", "..", "mine.pth", "theirs.pth"):
        code, _, err = run("convert", "theirs.pth", output, "--to", target)
        assert code == 2 and err.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert (tmp_path / "mine.pth").read_text() == "mine"


@pytest.mark.parametrize("target", ["gfm", "swin", "authors"])
def test_a_failing_write_leaves_nothing(run, pretrained, tmp_path, monkeypatch, target):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(GFMForPreTraining, "save_pretrained", full)
    monkeypatch.setattr("transformers.SwinForMaskedImageModeling.save_pretrained", full)
    monkeypatch.setattr("torch.save", full)
    code, _, err = run("convert", "theirs.pth", "out.pth" if target == "authors" else "out", "--to", target)
    assert code == 2 and "No space left" in err
    assert [path.name for path in tmp_path.iterdir()] == ["theirs.pth"]


def test_a_parent_that_is_a_file_is_said_before_the_work(run, pretrained, tmp_path):
    (tmp_path / "file").write_text("x")
    code, _, err = run("convert", "theirs.pth", "file/out")
    assert code == 2 and "no folder that you may write to" in err


def test_windows_that_do_not_divide_a_map_stay_here(run, pretrained, tmp_path):
    for target in ("authors", "timm"):
        code, _, err = run("convert", "theirs.pth", "out.pth", "--to", target, "--set", "window_size=3")
        assert code == 2 and "windows that divide each stage's map" in err
    assert run("convert", "theirs.pth", "out.pth", "--to", "mmseg", "--set", "window_size=3")[0] == 0


def test_settings_are_read_as_json_python_or_text():
    read = gfm_hf_cli._setting
    assert read("depths=(1, 1)") == ("depths", [1, 1]) and read("a=[1.5,2]") == ("a", [1.5, 2])
    assert (
        read("gsd=10") == ("gsd", 10) and read("teacher=null") == ("teacher", None) and read("x=a b") == ("x", "a b")
    )


def test_targets_of_the_command_are_the_librarys():
    from gfm_hf.convert.outward import FILE_SUFFIXES, TARGETS

    action = next(
        a
        for a in gfm_hf_cli.build_parser()._subparsers._group_actions[0].choices["convert"]._actions
        if a.dest == "to"
    )
    assert tuple(action.choices) == TARGETS and gfm_hf_cli.FILE_SUFFIXES == FILE_SUFFIXES


def test_the_installed_command_is_this_one(tiny_config, tmp_path):
    command = Path(sys.executable).with_name("gfm-hf")
    if not command.exists():
        pytest.skip("the package is not installed beside this interpreter")
    GFMModel(tiny_config).save_pretrained(tmp_path / "ours")
    done = subprocess.run(
        [command, "info", str(tmp_path / "ours")],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0 and "GFMModel" in done.stdout
