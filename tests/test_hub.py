"""Cards and pushing, against files and a Hub that is a list of calls; tests/hub has a real server."""

import json
import re

import httpx2
import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled, RemoteEntryNotFoundError
from huggingface_hub.repocard_data import model_index_to_eval_results
from huggingface_hub.utils import filter_repo_objects
from PIL import Image

from gfm_hf import GFMForPreTraining, GFMImageProcessor, GFMModel, hub
from gfm_hf.hub import BEGIN, END, PushError, push_checkpoint, write_card
from gfm_hf.model.configuration_gfm import AUTO_MAP


FACTS = {
    "images": "folder scenes, 40 images",
    "steps": 12,
    "eval_loss": 0.123456,
    "eval_reconstruction_loss": np.float64(0.5),  # as an evaluation returns it
    "energy_kwh": 1.5,
    "co2_kg": 0.855,
    "energy_method": "paper formula",
    "hardware": "1 x a card",
    "country_iso_code": "USA",
}
ADAPTER = {
    "peft_type": "LORA",
    "base_model_name_or_path": "someone/backbone",
    "auto_mapping": {"base_model_class": "GFMForImageClassification"},
}


@pytest.fixture
def folder(tmp_path):
    """What cards are made from: two JSON files."""
    return write_configs(tmp_path / "run")


def write_configs(path, processor=None, **config):
    path.mkdir(exist_ok=True)
    config = {
        "model_type": "gfm",
        "architectures": ["GFMForPreTraining"],
        "hidden_size": 64,
        "image_size": 64,
    } | config
    processor = {
        "image_processor_type": "GFMImageProcessor",
        "image_mean": [0.1, 0.2, 0.3],
        "image_std": [0.5, 0.6, 0.7],
        "rescale_factor": 1e-4,
    } | (processor or {})
    (path / "config.json").write_text(json.dumps({"num_channels": 3, "patch_size": 4} | config))
    (path / "preprocessor_config.json").write_text(json.dumps(processor))
    return path


def card_of(folder):
    return ModelCard.load(folder / "README.md")


def readme(folder):
    return (folder / "README.md").read_bytes().decode()


def metadata(folder):
    return yaml.safe_load(readme(folder).split("---\n")[1])


# -- What a card says --------------------------------------------------------------------------------------------------


def test_metadata_say_what_the_hub_asks_for(folder):
    card = write_card(folder, "someone/backbone", FACTS)
    data = card_of(folder).data
    assert data.to_dict() == card.data.to_dict()
    assert data.library_name == "transformers" and data.pipeline_tag == "image-feature-extraction"
    assert {"geospatial", "remote-sensing"} <= set(data.tags)
    # The Hub counts in grams.
    assert data.co2_eq_emissions == {
        "emissions": pytest.approx(855),
        "source": "paper formula",
        "training_type": "pre-training",
        "geographical_location": "USA",
        "hardware_used": "1 x a card",
    }
    absent = ("datasets", "base_model", "base_model_relation", "license")
    assert not set(absent) & set(metadata(folder))


def test_metrics_are_a_model_index(folder):
    write_card(
        folder, "someone/backbone", FACTS | {"dataset_name": "someone/tiles", "test_iou": 0.75, "eval_x": float("nan")}
    )
    name, results = model_index_to_eval_results(metadata(folder)["model-index"])
    assert name == "backbone"
    assert [(one.metric_type, one.metric_value, one.dataset_split) for one in results] == [
        ("loss", 0.123456, "validation"),
        ("reconstruction_loss", 0.5, "validation"),
        ("iou", 0.75, "test"),
    ]
    assert {(one.task_type, one.dataset_type) for one in results} == {("image-feature-extraction", "someone/tiles")}
    write_card(folder, "someone/backbone", {"steps": 3})
    assert "model-index" not in metadata(folder)


