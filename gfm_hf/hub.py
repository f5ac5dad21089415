"""Model cards, and the way to the Hub."""

from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, ModelCard, ModelCardData


TAGS = ["geospatial", "remote-sensing", "earth-observation", "swin", "continual-pretraining"]

CARD_BODY = """
# {title}

A Swin encoder for satellite and aerial images, continually pretrained with gfm-hf by the method of
[GFM](https://arxiv.org/abs/2302.04476): it rebuilds masked pixels{distilled}.

## Use

```python
from transformers import AutoImageProcessor, AutoModel

processor = AutoImageProcessor.from_pretrained("{where}", trust_remote_code=True)
model = AutoModel.from_pretrained("{where}", trust_remote_code=True)
features = model(**processor(images, return_tensors="pt")).pooler_output  # (batch, {hidden_size})
```

With `import gfm_hf` first, `trust_remote_code` is not needed. Stock `SwinModel.from_pretrained` loads the encoder too.

## Input

| | |
|---|---|
| bands | {bands} |
| mean, per band | {image_mean} |
| standard deviation, per band | {image_std} |
| values are multiplied by | {rescale_factor} |
| ground sampling distance | {gsd} |
| training crops | {image_size} px; any size from one patch ({patch_size} px) up runs |

## Training

| | |
|---|---|
{training_rows}

## Limits

Features reflect the places, sensors and seasons of the training images. Check them on your own data before you rely on
them; other band orders or value ranges than the ones above give plausible but wrong features.

## Citation

Mendieta et al., "Towards Geospatial Foundation Models via Continual Pretraining", ICCV 2023.
"""


def model_card(config: Any, processor: Any, facts: dict[str, Any], title: str, where: str) -> ModelCard:
    """Write the card of a pretrained model from the facts its run has.

    Args:
        config: The model's configuration.
        processor: The model's image processor.
        facts: Rows of the training table, in order; `co2_kg` and `energy_method` also go into the metadata.
        title: Heading.
        where: Hub id or folder under which the model is loaded.
    """
    teacher = config.teacher["name"] if config.teacher else None
    data = ModelCardData(
        license=facts.get("license"),
        library_name="transformers",
        pipeline_tag="image-feature-extraction",
        tags=TAGS,
        base_model=teacher if teacher and not Path(teacher).exists() else None,
        datasets=facts["dataset_name"] if facts.get("dataset_name") else None,
        co2_eq_emissions={"emissions": facts["co2_kg"] * 1000, "source": facts["energy_method"]},
    )
    body = CARD_BODY.format(
        title=title,
        where=where,
        distilled=f" while its features stay close to those of a frozen teacher ({teacher})" if teacher else "",
        hidden_size=config.hidden_size,
        bands=", ".join(config.band_names) if config.band_names else f"{config.num_channels} (red, green, blue)",
        image_mean=", ".join(f"{value:.4g}" for value in processor.image_mean),
        image_std=", ".join(f"{value:.4g}" for value in processor.image_std),
        rescale_factor=f"{processor.rescale_factor:.6g}" if processor.do_rescale else "1",
        gsd=f"{config.gsd} m" if config.gsd else "not stated",
        image_size=config.image_size,
        patch_size=config.patch_size,
        training_rows="\n".join(f"| {name.replace('_', ' ')} | {_cell(value)} |" for name, value in facts.items()),
    )
    return ModelCard(f"---\n{data.to_yaml()}\n---\n{body}", ignore_metadata_errors=True)


def push_folder(folder: str | Path, repo_id: str, private: bool | None = None, token: str | None = None) -> str:
    """Create the repository where needed and upload a finished run: model, processor, code, card, log, pictures.

    Returns:
        Address of the commit.
    """
    api = HfApi(token=token)
    api.create_repo(repo_id, private=private, exist_ok=True)
    ignored = ["checkpoint-*/**", "unfinished-*"]
    return str(api.upload_folder(repo_id=repo_id, folder_path=str(folder), ignore_patterns=ignored))


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
