import json
import re

import pytest
import yaml
from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.repocard_data import model_index_to_eval_results
from PIL import Image

from gfm_hf import GFMImageProcessor, GFMModel
from gfm_hf.cards import BEGIN, END, write_card

from .card_folders import ADAPTER, FACTS, card_of, metadata, readme, write_configs


@pytest.fixture
def folder(tmp_path):
    """What cards are made from: two JSON files."""
    return write_configs(tmp_path / "run")


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


def test_the_empty_form_of_peft_gives_way(folder):
    form = ModelCard.from_template(ModelCardData(library_name="peft"))
    (folder / "README.md").write_text(f"{form.content}\n### Framework versions\n\n- PEFT 0.21.2")
    write_card(folder, "me/x", FACTS)
    assert "More Information Needed" not in readme(folder)


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
