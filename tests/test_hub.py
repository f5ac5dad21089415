import pytest
from huggingface_hub import ModelCard
from huggingface_hub.utils import filter_repo_objects
from PIL import Image

from gfm_hf import GFMImageProcessor, GFMModel, hub
from gfm_hf.hub import model_card, push_folder


FACTS = {
    "images": "folder scenes, 40 images",
    "steps": 12,
    "eval_loss": 0.123456,
    "energy_kwh": 1.5,
    "co2_kg": 0.855,
    "energy_method": "paper formula",
}


@pytest.fixture
def card(tiny_config):
    def make(facts=FACTS, where="someone/backbone", **settings):
        for name, value in settings.items():
            setattr(tiny_config, name, value)
        processor = GFMImageProcessor(size=64, image_mean=[0.1, 0.2, 0.3], image_std=[0.5, 0.6, 0.7])
        return model_card(tiny_config, processor, facts, title="backbone", where=where)

    return make


def test_metadata_says_what_the_hub_asks_for(card, tmp_path):
    card(teacher={"name": "microsoft/swin", "revision": None}).save(tmp_path / "README.md")
    data = ModelCard.load(tmp_path / "README.md").data
    assert data.library_name == "transformers" and data.pipeline_tag == "image-feature-extraction"
    assert {"geospatial", "remote-sensing"} <= set(data.tags) and data.base_model == "microsoft/swin"
    # The Hub counts in grams.
    assert data.co2_eq_emissions == {"emissions": pytest.approx(855), "source": "paper formula"}


def test_data_set_and_licence_are_named_where_they_are_known(card):
    data = card(FACTS | {"dataset_name": "someone/tiles", "license": "mit"}).data
    assert data.datasets in ("someone/tiles", ["someone/tiles"]) and data.license == "mit"
    plain = card().data.to_dict()
    assert "datasets" not in plain and "base_model" not in plain and plain.get("license") is None


def test_a_teacher_from_a_folder_is_no_model_of_the_hub(card, tmp_path):
    local = card(teacher={"name": str(tmp_path), "revision": None})
    assert "base_model" not in local.data.to_dict() and "frozen teacher" in local.text


def test_text_tells_how_to_use_it_and_what_it_was_made_from(card):
    text = card(gsd=10, band_names=("B02", "B03", "B04")).text
    assert 'from_pretrained("someone/backbone", trust_remote_code=True)' in text and "(batch, 64)" in text
    assert text.lstrip().startswith("# backbone")
    for row in (
        "| bands | B02, B03, B04 |",
        "| mean, per band | 0.1, 0.2, 0.3 |",
        "| standard deviation, per band | 0.5, 0.6, 0.7 |",
        "| ground sampling distance | 10 m |",
        "| eval loss | 0.1235 |",
        "| steps | 12 |",
        "| images | folder scenes, 40 images |",
    ):
        assert row in text
    assert "frozen teacher" not in text and "{" not in text.replace('{"', "")
    assert "not stated" in card(gsd=None).text


def test_the_code_of_the_card_runs(card, tmp_path, tiny_config):
    """The block a reader copies, on a model saved with this card."""
    GFMModel(tiny_config).save_pretrained(tmp_path)
    GFMImageProcessor(size=64).save_pretrained(tmp_path)
    block = card(where=str(tmp_path)).text.split("```python")[1].split("```")[0]
    names = {"images": [Image.new("RGB", (70, 60))] * 2}
    exec(block.replace(", trust_remote_code=True", ""), names)
    assert names["features"].shape == (2, tiny_config.hidden_size)


@pytest.fixture
def hub_calls(monkeypatch):
    """A Hub that remembers what it was asked for."""
    calls = {}

    class Api:
        def __init__(self, token=None):
            calls["token"] = token

        def create_repo(self, repo_id, **arguments):
            calls["create"] = (repo_id, arguments)

        def upload_folder(self, **arguments):
            calls["upload"] = arguments
            return "https://hub/commit/1"

    monkeypatch.setattr(hub, "HfApi", Api)
    return calls


def test_push_makes_the_repository_and_leaves_checkpoints_at_home(hub_calls, tmp_path):
    assert push_folder(tmp_path, "someone/backbone", private=True, token="hf_x") == "https://hub/commit/1"
    assert hub_calls["token"] == "hf_x"
    assert hub_calls["create"] == ("someone/backbone", {"private": True, "exist_ok": True})
    assert hub_calls["upload"]["folder_path"] == str(tmp_path)
    names = [
        "model.safetensors",
        "README.md",
        "panels/step-1.png",
        "trainer_state.jsonl",
        "checkpoint-10/optimizer.bin",
    ]
    names += ["unfinished-checkpoint-12/model.safetensors", "unfinished-result/config.json"]
    kept = filter_repo_objects(names, ignore_patterns=hub_calls["upload"]["ignore_patterns"])
    assert list(kept) == names[:4]
