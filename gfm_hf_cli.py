"""The command `gfm-hf`: what a checkpoint is, weights in and out, and the way to the Hub.

Heavy imports wait inside each sub-command, so that `gfm-hf --help` answers at once.
"""

import argparse
import ast
import contextlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


# Fields of the processor, not of the model, that --set may name.
PROCESSOR_FIELDS = ("image_mean", "image_std", "rescale_factor", "resample")
FILE_SUFFIXES = (".pth", ".pt", ".bin", ".safetensors")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        Exit code: 0 done, 2 the user's input is at fault (one sentence on stderr).
    """
    args = build_parser().parse_args(argv)
    try:
        args.run(args)
    # What the library raises for a caller's mistake, and what the disk and the network say.
    except (ValueError, OSError) as error:
        _say(f"error: {' '.join(str(error).split()) or type(error).__name__}", sys.stderr)
        return 2
    except KeyboardInterrupt:
        _say("stopped; nothing was written", sys.stderr)
        return 130
    return 0


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="gfm-hf", description="Geospatial foundation models, in the Hugging Face way."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    info = _command(commands, "info", info_command, "say what a checkpoint is, without reading its weights")
    info.add_argument("checkpoint", metavar="CKPT", help="anything that convert reads")
    info.add_argument("--json", action="store_true", help="print JSON")
    _add_hub_arguments(info)

    convert = _command(commands, "convert", convert_command, "convert weights, in and out")
    convert.add_argument("source", metavar="SRC", help="file, folder, owner/name or owner/name/file of the Hub")
    convert.add_argument("output", metavar="OUT", help="new folder, or a .pth or .safetensors file for --to others")
    convert.add_argument(
        "--to",
        choices=["gfm", "swin", "authors", "mmseg", "timm", "torchvision"],
        default="gfm",
        help="gfm: a folder ready for the Hub (default); swin: stock transformers, folder or file; the others: a file",
    )
    convert.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="settings",
        help="a field of the configuration (window_size=8) or of the processor (image_mean=[0.1,0.2]); repeatable",
    )
    _add_hub_arguments(convert)

    push = _command(commands, "push", push_command, "upload a folder: model, processor, code, card")
    push.add_argument("folder", metavar="DIR")
    push.add_argument("repo", metavar="REPO", help="owner/name")
    push.add_argument(
        "--private", action="store_true", default=None, help="make it private; refuses an existing public one"
    )
    push.add_argument("--revision", help="branch to push to")
    push.add_argument("--token", help="default: the one of `hf auth login`")
    return parser


def _command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], None], description: str
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=description, description=f"{description.capitalize()}.")
    parser.set_defaults(run=run)
    return parser


def _add_hub_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--revision", help="branch, tag or commit on the Hub")
    parser.add_argument("--token", help="default: the one of `hf auth login`")


def info_command(args: argparse.Namespace) -> None:
    """Print what a checkpoint is."""
    from gfm_hf.convert import inspect_checkpoint

    facts = inspect_checkpoint(args.checkpoint, args.revision, args.token)
    if args.json:
        _say(json.dumps(facts, indent=2, default=str))
        return
    shown = {name: value for name, value in facts.items() if value is not None}
    width = max(map(len, shown)) + 2
    for name, value in shown.items():
        _say(f"{name:<{width}}{value}")


def convert_command(args: argparse.Namespace) -> None:
    """Convert weights and say where every one of them went."""
    settings = dict(_setting(text) for text in args.settings)
    output = Path(args.output)
    _check_output(output, args.to)
    from transformers.utils import logging

    from gfm_hf.convert import read_model, write_checkpoint

    logging.disable_progress_bar()
    logging.set_verbosity_error()  # what happened to the weights is said below, in one line each

    config = {name: value for name, value in settings.items() if name not in PROCESSOR_FIELDS}
    _check_fields(config)
    conversion = read_model(args.source, args.revision, args.token, **config)
    model = conversion.model
    _say(f"read    {args.source}: {conversion.layout} -> {type(model).__name__}")
    if conversion.derived:
        _say(f"derived {len(conversion.derived)} buffers, computed anew")
    _say_dropped(conversion.dropped)
    for name in conversion.initialised:
        _say(f"new     {name}: not in the file, set to a neutral value")
    if args.to == "gfm":
        _write_folder(conversion, settings, output)
        for name, value in conversion.assumed.items():
            _say(f"assumed {name} {value}: not told; --set {name}=... if it was another")
        _say(f"wrote   {output}: AutoModel.from_pretrained({str(output)!r})")
        return
    written = write_checkpoint(model, output, args.to)
    _say_dropped(written.dropped)
    if output.is_dir():
        _write_stock_processor(conversion, settings, output)
    _say(f"wrote   {output}: {written.tensors} tensors under the names of {args.to}")


def push_command(args: argparse.Namespace) -> None:
    """Upload a folder."""
    from gfm_hf.hub import push_checkpoint

    _say(push_checkpoint(args.folder, args.repo, private=args.private, token=args.token, revision=args.revision))


def _setting(text: str) -> tuple[str, Any]:
    """KEY=VALUE; the value is JSON or a Python literal where it can be, else text."""
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise ValueError(f"--set {text} is no KEY=VALUE; write for instance --set window_size=8.")
    for read in (json.loads, ast.literal_eval):
        with contextlib.suppress(ValueError, SyntaxError):
            read_value = read(value)
            return name.strip(), list(read_value) if isinstance(read_value, tuple) else read_value
    return name.strip(), value


def _check_output(output: Path, to: str) -> None:
    """Refuse before anything heavy begins; nothing that exists is ever replaced."""
    is_file = output.suffix in FILE_SUFFIXES
    if to == "gfm" and is_file:
        raise ValueError(
            f"{output} names a file but --to gfm writes a folder; leave {output.suffix} out, or choose --to."
        )
    if to not in ("gfm", "swin") and not is_file:
        raise ValueError(f"{output} has to be a file for --to {to}; end it in .pth or .safetensors.")
    if output.exists() or output.is_symlink():
        raise ValueError(f"{output} already exists; choose another name, or move it away.")
    existing = next(parent for parent in output.absolute().parents if parent.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise ValueError(
            f"{output} cannot be made in {existing}, which is no folder that you may write to; choose another."
        )


def _check_fields(config: dict[str, Any]) -> None:
    from gfm_hf import GFMConfig

    known = set(GFMConfig().to_dict()) | {"problem_type", "id2label", "label2id", "out_features", "out_indices"}
    known |= {"num_labels"}
    unknown = sorted(set(config) - known)
    if unknown:
        raise ValueError(
            f"--set {unknown[0]}=... names no field of the configuration or the processor; for instance image_size, "
            f"window_size, num_channels, band_names, gsd, {', '.join(PROCESSOR_FIELDS)}."
        )


def _write_folder(conversion: Any, settings: dict[str, Any], output: Path) -> None:
    """Model, processor, code, account and card: all of them or nothing."""
    from gfm_hf.cards import write_card
    from gfm_hf.convert import processor_for

    processor = processor_for(conversion, {name: settings[name] for name in PROCESSOR_FIELDS if name in settings})
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = output.with_name(f".unfinished-{output.name}")
    shutil.rmtree(temporary, ignore_errors=True)  # of a killed process
    try:
        conversion.model.save_pretrained(temporary)
        processor.save_pretrained(temporary)
        source = conversion.source
        facts = {"converted_from": source.repo or Path(source.name).name, "layout": conversion.layout}
        # Nothing else that a foreign file says of itself goes into the card.
        facts |= {name: conversion.facts[name] for name in ("epoch", "max_accuracy") if name in conversion.facts}
        account = {
            "facts": facts | ({"license": source.license} if source.license else {}),
            "derived": conversion.derived,
            "dropped": conversion.dropped,
            "initialised": conversion.initialised,
            "assumed": conversion.assumed,
        }
        (temporary / "conversion.json").write_text(json.dumps(account, indent=2, default=str))
        write_card(temporary, where=output.name)
        temporary.replace(output)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_stock_processor(conversion: Any, settings: dict[str, Any], folder: Path) -> None:
    """The processor beside a stock Swin, which only knows pictures."""
    from transformers import ViTImageProcessorPil  # saved as ViTImageProcessor

    from gfm_hf.convert import CheckpointError, processor_for

    try:
        ours = processor_for(conversion, {name: settings[name] for name in PROCESSOR_FIELDS if name in settings})
    except CheckpointError as error:
        _say(f"left    preprocessor_config.json: {error}")
        return
    fields = ("size", "resample", "do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std")
    ViTImageProcessorPil(do_resize=True, **{name: getattr(ours, name) for name in fields}).save_pretrained(folder)


def _say_dropped(dropped: dict[str, str]) -> None:
    """One line for each reason."""
    reasons: dict[str, list[str]] = {}
    for name, reason in dropped.items():
        reasons.setdefault(reason, []).append(name)
    for reason, names in reasons.items():
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        _say(f"left    {names[0]}{more}: {reason}")


def _say(text: str, file: Any = None) -> None:
    print(text, file=file or sys.stdout)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
