"""Every way to load what was pushed, by real clients in fresh processes with empty caches."""

import json
import shutil

import numpy as np
import pytest
import transformers
from client_tools import description, digests
from loopback import LoopbackHub
from transformers import SwinModel

from gfm_hf import (
    GFMForChangeDetection,
    GFMForImageClassification,
    GFMForPreTraining,
    GFMImageProcessor,
    GFMModel,
    convert_checkpoint,
)
from gfm_hf.model import modeling_gfm
from gfm_hf.model.configuration_gfm import AUTO_MAP


# Auto class -> class of the model behind it.
DOORS = {
    door: getattr(modeling_gfm, entry.partition(".")[2])
    for door, entry in AUTO_MAP.items()
    if door != "AutoConfig" and hasattr(transformers, door)
}
# The one repository of a pretrained model, and one for every kind of model with a head that was trained afterwards.
PRETRAINED = "owner/tiny-gfm"
HEADS = {
    f"owner/{kind.__name__}": kind
    for kind in DOORS.values()
    if kind not in (GFMModel, modeling_gfm.GFMBackbone, GFMForPreTraining)
}
CODE = {
    "label_maps_gfm.py",
    "configuration_gfm.py",
    "decoders_gfm.py",
    "image_processing_gfm.py",
    "loading_gfm.py",
    "losses_gfm.py",
    "modeling_gfm.py",
    "swin_gfm.py",
    "value_checks_gfm.py",
    "weights_gfm.py",
}


def repo_of(model_class):
    """Where all weights of a door's class are."""
    return next((repo for repo, kind in HEADS.items() if kind is model_class), PRETRAINED)


@pytest.fixture(scope="module")
def folders(checkpoint, save_checkpoint, tmp_path_factory):
    """Repository -> what is pushed there."""
    heads = {
        repo: save_checkpoint(tmp_path_factory.mktemp("head"), kind, num_labels=3) for repo, kind in HEADS.items()
    }
    return {PRETRAINED: checkpoint} | heads


@pytest.fixture(scope="module")
def pushed(client, folders, tmp_path_factory):
    """A Hub with one repository of each kind, pushed by this library."""
    with LoopbackHub() as hub:
        pushes = ["from gfm_hf.hub import push_checkpoint"]
        for repo, folder in folders.items():
            copy = shutil.copytree(folder, tmp_path_factory.mktemp("pushed") / "model")
            pushes.append(f"push_checkpoint({str(copy)!r}, {repo!r})")
        client(hub, "\n".join(pushes))
        yield hub
    assert not hub.bugs, hub.bugs[0]


def assert_same(found, expected, remote=True):
    """A client's description of its model against ours: the same bits, and outputs equal but for rounding."""
    assert found["class"] == expected["class"] and found["remote"] == remote
    assert found["weights"] == expected["weights"]
    assert len(found["outputs"]) == len(expected["outputs"])
    for ours, theirs in zip(expected["outputs"], found["outputs"]):
        np.testing.assert_allclose(theirs, ours, rtol=1e-5, atol=1e-5)


def test_the_doors_that_people_were_promised_are_there():
    promised = {"AutoConfig", "AutoModel", "AutoBackbone", "AutoModelForPreTraining"}
    assert set(AUTO_MAP) >= promised | {"AutoModelForMaskedImageModeling", "AutoModelForImageClassification"}


@pytest.mark.parametrize(
    ("door", "repo"),
    [(door, repo_of(kind)) for door, kind in DOORS.items()] + [("AutoModel", repo_of(GFMForImageClassification))],
)
def test_every_door_opens_where_gfm_hf_is_absent(pushed, client, folders, door, repo):
    source = f"""
import importlib.util
from transformers import {door}
assert failure(lambda: importlib.util.find_spec("gfm_hf"))["types"][0] == "ModuleNotFoundError"
say(description({door}.from_pretrained("{repo}", trust_remote_code=True)))
"""
    expected = description(DOORS[door].from_pretrained(folders[repo]))
    assert_same(client(pushed, source, installed=False).value, expected)