@pytest.mark.parametrize(
    ("architecture", "tag", "door"),
    [
        ("GFMModel", "image-feature-extraction", "AutoModel"),
        ("GFMForImageClassification", "image-classification", "AutoModelForImageClassification"),
        ("GFMForSemanticSegmentation", "image-segmentation", "AutoModelForSemanticSegmentation"),
        ("GFMForImageSuperResolution", "image-to-image", "AutoModelForImageToImage"),
    ],
)
def test_the_task_is_the_architectures(tmp_path, architecture, tag, door):
    folder = write_configs(tmp_path, architectures=[architecture], id2label={"0": "a", "1": "b", "2": "c"})
    card = write_card(folder, "someone/model", FACTS)
    assert card.data.pipeline_tag == tag and f"{door}.from_pretrained(" in card.text
    assert ("(batch, 3" in card.text) == (architecture.endswith(("Classification", "Segmentation")))
    assert ("SwinModel" in card.text) == (architecture == "GFMModel")
    assert ("pre-training" in str(card.data.co2_eq_emissions)) == (architecture == "GFMModel")


def test_only_taken_over_weights_make_a_base_model(tmp_path):
    """The Hub knows finetune, adapter, merge and quantized; distillation after a random start is none of them."""
    folder = write_configs(tmp_path, teacher={"name": "microsoft/swin", "revision": None})
    card = write_card(folder, "someone/backbone", FACTS)
    assert "frozen teacher (microsoft/swin)" in card.text and "base_model" not in metadata(folder)
    data = write_card(folder, "someone/backbone", FACTS | {"base_model": "microsoft/swin"}).data
    assert data.base_model == "microsoft/swin" and data.base_model_relation == "finetune"


@pytest.mark.parametrize("name", ["/home/me/teacher", "./teacher", "../a/b", "teacher"])
def test_a_base_in_a_folder_is_no_model_of_the_hub(tmp_path, name):
    folder = write_configs(tmp_path, teacher={"name": name, "revision": None})
    card = write_card(folder, "x", FACTS | {"base_model": name})
    assert "base_model" not in metadata(folder)
    # Named, but not where it lies on somebody's disk.
    assert f"frozen teacher ({name.rpartition('/')[2]})" in card.text


def test_an_adapter_names_its_base(tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps(ADAPTER))
    card = write_card(tmp_path, "someone/adapter", {})
    assert (card.data.library_name, card.data.base_model_relation) == ("peft", "adapter")
    assert card.data.base_model == "someone/backbone" and card.data.pipeline_tag == "image-classification"
    assert 'AutoImageProcessor.from_pretrained("someone/backbone"' in card.text
    assert 'AutoModelForImageClassification.from_pretrained("someone/adapter"' in card.text


def test_text_tells_how_to_use_it_and_what_it_was_made_from(tmp_path):
    folder = write_configs(tmp_path, {"band_names": ["B02", "B03", "B04"]}, gsd=10)
    text = write_card(folder, "someone/backbone", FACTS | {"dataset_name": ["a/b", "c/d"], "note": "a | b"}).text
    assert 'from_pretrained("someone/backbone", trust_remote_code=True)' in text and "(batch, 64)" in text
    assert "\n# backbone\n" in text and "@inproceedings{mendieta2023gfm," in text and "## Limits" in text
    for row in (
        "| B02 | 0.1 | 0.5 |",
        "| B04 | 0.3 | 0.7 |",
        "| values are first multiplied by | 0.0001 |",
        "| ground sampling distance | 10 m |",
        "| eval loss | 0.1235 |",
        "| steps | 12 |",
        "| images | folder scenes, 40 images |",
        "| dataset name | a/b, c/d |",
        "| note | a \\| b |",
    ):
        assert f"\n{row}\n" in text
    assert "frozen teacher" not in text
    assert "not stated" in write_card(write_configs(tmp_path), "x", {}).text


def test_bands_without_names_or_normalisation(tmp_path):
    folder = write_configs(tmp_path, {"image_mean": None, "image_std": None, "do_rescale": False}, num_channels=2)
    text = write_card(folder, "x", {}).text
    assert "| 0 | none | none |\n| 1 | none | none |" in text and "multiplied by | 1 |" in text


