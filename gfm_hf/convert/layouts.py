"""How other code names and orders the weights of a Swin, in terms of this package's own names.

A layout says how it spells each of our names. Reading looks our names up under their spelling, writing uses the same
spelling the other way round, so that the two cannot disagree.
"""

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch


Replacement = str | Callable[[re.Match[str]], str]

STEM = "embeddings.patch_embeddings.projection.weight"
QKV = re.compile(r"attention\.([qkv])_proj\.")
# The last word of a prefix that means "the encoder" beside other parts of a model.
TRUNK = re.compile(r"(encoder|backbone|swin)\.$")
# Our names -> those of Swin's release, which timm and the authors started from; applied in this order.
RELEASE: tuple[tuple[str, Replacement], ...] = (
    (r"^encoder\.", ""),
    (r"^embeddings\.patch_embeddings\.projection", "patch_embed.proj"),
    (r"^embeddings\.norm", "patch_embed.norm"),
    (r"^embeddings\.mask_token", "mask_token"),
    (r"^embeddings\.position_embeddings", "absolute_pos_embed"),
    (r"layernorm_before", "norm1"),
    (r"layernorm_after", "norm2"),
    (r"^layernorm", "norm"),
    (r"attention\.relative_position_bias\.", "attn."),
    (r"attention\.qkv_proj", "attn.qkv"),
    (r"attention\.o_proj", "attn.proj"),
    (r"^classifier", "head"),
    (r"^projector\.0", "projector"),
)
MMSEG: tuple[tuple[str, Replacement], ...] = (
    *RELEASE,
    (r"^patch_embed\.proj", "patch_embed.projection"),
    (r"^layers\.", "stages."),
    (r"\.attn\.", ".attn.w_msa."),
    (r"\.mlp\.fc1", ".ffn.layers.0.0"),
    (r"\.mlp\.fc2", ".ffn.layers.1"),
)
# What modules keep beside their parameters and compute anew.
DERIVED = re.compile(r"(^|\.)(relative_position_index|relative_coords_table|attn_mask)$")
# Parts of other models that may sit in a file, and why they stay there.
DROPPED = (
    (re.compile(r"^teacher\."), "belongs to the frozen teacher, whose own release file converts"),
    (re.compile(r"^(decode_head|auxiliary_head|neck)\."), "belongs to a head of mmseg, which has no class here"),
    (re.compile(r"^head\."), "belongs to a classifier beside a bare backbone"),
)


