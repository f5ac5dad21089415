"""Show what a pretrained model rebuilds of images it has not seen.

python examples/reconstruct.py --model my_backbone --data_dir some_images --output panel.png
"""

import argparse
import sys
from pathlib import Path

import torch
from transformers import AutoImageProcessor

from gfm_hf import GFMForPreTraining
from gfm_hf.data.collators import PretrainingCollator, PretrainingSamples
from gfm_hf.data.sources import hold_out, open_images
from gfm_hf.training.panels import pretraining_panel
from gfm_hf.training.runs import command, user_input


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or Hub id of a pretraining checkpoint")
    parser.add_argument("--data_dir", help="folder of images")
    parser.add_argument("--data_parquet", nargs="+", help="Parquet files with an image column")
    parser.add_argument("--image_column_name", default="image")
    parser.add_argument("--num_images", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0, help="which images, and which cells are hidden")
    parser.add_argument("--output", type=Path, default=Path("panel.png"))
    return parser.parse_args(argv)


@command
def main(argv: list[str] | None = None) -> None:
    """Draw the panel."""
    args = parse_args(argv)
    with user_input():
        model = GFMForPreTraining.from_pretrained(args.model)
        processor = AutoImageProcessor.from_pretrained(args.model)
        images = open_images(
            train_dir=args.data_dir, train_parquet=args.data_parquet, image_column_name=args.image_column_name
        )
        _, records = hold_out(images, args.num_images, args.seed)
        config = model.config
        samples = PretrainingSamples(
            config.image_size, config.patch_size, config.mask_patch_size, config.mask_ratio,
            seed=args.seed, num_channels=config.num_channels, rgb_channels=config.rgb_channels, train=False,
        )  # fmt: skip
        batch = PretrainingCollator(processor, samples)([samples[0, record] for record in records])

    with torch.no_grad():
        outputs = model(batch["pixel_values"], batch["bool_masked_pos"])
    masks = batch["bool_masked_pos"]
    panel = pretraining_panel(config, processor, batch["pixel_values"], masks, outputs.reconstruction, args.num_images)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    panel.save(args.output)
    print(f"{args.output}: reconstruction loss {outputs.reconstruction_loss:.4f} on {len(masks)} images")


if __name__ == "__main__":
    sys.exit(main())