def test_facts_are_found_beside_the_model(folder):
    (folder / "conversion.json").write_text(json.dumps({"facts": {"converted_from": "gfm.pth"}, "dropped": {}}))
    text = write_card(folder, "x").text
    assert "| converted from | gfm.pth |" in text and "## Origin" in text and "continually pretrained with" not in text
    results = FACTS | {"unreadable": {"a.png": "?"}, "arguments": {"train_dir": "/home/me"}}
    (folder / "all_results.json").write_text(json.dumps(results))
    text = write_card(folder, "x").text
    assert "| steps | 12 |" in text and "continually pretrained with" in text and "/home/me" not in text


def test_the_code_of_the_card_runs(tmp_path, tiny_config):
    """The block a reader copies, on a model saved with this card."""
    GFMModel(tiny_config).save_pretrained(tmp_path)
    GFMImageProcessor(size=64).save_pretrained(tmp_path)
    block = write_card(tmp_path, str(tmp_path)).text.split("```python")[1].split("```")[0]
    names = {"images": [Image.new("RGB", (70, 60))] * 2}
    exec(block.replace(", trust_remote_code=True", ""), names)
    assert names["features"].shape == (2, tiny_config.hidden_size)


def test_a_folder_that_is_no_model(tmp_path):
    with pytest.raises(ValueError, match="has no config.json"):
        write_card(tmp_path, "x")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="cannot be read as JSON"):
        write_card(tmp_path, "x")


# -- What a person wrote -----------------------------------------------------------------------------------------------

OWN = """---
# Chosen by our lawyers
license: cc-by-nc-4.0   # really
language: no
tags:
- forests
- swin
datasets: me/plots
my_key: {deep: [1, 2]}
pipeline_tag: text-generation
base_model: me/base
model-index:
- name: a leaderboard
  results: []
---

# Forests

Mine.   Två rader.
"""


def test_a_persons_card_is_kept_and_ours_added(folder):
    (folder / "README.md").write_bytes(OWN.encode())
    facts = FACTS | {"license": "mit", "dataset_name": "me/tiles", "base_model": "microsoft/swin"}
    write_card(folder, "me/forests", facts)
    text = readme(folder)
    own_body = OWN.split("---\n")[2]
    assert own_body + "\n" + BEGIN in text and text.endswith(END + "\n")
    for line in (
        "# Chosen by our lawyers\n",
        "license: cc-by-nc-4.0   # really\n",
        "language: no\n",
        "{deep: [1, 2]}\n",
    ):
        assert line in text
    data = metadata(folder)
    assert data["tags"][:2] == ["forests", "swin"] and "geospatial" in data["tags"] and data["tags"].count("swin") == 1
    assert data["datasets"] == ["me/plots", "me/tiles"] and data["pipeline_tag"] == "image-feature-extraction"
    assert data["base_model"] == "me/base" and "base_model_relation" not in data
    assert [entry["name"] for entry in data["model-index"]] == ["a leaderboard", "forests"]


def test_writing_again_changes_only_what_changed(folder):
    (folder / "README.md").write_bytes(OWN.encode())
    write_card(folder, "me/forests", FACTS)
    once = readme(folder)
    write_card(folder, "me/forests", FACTS)
    assert readme(folder) == once
    (folder / "README.md").write_bytes(once.replace(END, f"{END}\n\nBelow, too.").encode())
    write_card(folder, "me/woods", FACTS | {"eval_loss": 0.25, "co2_kg": 1.0})
    text = readme(folder)
    assert text.count(BEGIN) == text.count(END) == 1 and text.endswith("\n\nBelow, too.\n")
    assert "0.1235" not in text and "| eval loss | 0.25 |" in text and "me/forests" not in text
    data = metadata(folder)
    # Our entry is known again under its old name.
    assert [entry["name"] for entry in data["model-index"]] == ["a leaderboard", "woods"]
    assert data["co2_eq_emissions"]["emissions"] == 1000


def test_other_line_ends_and_a_mark_are_understood(folder):
    text = "\ufeff" + OWN.replace("\n", "\r\n")
    (folder / "README.md").write_bytes(text.encode())
    write_card(folder, "me/forests", FACTS)
    written = readme(folder)
    assert "# Forests\r\n\r\nMine.   Två rader.\r\n" in written and not re.search("(?<!\r)\n", written)
    assert yaml.safe_load(written.split("---\r\n")[1])["license"] == "cc-by-nc-4.0"