@dataclass(frozen=True)
class Layout:
    """One way to name a Swin's weights.

    Attributes:
        name: What people call it.
        rules: (pattern, replacement) pairs that turn our names into its names, in this order.
        trunk: Prefix of the encoder's names in the files that this code writes.
        fused: Query, key and value are one tensor, rows in this order.
        unfolds: Patch merging orders its 2 x 2 inputs channel by channel and row by row, as `torch.nn.Unfold` does;
            elsewhere whole patches follow one another, column by column.
        cuts_tables: A stage whose map is smaller than the window has a smaller position table.
        derived: Buffers that its modules store: "index" for the position index, "flat" for that in one row, "masks" for
            the index and the masks of shifted windows; None for none.
        entry: Key under which a file of torch holds the weights; None for the plain dictionary.
    """

    name: str
    rules: tuple[tuple[str, Replacement], ...]
    trunk: str = ""
    fused: bool = True
    unfolds: bool = False
    cuts_tables: bool = False
    derived: str | None = None
    entry: str | None = None

    def spell(self, name: str) -> str:
        """Our name, without the trunk's prefix, as this layout has it."""
        if self.fused:
            name = QKV.sub("attention.qkv_proj.", name)
        for pattern, replacement in self.rules:
            name = re.sub(pattern, replacement, name)
        return name

    def to_ours(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """Take from a stored tensor what our name means: its third of a fused one, inputs in our order."""
        part = part_of(name)
        if self.fused and part is not None:
            tensor = tensor.chunk(3)[part]
        if self.unfolds and _merges(name):
            tensor = tensor.unflatten(-1, (-1, 4)).transpose(-1, -2)[..., [0, 2, 1, 3], :].flatten(-2)
        return tensor

    def from_ours(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """Bring the inputs of a patch merging into this layout's order."""
        if self.unfolds and _merges(name):
            tensor = tensor.unflatten(-1, (4, -1))[..., [0, 2, 1, 3], :].transpose(-1, -2).flatten(-2)
        return tensor


def part_of(name: str) -> int | None:
    """Which third of a fused tensor a name of ours is."""
    match = QKV.search(name)
    return "qkv".index(match[1]) if match else None


def _merges(name: str) -> bool:
    return ".downsample." in name


def _old_attention(match: re.Match[str]) -> str:
    return "attention.self." + {"q": "query", "k": "key", "v": "value"}[match[1]]


LAYOUTS = {
    layout.name: layout
    for layout in (
        # Also SimMIM's, that of Swin's release files, and timm's before 0.9.
        Layout("authors", RELEASE, trunk="encoder.", cuts_tables=True, derived="masks", entry="model"),
        # Merging belongs to the stage behind it.
        Layout(
            "timm",
            (
                *RELEASE,
                (r"^layers\.(\d+)\.downsample", lambda match: f"layers.{int(match[1]) + 1}.downsample"),
                (r"^head\.", "head.fc."),
            ),
            cuts_tables=True,
        ),
        # mmseg's modules inside terratorch, where every stage owns its norm.
        Layout(
            "terratorch",
            (*MMSEG, (r"^hidden_states_norms\.stage(\d)", lambda match: f"stages.{int(match[1]) - 1}.norm")),
            unfolds=True,
        ),
        Layout(
            "mmseg",
            (*MMSEG, (r"^hidden_states_norms\.stage(\d)", lambda match: f"norm{int(match[1]) - 1}")),
            trunk="backbone.",
            unfolds=True,
            derived="index",
            entry="state_dict",
        ),
        # Stem, stage, merging, stage, ... are counted in one list; torchgeo and rslearn have it from there.
        Layout(
            "torchvision",
            (
                *RELEASE,
                (r"^patch_embed\.proj", "features.0.0"),
                (r"^patch_embed\.norm", "features.0.2"),
                (r"^layers\.(\d+)\.blocks\.", lambda match: f"features.{2 * int(match[1]) + 1}."),
                (r"^layers\.(\d+)\.downsample\.", lambda match: f"features.{2 * int(match[1]) + 2}."),
                (r"\.mlp\.fc1", ".mlp.0"),
                (r"\.mlp\.fc2", ".mlp.3"),
            ),
            derived="flat",
        ),
        # What transformers writes to disk: the names of its first versions.
        Layout(
            "transformers",
            (
                (r"attention\.([qkv])_proj", _old_attention),
                (r"attention\.relative_position_bias\.", "attention.self."),
                (r"attention\.o_proj", "attention.output.dense"),
                (r"\.mlp\.fc1", ".intermediate.dense"),
                (r"\.mlp\.fc2", ".output.dense"),
            ),
            trunk="swin.",
            fused=False,
        ),
        Layout("gfm", (), trunk="swin.", fused=False),
    )
}


@dataclass(frozen=True)
class Spelling:
    """A layout as one file has it.

    Attributes:
        layout: Names and order.
        trunk: What stands in front of the encoder's names.
        outer: What stands in front of the names of the other parts.
    """

    layout: Layout
    trunk: str
    outer: str

    def of(self, name: str, present: Collection[str]) -> str:
        """Where the file has our name: heads stand beside the encoder, or where there is one prefix for all, with it."""
        if not name.startswith(("embeddings.", "encoder.", "layernorm.")):
            outside = self.outer + self.layout.spell(name)
            return outside if outside in present else self.trunk + self.layout.spell(name)
        return self.trunk + self.layout.spell(name)


def recognise(names: Collection[str]) -> Spelling | None:
    """Find the layout whose names a file uses; of a student and its teacher in one file the student counts."""
    present = set(names)
    for layout in LAYOUTS.values():
        stem = layout.spell(STEM)
        prefixes = [name.removesuffix(stem) for name in present if f".{name}".endswith(f".{stem}")]
        for trunk in sorted(prefixes, key=lambda prefix: ("teacher." in prefix, len(prefix), prefix)):
            if _fits(layout, trunk, present):
                return Spelling(layout, trunk, TRUNK.sub("", trunk))
    return None


def _fits(layout: Layout, trunk: str, present: set[str]) -> bool:
    """Whether one weight of each kind, where layouts differ, has this layout's name."""
    first, merging = "encoder.layers.0.blocks.0.", "encoder.layers.0.downsample.reduction.weight"
    wanted = [f"{first}attention.q_proj.weight", f"{first}attention.o_proj.weight", f"{first}mlp.fc1.weight"]
    if trunk + layout.spell("encoder.layers.1.blocks.0.layernorm_before.weight") in present:
        wanted.append(merging)  # where a merging belongs tells timm's files from the release's
    if layout.name == "terratorch":  # nothing else tells it from mmseg
        wanted.append("hidden_states_norms.stage1.weight")
    return all(trunk + layout.spell(name) in present for name in wanted)