@pytest.mark.parametrize("file", ["train_ckpt_epoch_0.pth", "finetuned_ckpt_epoch_max.pth"])
def test_a_converted_checkpoint_comes_back_bit_equal(pushed, client, parity_dir, tmp_path, file):
    """The authors' file -> gfm-hf convert -> gfm-hf push -> Auto class where gfm_hf is absent."""
    expected = convert_checkpoint(parity_dir / file)
    door = "AutoModelForPreTraining" if isinstance(expected, GFMForPreTraining) else "AutoModelForImageClassification"
    source = f"""
from gfm_hf_cli import main
assert main(["convert", {str(parity_dir / file)!r}, {str(tmp_path / "ours")!r}]) == 0
assert main(["push", {str(tmp_path / "ours")!r}, "owner/converted"]) == 0
"""
    client(pushed, source)
    source = f"""
from transformers import {door}
say(digests({door}.from_pretrained("owner/converted", trust_remote_code=True)))
"""
    assert client(pushed, source, installed=False).value == digests(expected)


def test_an_adapter_brings_its_base_and_knows_its_labels(pushed, client, tmp_path):
    """Pushed alone, onto a base that was pushed before and that has no head."""
    answers = """
import torch
def answers(model):
    return model(pixel_values=torch.linspace(-1, 1, 3 * 64 * 64).reshape(1, 3, 64, 64)).logits.tolist()
"""
    source = f"""{answers}
from gfm_hf import GFMForImageClassification, GFMImageProcessor
from gfm_hf.hub import push_checkpoint
from gfm_hf.training.adapting import add_lora, save_adapter
labels = {{"num_labels": 3, "id2label": {{0: "field", 1: "roof", 2: "water"}}}}
model = add_lora(GFMForImageClassification.from_pretrained("{PRETRAINED}", **labels), 2)
with torch.no_grad():
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.normal_()
save_adapter(model, {str(tmp_path)!r})
GFMImageProcessor(size=64).save_pretrained({str(tmp_path)!r})
push_checkpoint({str(tmp_path)!r}, "owner/adapter")
say(answers(model.eval()))
"""
    expected = client(pushed, source).value
    assert not list(tmp_path.glob("model*.safetensors"))
    source = f"""{answers}
import transformers
if INSTALLED:
    import gfm_hf
    auto = transformers.AutoModelForImageClassification.from_pretrained("owner/adapter")
    own = gfm_hf.GFMForImageClassification.from_pretrained("owner/adapter")
    assert answers(own) == answers(auto)
else:
    auto = transformers.AutoModelForImageClassification.from_pretrained("owner/adapter", trust_remote_code=True)
say([auto.config.id2label[1], answers(auto)])
"""
    for installed in (True, False):
        name, found = client(pushed, f"INSTALLED = {installed}{source}", installed=installed).value
        assert name == "roof"
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_change_detection_has_a_door_of_its_own(pushed, client, save_checkpoint, tmp_path):
    """transformers has no class for it; its door is opened by hand."""
    folder = save_checkpoint(tmp_path / "change", GFMForChangeDetection, num_labels=2)
    expected = digests(GFMForChangeDetection.from_pretrained(folder))
    client(pushed, f"from gfm_hf.hub import push_checkpoint\npush_checkpoint({str(folder)!r}, 'owner/change')")
    source = """
from transformers import AutoConfig
from transformers.dynamic_module_utils import get_class_from_dynamic_module
config = AutoConfig.from_pretrained("owner/change", trust_remote_code=True)
model_class = get_class_from_dynamic_module(config.auto_map["AutoModelForChangeDetection"], "owner/change")
model = model_class.from_pretrained("owner/change")
say([type(model).__module__.startswith("transformers_modules"), digests(model)])
"""
    assert client(pushed, source, installed=False).value == [True, expected]


def test_configuration_and_processor_load_where_gfm_hf_is_absent(pushed, client, checkpoint):
    source = """
import numpy as np
from transformers import AutoConfig, AutoImageProcessor
config = AutoConfig.from_pretrained("owner/tiny-gfm", trust_remote_code=True)
processor = AutoImageProcessor.from_pretrained("owner/tiny-gfm", trust_remote_code=True)
image = np.arange(50 * 70 * 3, dtype=np.uint8).reshape(50, 70, 3)
values = processor(image, return_tensors="np")["pixel_values"]
say([type(config).__name__, config.rgb_channels, type(processor).__name__, values.shape, values.tobytes().hex()])
"""
    kind, rgb, processor, shape, values = client(pushed, source, installed=False).value
    image = np.arange(50 * 70 * 3, dtype=np.uint8).reshape(50, 70, 3)
    expected = GFMImageProcessor.from_pretrained(checkpoint)(image, return_tensors="np")["pixel_values"]
    assert (kind, rgb, processor) == ("GFMConfig", [0, 1, 2], "GFMImageProcessor")
    assert tuple(shape) == expected.shape and bytes.fromhex(values) == expected.tobytes()