def test_a_lost_comment_costs_no_text(folder):
    broken = f"# Mine\n\n{BEGIN}\nstale\n\nimportant\n"
    (folder / "README.md").write_text(broken)
    for _ in range(2):
        write_card(folder, "me/x", FACTS)
    text = readme(folder)
    assert broken in text and text.count(END) == 1


def test_the_empty_form_of_transformers_gives_way(folder):
    data = ModelCardData(library_name="transformers", tags=["swin"])
    about = "This is the model card of a 🤗 transformers model that has been pushed on the Hub. This model card has been automatically generated."
    form = ModelCard.from_template(data, model_description=about)
    form.save(folder / "README.md")
    write_card(folder, "me/x", FACTS)
    assert "More Information Needed" not in readme(folder)
    form.text = form.text.replace("## Uses", "## Uses\n\nForests only.")
    form.save(folder / "README.md")
    write_card(folder, "me/x", FACTS)
    assert "Forests only." in readme(folder) and BEGIN in readme(folder)


def test_a_second_card_fills_in(folder):
    """A licence chosen, or a text written, on the Hub."""
    write_card(folder, "me/x", FACTS)
    write_card(folder, "me/x", FACTS, beside="---\nlicense: mit\ntags: [forests]\n---\n")
    assert metadata(folder)["license"] == "mit" and "forests" in metadata(folder)["tags"]
    remote = readme(folder).replace(BEGIN, f"Written there.\n\n{BEGIN}").replace("license: mit", "license: bsd")
    write_card(folder, "me/x", FACTS, beside=remote)
    assert "Written there." in readme(folder) and metadata(folder)["license"] == "bsd"
    assert readme(folder).count(BEGIN) == 1
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\nHere.\n")
    write_card(folder, "me/x", FACTS, beside=remote)
    assert "Written there." not in readme(folder) and "Here." in readme(folder)
    assert metadata(folder)["license"] == "apache-2.0" and "forests" in metadata(folder)["tags"]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [(b"---\na: [\n---\n", "are no YAML"), (b"---\n- a\n---\n", "name: value"), (b"\xff\xfe", "UTF-8")],
)
def test_a_card_that_cannot_be_read_is_left_alone(folder, content, sentence):
    (folder / "README.md").write_bytes(content)
    with pytest.raises(ValueError, match=sentence):
        write_card(folder, "me/x", FACTS)
    assert (folder / "README.md").read_bytes() == content
    assert not list(folder.glob("unfinished*"))


# -- Pushing -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def checkpoint(tmp_path, tiny_config):
    path = tmp_path / "checkpoint"
    GFMForPreTraining(tiny_config).save_pretrained(path)
    GFMImageProcessor(size=64).save_pretrained(path)
    return path


class Commit:
    commit_url = "https://hub/commit/1"


class Repository(str):
    repo_id = "me/model"
    private = False


@pytest.fixture
def calls(monkeypatch):
    """A Hub that remembers what it was asked for, and raises what `calls["raise"]` holds for an endpoint, one by one."""
    calls = {"asked": [], "raise": {}, "waits": [], "card": None}

    class Api:
        def __init__(self, token=None):
            calls["token"] = token

        def __getattr__(self, name):
            def ask(*args, **kwargs):
                calls["asked"].append(name)
                calls[name] = (args, kwargs)
                if calls["raise"].get(name):
                    raise calls["raise"][name].pop(0)
                if name == "hf_hub_download":
                    if calls["card"] is None:
                        raise RemoteEntryNotFoundError("404", response=answer(404))
                    return calls["card"]
                return Commit() if name == "upload_folder" else Repository()

            return ask

    monkeypatch.setattr(hub, "HfApi", Api)
    monkeypatch.setattr(hub.time, "sleep", calls["waits"].append)
    return calls


def answer(status, **headers):
    return httpx2.Response(status, headers=headers, request=httpx2.Request("POST", "https://hub/api"))


def refusal(status, said="no", **headers):
    return HfHubHTTPError(said, response=answer(status, **headers), server_message=said)


