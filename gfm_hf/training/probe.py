"""Labelled pictures and frozen-feature evaluation: how much do a network's features say about the classes?

The network is never trained here. Its features are computed once (`pooled_features`), then a linear classifier and
a nearest-neighbour vote are fitted on the training part and scored on the test part. Nothing is chosen on the test
part: the strength of the linear classifier's penalty is picked inside the training part.

Works with every vision model of transformers. scikit-learn (extra `[train]`) is imported where it is used.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps


IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp", ".bmp")
PENALTIES = (0.001, 0.01, 0.1, 1.0, 10.0)  # inverse strength C of the linear probe, chosen inside the training part


@dataclass(frozen=True)
class LabelledImages:
    """Pictures kept compressed (a path or the bytes of a file) with one class each.

    Attributes:
        files: N paths or encoded files.
        labels: (N,) int64 class ids, 0 .. len(class_names) - 1.
        class_names: One name per id.
        splits: (N,) names of the part each picture belongs to, or None if the source does not say.
    """

    files: tuple[Path | bytes, ...]
    labels: np.ndarray
    class_names: tuple[str, ...]
    splits: np.ndarray | None = None

    def __len__(self) -> int:
        """Count the pictures."""
        return len(self.files)

    def subset(self, indices: np.ndarray) -> LabelledImages:
        """Return the pictures at `indices` (M,) int, or where `indices` (N,) bool is True."""
        chosen = np.arange(len(self))[indices]
        splits = None if self.splits is None else self.splits[chosen]
        return replace(self, files=tuple(self.files[i] for i in chosen), labels=self.labels[chosen], splits=splits)

    def picture(self, index: int, size: int | None = None) -> Image.Image:
        """Decode one picture to RGB; with `size`, scale its shorter side to it and cut the central square.

        Raises:
            ValueError: The file is not a picture.
        """
        file = self.files[index]
        try:
            with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as opened:
                image = ImageOps.exif_transpose(opened).convert("RGB")
        except OSError as error:
            name = f"number {index}" if isinstance(file, bytes) else str(file)
            raise ValueError(f"Picture {name} cannot be decoded ({error}); remove or replace it.") from error
        return image if size is None else ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)

    def pictures(self, size: int) -> np.ndarray:
        """Decode all pictures to one (N, size, size, 3) uint8 array."""
        return np.stack([np.asarray(self.picture(i, size)) for i in range(len(self))])


def open_labelled_images(
    data_dir: str | Path | None = None,
    parquet: str | Path | Sequence[str | Path] | None = None,
    image_column_name: str = "image",
    label_column_name: str = "label",
    split_column_name: str | None = None,
) -> LabelledImages:
    """List the labelled pictures of a folder or of Parquet files, without decoding them.

    Args:
        data_dir: Folder with one sub-folder per class, searched to any depth.
        parquet: One or more Parquet files with an image and a label column; rows without a label (null, "" or below 0) are left out.
        image_column_name: Column of the pictures.
        label_column_name: Column of the classes (`ClassLabel`, whole numbers or names).
        split_column_name: Column that names the part of each row, such as "train" and "test".

    Raises:
        ValueError: Not exactly one source is given, it is missing, or it holds no labelled picture.
    """
    if (data_dir is None) == (parquet is None):
        raise ValueError("Give either a folder of class sub-folders or Parquet files, exactly one of the two.")
    if parquet is None:
        if split_column_name:
            raise ValueError("A folder has no columns; leave split_column_name out or give Parquet files.")
        return _from_folder(Path(str(data_dir)))
    paths = [parquet] if isinstance(parquet, str | Path) else list(parquet)
    return _from_parquet([str(path) for path in paths], image_column_name, label_column_name, split_column_name)


def _from_folder(folder: Path) -> LabelledImages:
    """List `folder/CLASS/**/picture`."""
    if not folder.is_dir():
        raise ValueError(f"The folder {folder} does not exist; give one that holds a sub-folder per class.")
    classes = sorted(d for d in folder.iterdir() if d.is_dir() and not d.name.startswith("."))
    found = {d.name: sorted(p for p in d.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES) for d in classes}
    found = {name: files for name, files in found.items() if files}
    if len(found) < 2:
        raise ValueError(
            f"{folder} has {len(found)} sub-folders with pictures ({', '.join(IMAGE_SUFFIXES)}); "
            "at least two classes, one sub-folder each, are needed."
        )
    labels = np.repeat(np.arange(len(found)), [len(files) for files in found.values()])
    return LabelledImages(tuple(file for files in found.values() for file in files), labels, tuple(found))


def _from_parquet(paths: list[str], image_column: str, label_column: str, split_column: str | None) -> LabelledImages:
    """List the rows of Parquet files, pictures still encoded."""
    import datasets

    missing = [path for path in paths if not Path(path).is_file()]
    if missing:
        raise ValueError(f"The Parquet file {missing[0]} does not exist; check the path.")
    table = datasets.load_dataset("parquet", data_files=paths, split="train")
    wanted = [image_column, label_column] + ([split_column] if split_column else [])
    absent = [column for column in wanted if column not in table.column_names]
    if absent:
        raise ValueError(
            f"There is no column '{absent[0]}' among {table.column_names}; "
            "name the columns with image_column_name, label_column_name and split_column_name."
        )
    classes = table.features[label_column]
    table = table.select_columns(wanted).cast_column(image_column, datasets.Image(decode=False))
    values = list(table[label_column])
    keep = np.array([v is not None and v != "" and (isinstance(v, str) or v >= 0) for v in values])
    present, labels = np.unique([v for v, kept in zip(values, keep, strict=True) if kept], return_inverse=True)
    if len(present) < 2:
        raise ValueError(f"Column '{label_column}' names {len(present)} classes; at least two are needed.")
    names = classes.int2str(present.tolist()) if isinstance(classes, datasets.ClassLabel) else present.tolist()
    splits = np.array(table[split_column])[keep] if split_column else None
    files = tuple(
        cell["bytes"] or Path(cell["path"]) for cell, kept in zip(table[image_column], keep, strict=True) if kept
    )
    return LabelledImages(files, labels, tuple(str(name) for name in names), splits)


def stratified_split(labels: np.ndarray, fractions: Sequence[float], seed: int = 0) -> list[np.ndarray]:
    """Divide indices at random so that every class is shared out in the same proportions.

    Args:
        labels: (N,) class of each sample.
        fractions: Share of each part; they may sum to less than 1, what is left belongs to no part.
        seed: The same seed gives the same parts.

    Returns:
        One sorted (M,) int array of indices per part, disjoint. Counts are rounded class by class.

    Raises:
        ValueError: A share is not positive or they sum to more than 1.
    """
    shares = np.asarray(fractions, dtype=float)
    if not len(shares) or (shares <= 0).any() or shares.sum() > 1 + 1e-9:
        raise ValueError(f"fractions is {list(fractions)}; give positive shares that sum to at most 1.")
    rng = np.random.default_rng(seed)
    parts: list[list[np.ndarray]] = [[] for _ in shares]
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        ends = np.floor(np.cumsum(shares) * len(members) + 0.5).astype(int)
        for part, start, end in zip(parts, [0, *ends[:-1]], ends, strict=True):
            part.append(members[start:end])
    return [np.sort(np.concatenate(part)) for part in parts]


def _pool(outputs: Any, stage: int | None) -> torch.Tensor:
    """Reduce a model's output to one vector (B, D) per picture."""
    pooled = getattr(outputs, "pooler_output", None)
    if stage is None and pooled is not None:
        return pooled.flatten(1)
    states = outputs.last_hidden_state if stage is None else outputs.hidden_states[stage]
    return states.mean(dim=1) if states.ndim == 3 else states.flatten(2).mean(dim=2)