def test_stock_swin_loads_what_was_pushed(pushed, client, checkpoint):
    """Where neither gfm_hf nor remote code may run; both the pretraining model's encoder and the classifier's."""
    source = """
from transformers import SwinModel
say([description(SwinModel.from_pretrained(f"owner/{name}")) for name in ("tiny-gfm", "GFMForImageClassification")])
"""
    pretrained, classifier = client(pushed, source, installed=False).value
    assert_same(pretrained, description(SwinModel.from_pretrained(checkpoint)), remote=False)
    ours = digests(GFMModel.from_pretrained(checkpoint))
    assert pretrained["weights"] == {name: ours[name] for name in ours if name != "embeddings.mask_token"}
    assert classifier["weights"].keys() == pretrained["weights"].keys()
    assert classifier["weights"] != pretrained["weights"]


def test_with_gfm_hf_no_remote_code_is_needed_or_fetched(pushed, client, folders):
    before = len(pushed.requests)
    loads = {door: repo_of(kind) for door, kind in DOORS.items()}
    source = f"""
import gfm_hf, transformers
from transformers import AutoConfig, AutoImageProcessor
assert type(AutoConfig.from_pretrained("{PRETRAINED}")) is gfm_hf.GFMConfig
assert type(AutoImageProcessor.from_pretrained("{PRETRAINED}")) is gfm_hf.GFMImageProcessor
load = lambda door, repo: description(getattr(transformers, door).from_pretrained(repo))
say({{door: load(door, repo) for door, repo in {loads}.items()}})
"""
    found = client(pushed, source).value
    for door, kind in DOORS.items():
        assert_same(found[door], description(kind.from_pretrained(folders[loads[door]])), remote=False)
    assert not [request.target for request in pushed.requests[before:] if request.path.endswith(".py")]


def test_the_example_on_the_card_runs(pushed, client):
    """As a reader would run it, and once more as a pipeline, where gfm_hf is absent."""
    source = """
import re
import numpy as np
from huggingface_hub import hf_hub_download
from PIL import Image
from transformers import pipeline
images, shapes = [Image.fromarray(np.full((64, 64, 3), value, np.uint8)) for value in (50, 200)], []
for repo in ("owner/tiny-gfm", "owner/GFMForImageClassification"):
    names = {"images": images}
    exec(re.search("```python\\n(.*?)```", Path(hf_hub_download(repo, "README.md")).read_text(), re.DOTALL)[1], names)
    shapes.append(names.get("features", names.get("logits")).shape)
labels = pipeline("image-classification", model="owner/GFMForImageClassification", trust_remote_code=True)(images[0])
say([*shapes, len(labels)])
"""
    assert client(pushed, source, installed=False).value == [[2, 64], [2, 3], 3]


def test_who_loaded_it_without_gfm_hf_can_push_it_on(pushed, client, checkpoint):
    source = """
from transformers import AutoImageProcessor, AutoModelForPreTraining
model = AutoModelForPreTraining.from_pretrained("owner/tiny-gfm", trust_remote_code=True)
processor = AutoImageProcessor.from_pretrained("owner/tiny-gfm", trust_remote_code=True)
model.push_to_hub("owner/again")
processor.push_to_hub("owner/again")
"""
    client(pushed, source, installed=False)
    assert set(pushed.files("owner/again")) >= CODE | {"config.json", "model.safetensors", "preprocessor_config.json"}
    before = len(pushed.requests)
    source = """
from transformers import AutoImageProcessor, AutoModel
AutoImageProcessor.from_pretrained("owner/again", trust_remote_code=True)
say(description(AutoModel.from_pretrained("owner/again", trust_remote_code=True)))
"""
    assert_same(client(pushed, source, installed=False).value, description(GFMModel.from_pretrained(checkpoint)))
    elsewhere = [request.target for request in pushed.requests[before:] if "owner/tiny-gfm" in request.target]
    assert not elsewhere, "the second repository still needs the first"