def test_push_makes_the_repository_and_leaves_checkpoints_at_home(calls, checkpoint):
    assert push_checkpoint(checkpoint, "model", token="hf_x") == "https://hub/commit/1"
    assert calls["token"] == "hf_x" and calls["asked"] == ["create_repo", "hf_hub_download", "upload_folder"]
    assert calls["create_repo"] == (("model",), {"private": None, "exist_ok": True})
    upload = calls["upload_folder"][1]
    # A bare name became one in the user's namespace.
    assert upload["repo_id"] == "me/model" and upload["revision"] is None
    assert 'from_pretrained("me/model"' in readme(checkpoint)
    names = ["model.safetensors", "README.md", "panels/step-1.png", "trainer_state.jsonl"]
    left = ["checkpoint-10/optimizer.bin", "unfinished-checkpoint-12/model.safetensors", "unfinished-push.log"]
    left += ["gfm-pretraining/1/events.out.tfevents.1", "gfm-pretraining/hparams.yml", "__pycache__/x.pyc"]
    assert list(filter_repo_objects(names + left, ignore_patterns=upload["ignore_patterns"])) == names


def test_push_to_a_branch_makes_it(calls, checkpoint):
    push_checkpoint(checkpoint, "me/model", revision="dev/x")
    assert calls["create_branch"] == (("me/model",), {"branch": "dev/x", "exist_ok": True})
    assert calls["upload_folder"][1]["revision"] == "dev/x"
    for revision in ("main", "refs/pr/1"):
        calls["asked"].clear()
        push_checkpoint(checkpoint, "me/model", revision=revision)
        assert "create_branch" not in calls["asked"]


def test_a_private_push_does_not_land_in_a_public_repository(calls, checkpoint, monkeypatch):
    with pytest.raises(PushError, match="me/model exists and is public"):
        push_checkpoint(checkpoint, "me/model", private=True)
    assert "upload_folder" not in calls["asked"]
    monkeypatch.setattr(Repository, "private", True)
    push_checkpoint(checkpoint, "me/model", private=True)
    assert calls["create_repo"][1]["private"] is True


def test_the_card_of_the_hub_is_merged(calls, checkpoint, tmp_path):
    calls["card"] = tmp_path / "remote.md"
    calls["card"].write_text("---\nlicense: mit\n---\nWritten there.\n")
    push_checkpoint(checkpoint, "me/model")
    assert metadata(checkpoint)["license"] == "mit" and "Written there." in readme(checkpoint)


def test_stale_doors_and_code_are_cured(calls, checkpoint):
    config = json.loads((checkpoint / "config.json").read_text())
    doors = {"AutoModel": "other/repo--modeling_gfm.GFMModel", "AutoConfig": "configuration_gfm.GFMConfig"}
    doors |= {"AutoModelForX": "other/repo--mine.X", "AutoModelForY": "other/repo--elsewhere.Y"}
    (checkpoint / "config.json").write_text(json.dumps(config | {"auto_map": doors}))
    (checkpoint / "mine.py").write_text("")
    settings = json.loads((checkpoint / "preprocessor_config.json").read_text())
    stale = {"auto_map": {"AutoImageProcessor": "other/repo--image_processing_gfm.GFMImageProcessor"}}
    (checkpoint / "preprocessor_config.json").write_text(json.dumps(settings | stale))
    (checkpoint / "swin_gfm.py").unlink()
    (checkpoint / "modeling_gfm.py").write_text("stale")
    push_checkpoint(checkpoint, "me/model")
    cured = json.loads((checkpoint / "config.json").read_text())
    kept = {"AutoModelForX": "mine.X", "AutoModelForY": "other/repo--elsewhere.Y"}
    assert cured["auto_map"] == AUTO_MAP | kept
    assert {**cured, "auto_map": 0} == {**config, "auto_map": 0}
    assert json.loads((checkpoint / "preprocessor_config.json").read_text()) == settings
    for source in hub.CODE.glob("*_gfm.py"):
        assert (checkpoint / source.name).read_bytes() == source.read_bytes()
    assert not list(checkpoint.glob("unfinished*"))