@torch.no_grad()
def pooled_features(
    model: torch.nn.Module, pixel_values_batches: Iterable[torch.Tensor], stage: int | None = None
) -> np.ndarray:
    """Compute one feature vector per picture with the model as it is.

    Args:
        model: Any vision model of transformers; it is put into evaluation mode and back.
        pixel_values_batches: Batches (B, C, H, W), normalised as the model expects; moved to the model's device.
        stage: None takes the model's pooled output (else the mean over its last tokens). A number takes the mean over
            `hidden_states[stage]`, without the final norm; 3 is the stage that GFM distils.

    Returns:
        (N, D) float32, in the order of the batches.

    Raises:
        ValueError: There is no batch, or the model has no such stage.
    """
    device, was_training = next(model.parameters()).device, model.training
    features = []
    model.eval()
    for pixel_values in pixel_values_batches:
        outputs = model(pixel_values=pixel_values.to(device), output_hidden_states=stage is not None)
        if stage is not None and not 0 <= stage < len(outputs.hidden_states):
            raise ValueError(f"stage is {stage}; this model offers 0 to {len(outputs.hidden_states) - 1}.")
        features.append(_pool(outputs, stage).float().cpu().numpy())
    model.train(was_training)
    if not features:
        raise ValueError("There is no batch to compute features of; give at least one picture.")
    return np.concatenate(features)