def test_without_trust_no_code_runs(pushed, client):
    before = len(pushed.requests)
    source = """
from transformers import AutoModel
load = lambda **trust: failure(lambda: AutoModel.from_pretrained("owner/tiny-gfm", **trust))
say([load(trust_remote_code=False), load()])
"""
    for refusal in client(pushed, source, installed=False).value:
        assert refusal["types"][0] == "ValueError" and "trust_remote_code=True" in refusal["says"]
    assert not [request.target for request in pushed.requests[before:] if request.path.endswith(".py")]


def test_branch_tag_and_commit_each_give_their_own_weights(hub, client, checkpoint, tmp_path):
    """Three revisions with three sets of weights, and a fourth on main."""
    files = {path.name: path.read_bytes() for path in checkpoint.iterdir()}
    repo = hub.add_repo("owner/m", files)
    scaled = {}
    for number, name in enumerate(("branch", "tag", "sha"), start=2):
        model = GFMForPreTraining.from_pretrained(checkpoint)
        for parameter in model.parameters():
            parameter.data *= number
        model.save_pretrained(tmp_path / name)
        weights = (tmp_path / name / "model.safetensors").read_bytes()
        commit = hub.add_commit(repo, {"model.safetensors": weights})
        scaled[name] = (commit.sha, digests(model.swin))
    repo.branches["dev/x"], repo.tags["v1"] = scaled["branch"][0], scaled["tag"][0]
    hub.add_commit(repo, files)
    revisions = {"main": "main", "branch": "dev/x", "tag": "v1", "sha": scaled["sha"][0]}
    source = f"""
from transformers import AutoModel
load = lambda revision: AutoModel.from_pretrained("owner/m", revision=revision, trust_remote_code=True)
say({{name: digests(load(revision)) for name, revision in {revisions}.items()}})
"""
    found = client(hub, source, installed=False).value
    assert found.pop("main") == digests(GFMModel.from_pretrained(checkpoint))
    assert found == {name: weights for name, (_, weights) in scaled.items()}


STALE = {
    "another-repository": {
        "AutoConfig": "other/repo--configuration_gfm.GFMConfig",
        "AutoModel": "other/repo--modeling_gfm.GFMModel",
    },
    "doors-missing": {"AutoModelForPreTraining": "modeling_gfm.GFMForPreTraining"},
    "no-doors": None,
}


def stale_copy(checkpoint, folder, auto_map):
    shutil.copytree(checkpoint, folder)
    for name in ("config.json", "preprocessor_config.json"):
        settings = json.loads((folder / name).read_text())
        settings.pop("auto_map")
        if auto_map:
            settings["auto_map"] = auto_map if name == "config.json" else {"AutoImageProcessor": "other/repo--x.Y"}
        (folder / name).write_text(json.dumps(settings))
    return folder


def test_stale_doors_are_cured_by_pushing(hub, client, checkpoint, tmp_path):
    """By the library's own push, and by save and push of its classes."""
    folders = {name: str(stale_copy(checkpoint, tmp_path / name, auto_map)) for name, auto_map in STALE.items()}
    source = f"""
from gfm_hf import GFMForPreTraining, GFMImageProcessor
from gfm_hf.hub import push_checkpoint
for name, folder in {folders}.items():
    for kind in (GFMForPreTraining, GFMImageProcessor):
        kind.from_pretrained(folder).push_to_hub(f"owner/{{name}}-saved")
    push_checkpoint(folder, f"owner/{{name}}-pushed")
"""
    client(hub, source)
    repos = [f"owner/{name}-{way}" for name in STALE for way in ("saved", "pushed")]
    for repo in repos:
        files = hub.files(repo)
        assert json.loads(files["config.json"])["auto_map"] == AUTO_MAP
        doors = json.loads(files["preprocessor_config.json"])["auto_map"]
        assert doors == {"AutoImageProcessor": "image_processing_gfm.GFMImageProcessor"}
        assert set(files) >= CODE
    source = f"""
from transformers import AutoImageProcessor, AutoModel
for repo in {repos}:
    AutoImageProcessor.from_pretrained(repo, trust_remote_code=True)
say([description(AutoModel.from_pretrained(repo, trust_remote_code=True)) for repo in {repos}])
"""
    for found in client(hub, source, installed=False).value:
        assert_same(found, description(GFMModel.from_pretrained(checkpoint)))