def test_an_adapter_needs_no_model(calls, tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps(ADAPTER))
    with pytest.raises(ValueError, match="no weights .adapter_model.safetensors."):
        push_checkpoint(tmp_path, "me/adapter")
    (tmp_path / "adapter_model.safetensors").touch()
    push_checkpoint(tmp_path, "me/adapter")
    assert {path.name for path in tmp_path.iterdir()} == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    }


def break_shards(folder):
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "swin"}'), "holds a swin model"),
        (lambda folder: (folder / "model.safetensors").unlink(), "has no weights"),
        (break_shards, "lacks model-00002-of-00002.safetensors of the weights"),
        (lambda folder: (folder / "preprocessor_config.json").unlink(), "has no preprocessor_config.json"),
    ],
)
def test_a_folder_that_nobody_could_load_is_refused(calls, checkpoint, damage, sentence):
    damage(checkpoint)
    with pytest.raises(ValueError, match=sentence):
        push_checkpoint(checkpoint, "me/model")
    assert calls["asked"] == [] and not (checkpoint / "README.md").exists()


def test_whole_shards_are_fine(calls, checkpoint):
    break_shards(checkpoint)
    (checkpoint / "model-00002-of-00002.safetensors").touch()
    push_checkpoint(checkpoint, "me/model")


# -- Trouble -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("endpoint", ["create_repo", "upload_folder", "hf_hub_download"])
def test_passing_trouble_is_waited_for(calls, checkpoint, endpoint):
    trouble = [refusal(503), httpx2.ConnectError("down"), refusal(429, **{"Retry-After": "7"}), ConnectionError("cut")]
    calls["raise"][endpoint] = trouble
    push_checkpoint(checkpoint, "me/model")
    assert calls["asked"].count(endpoint) == 5 and calls["waits"] == [1, 2, 8, 8]


def test_the_hubs_own_waiting_time_counts_up_to_a_minute(calls, checkpoint):
    calls["raise"]["upload_folder"] = [
        refusal(429, RateLimit='"api";r=0;t=12'),
        refusal(429, **{"Retry-After": "999"}),
    ]
    push_checkpoint(checkpoint, "me/model")
    assert calls["waits"] == [13, 60]


@pytest.mark.parametrize(
    ("error", "tries", "sentence"),
    [
        (lambda: refusal(401), 1, "hf auth login"),
        (lambda: refusal(403, "Forbidden."), 1, "may not write there .Forbidden.; log in"),
        (lambda: refusal(404), 1, "hf auth whoami"),
        (lambda: refusal(402), 1, "storage is used up"),
        (lambda: refusal(400, "license is wrong"), 1, "refuses it .license is wrong.; correct"),
        (lambda: refusal(412), 1, "push again"),
        (lambda: refusal(429), 5, "slow down"),
        (lambda: refusal(503), 5, "in trouble .503"),
        (lambda: httpx2.ConnectError("no\nroute"), 5, "could not be reached .no route.; check the network"),
        (lambda: OfflineModeIsEnabled("offline"), 1, "HF_HUB_OFFLINE"),
        (lambda: ValueError("Invalid metadata in README.md."), 1, "Invalid metadata in README.md; correct that"),
    ],
)
@pytest.mark.parametrize("endpoint", ["create_repo", "upload_folder"])
def test_every_refusal_is_one_sentence(calls, checkpoint, endpoint, error, tries, sentence):
    before = {path.name: path.read_bytes() for path in checkpoint.iterdir()}
    calls["raise"][endpoint] = [error() for _ in range(9)]
    with pytest.raises(PushError, match=f"^Pushing to me/model failed: .*{sentence}") as caught:
        push_checkpoint(checkpoint, "me/model")
    assert "\n" not in str(caught.value) and calls["asked"].count(endpoint) == tries
    after = {path.name: path.read_bytes() for path in checkpoint.iterdir() if path.name != "README.md"}
    assert after == before


def test_a_name_that_is_none(checkpoint):
    with pytest.raises(PushError, match="no name for a repository .*; use namespace/name"):
        push_checkpoint(checkpoint, "a b/c")
