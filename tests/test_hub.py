import json
import warnings

import httpx2
import pytest
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled, RemoteEntryNotFoundError
from huggingface_hub.utils import filter_repo_objects

from gfm_hf import GFMForPreTraining, GFMImageProcessor, hub
from gfm_hf.hub import PushError, push_checkpoint
from gfm_hf.model.configuration_gfm import AUTO_MAP

from .card_folders import ADAPTER, metadata, readme


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


def test_an_adapter_of_a_local_base_is_pushed_with_a_warning(calls, tmp_path):
    (tmp_path / "adapter").mkdir()
    for base, told in ((str(tmp_path), 1), ("owner/base", 0)):
        settings = {**ADAPTER, "base_model_name_or_path": base}
        (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(settings))
        (tmp_path / "adapter" / "adapter_model.safetensors").write_bytes(b"weights")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            push_checkpoint(tmp_path / "adapter", "owner/adapter")
        assert len([one for one in caught if "a folder of this machine" in str(one.message)]) == told


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