def linear_probe(
    train_x: np.ndarray, train_y: np.ndarray, test_x: np.ndarray, test_y: np.ndarray, seed: int = 0
) -> float:
    """Return the accuracy of a linear classifier on frozen features.

    Features are standardised with the training part's statistics. The penalty of the logistic regression is the one
    of `PENALTIES` that does best on a stratified fifth of the training part; the final fit uses all of that part.

    Args:
        train_x: (N, D) features.
        train_y: (N,) classes.
        test_x: (M, D) features.
        test_y: (M,) classes.
        seed: Seed of the inner split.

    Returns:
        Share of correct answers on the test part, 0..1.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    def fitted(penalty: float, rows: np.ndarray) -> Any:
        classifier = make_pipeline(StandardScaler(), LogisticRegression(C=penalty, max_iter=1000, tol=1e-3))
        return classifier.fit(train_x[rows], train_y[rows])

    inner, held_out = stratified_split(train_y, (0.8, 0.2), seed)
    if len(held_out) == 0:
        raise ValueError(f"{len(train_y)} training pictures are too few to choose a penalty; give 3 or more a class.")
    scores = [fitted(penalty, inner).score(train_x[held_out], train_y[held_out]) for penalty in PENALTIES]
    best = PENALTIES[int(np.argmax(scores))]  # the strongest penalty among equals
    return float(fitted(best, np.arange(len(train_y))).score(test_x, test_y))


def knn_probe(train_x: np.ndarray, train_y: np.ndarray, test_x: np.ndarray, test_y: np.ndarray, k: int = 5) -> float:
    """Return the accuracy of a vote among the `k` training pictures with the most similar features (cosine).

    Args:
        train_x: (N, D) features.
        train_y: (N,) classes.
        test_x: (M, D) features.
        test_y: (M,) classes.
        k: Voters; no more than there are training pictures.

    Returns:
        Share of correct answers on the test part, 0..1.
    """
    from sklearn.neighbors import KNeighborsClassifier

    voters = KNeighborsClassifier(min(k, len(train_y)), metric="cosine").fit(train_x, train_y)
    return float(voters.score(test_x, test_y))


def repeat_probe(
    train_x: np.ndarray,
    train_y: np.ndarray,
    test_x: np.ndarray,
    test_y: np.ndarray,
    seeds: Sequence[int] = (0, 1, 2),
    k: int = 5,
) -> list[dict[str, float]]:
    """Repeat both probes, each time with another stratified 80 % of the training part and the same test part.

    Returns:
        One dict per seed: "seed", "linear" and "knn" (accuracies, 0..1).
    """
    results = []
    for seed in seeds:
        (rows,) = stratified_split(train_y, (0.8,), seed)
        part = (train_x[rows], train_y[rows], test_x, test_y)
        results.append({"seed": seed, "linear": linear_probe(*part, seed=seed), "knn": knn_probe(*part, k=k)})
    return results


def mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and the sample standard deviation (0 for a single value)."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
