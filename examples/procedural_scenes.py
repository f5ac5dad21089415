"""Write a small labelled set of procedural aerial scenes: fields, forest, roads, roofs and water.

The demo needs pictures on a machine without network. Colour alone does not give the class away: season, light, haze
and sensor differ from picture to picture, and every picture holds bits of the other classes. What tells the classes
apart is structure (parallel furrows, thin lines, right angles, smooth surfaces, round crowns).

Example:
    python examples/procedural_scenes.py --output_dir scenes --images_per_class 160 --size 96 --seed 0

One folder for each class, for classification; `--labels maps` writes `image/` and `mask/` (class of every pixel) instead,
`--labels changes` writes `image1/`, `image2/` and `mask/`: the same ground twice, under another light, with new roofs,
roads, woods or ponds.

How a scene is built: `Scene` holds the canvas and everything the whole picture shares (sun, season), the `paint_*`
functions lay one kind of ground over it, `RECIPES` says in which order, `photograph` turns the canvas into 8 bit.
All lengths are in pixels, so a larger picture shows more ground, not the same ground in more detail.
"""

from __future__ import annotations

import argparse
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image


CLASSES = ("fields", "forest", "roads", "roofs", "water")
LABELS = ("classes", "maps", "changes")

# Base colours (R, G, B in 0..1) that `Scene.colour` varies. Several per kind: one colour must not mean one class.
CROPS = ((0.36, 0.47, 0.22), (0.62, 0.56, 0.34), (0.50, 0.39, 0.28), (0.28, 0.38, 0.20), (0.70, 0.66, 0.48))
GRASS = ((0.38, 0.45, 0.26), (0.50, 0.48, 0.32), (0.44, 0.40, 0.30))
LEAVES = ((0.18, 0.29, 0.14), (0.25, 0.34, 0.17), (0.36, 0.31, 0.17), (0.15, 0.24, 0.18))
PAVING = ((0.45, 0.45, 0.46), (0.58, 0.57, 0.55), (0.34, 0.34, 0.36), (0.66, 0.58, 0.46))
TILES = ((0.58, 0.32, 0.25), (0.46, 0.46, 0.48), (0.75, 0.74, 0.72), (0.38, 0.30, 0.27), (0.52, 0.42, 0.34))
WATERS = ((0.10, 0.22, 0.30), (0.18, 0.30, 0.28), (0.30, 0.33, 0.24), (0.08, 0.14, 0.18), (0.24, 0.40, 0.46))
SAND = ((0.74, 0.68, 0.54), (0.50, 0.44, 0.35))


@dataclass
class Scene:
    """A canvas and what all of its parts share.

    Attributes:
        canvas: (size, size, 3) float64 reflectance, about 0..1.
        ids: (size, size) uint8 index of the class in `CLASSES`; open ground counts as fields.
        rng: The only source of randomness of this picture.
        x: (size, size) column of each pixel.
        y: (size, size) row of each pixel, downwards.
        sun: Unit vector (x, y) pointing towards the sun.
        dryness: 0 lush to 1 dry season; pulls plants towards straw.
    """

    canvas: np.ndarray
    ids: np.ndarray
    rng: np.random.Generator
    x: np.ndarray
    y: np.ndarray
    sun: np.ndarray
    dryness: float

    @classmethod
    def empty(cls, rng: np.random.Generator, size: int) -> Scene:
        """Start a scene of `size` x `size` px with its own sun and season."""
        y, x = np.mgrid[0:size, 0:size].astype(float)
        angle = rng.uniform(0, 2 * np.pi)
        canvas, ids = np.zeros((size, size, 3)), np.zeros((size, size), np.uint8)
        return cls(canvas, ids, rng, x, y, np.array([np.cos(angle), np.sin(angle)]), rng.uniform(0, 0.8))

    @property
    def size(self) -> int:
        """Side of the picture in px."""
        return len(self.canvas)

    def colour(self, palette: Sequence[tuple[float, float, float]], plant: bool = False) -> np.ndarray:
        """Draw one colour (3,) near the palette; `plant` colours follow the season."""
        colour = np.array(palette[int(self.rng.integers(len(palette)))]) * self.rng.uniform(0.8, 1.2)
        colour = colour + self.rng.normal(0, 0.025, 3)
        if plant:
            straw = np.array([0.58, 0.50, 0.34]) * colour.mean() / 0.47
            colour = colour + 0.6 * self.dryness * (straw - colour)
        return np.clip(colour, 0.02, 0.98)

    def window(self, middle: np.ndarray, reach: float) -> Scene:
        """Return the part within `reach` px of `middle` (x, y) as a view: painting there paints this scene too."""
        x0, y0 = np.clip(middle - reach, 0, self.size).astype(int)
        x1, y1 = np.clip(middle + reach + 1, 0, self.size).astype(int)
        part = np.s_[y0:y1, x0:x1]
        return Scene(self.canvas[part], self.ids[part], self.rng, self.x[part], self.y[part], self.sun, self.dryness)

    def lay(self, colour: np.ndarray, cover: np.ndarray) -> None:
        """Blend `colour` (3,) or (size, size, 3) over the canvas where `cover` (size, size) in 0..1 says so."""
        self.canvas += cover[..., None] * (colour - self.canvas)

    def mark(self, kind: str, cover: np.ndarray) -> None:
        """Say that what shows is of this class, where `cover` (size, size) in 0..1 hides more than half."""
        self.ids[cover > 0.5] = CLASSES.index(kind)

    def noise(self, roughness: float) -> np.ndarray:
        """Return (size, size) random relief, mean 0, deviation 1: 1 = sandy, 2 = cloudy, 3 = a few broad swells."""
        rows = np.fft.fftfreq(self.size)[:, None]
        columns = np.fft.rfftfreq(self.size)[None, :]
        frequency = np.maximum(np.hypot(rows, columns), 1 / self.size)
        spectrum = np.fft.rfft2(self.rng.normal(size=(self.size, self.size))) * frequency**-roughness
        spectrum[0, 0] = 0
        relief = np.fft.irfft2(spectrum, s=(self.size, self.size))
        return relief / (relief.std() + 1e-9)

    def patch(self, share: float, roughness: float = 2.4, edge: float = 0.15) -> np.ndarray:
        """Return a soft blob-like cover (size, size) in 0..1 that hides about `share` of the picture."""
        relief = self.noise(roughness)
        return np.clip((relief - np.quantile(relief, 1 - share)) / edge + 0.5, 0, 1)

    def turned(self, angle: float) -> tuple[np.ndarray, np.ndarray]:
        """Return coordinates along and across a direction, measured in px from a random point near the middle."""
        x0, y0 = self.rng.uniform(0.25, 0.75, 2) * self.size
        dx, dy = self.x - x0, self.y - y0
        return dx * np.cos(angle) + dy * np.sin(angle), -dx * np.sin(angle) + dy * np.cos(angle)


def paint_ground(scene: Scene) -> None:
    """Cover everything with uneven grass and bare soil."""
    scene.canvas[:] = scene.colour(GRASS, plant=True)
    scene.lay(scene.colour(GRASS + CROPS, plant=True), scene.patch(scene.rng.uniform(0.2, 0.5), edge=0.8))
    scene.canvas *= 1 + 0.05 * scene.noise(1.0)[..., None]


def _parcel_edges(rng: np.random.Generator, reach: float, low: float, high: float) -> np.ndarray:
    """Return increasing positions from -reach to beyond +reach, `low` to `high` px apart."""
    steps = rng.uniform(low, high, int(2 * reach / low) + 2)
    return -reach + np.cumsum(steps)


def paint_fields(scene: Scene, cover: np.ndarray) -> None:
    """Lay rectangular parcels, each with its crop and furrows, divided by hedges or tracks."""
    rng = scene.rng
    along, across = scene.turned(rng.uniform(0, np.pi))
    row_edges = _parcel_edges(rng, 1.5 * scene.size, 18, 42)
    row = np.searchsorted(row_edges, across)
    # Every row of parcels starts at its own offset, as walls in a field pattern do not line up.
    shifted = along + rng.uniform(0, 60, len(row_edges) + 1)[row]
    column_edges = _parcel_edges(rng, 1.5 * scene.size, 26, 70)
    column = np.searchsorted(column_edges, shifted)
    colours, furrows = np.zeros((scene.size, scene.size, 3)), np.zeros((scene.size, scene.size))
    parcel = row * (len(column_edges) + 1) + column
    for number in np.unique(parcel):
        inside = parcel == number
        colours[inside] = scene.colour(CROPS, plant=True)
        lines = (along if rng.random() < 0.35 else across)[inside]
        period, strength = rng.uniform(2.6, 6.5), rng.uniform(0.03, 0.16)
        furrows[inside] = strength * np.sin(2 * np.pi * lines / period + rng.uniform(0, 6))
    colours *= (1 + furrows + 0.05 * scene.noise(1.2))[..., None]
    scene.lay(colours, cover)
    gap = np.minimum(_distance_to(row_edges, across), _distance_to(column_edges, shifted))
    border = scene.colour(LEAVES + SAND, plant=True)
    scene.mark("fields", cover)
    scene.lay(border, cover * np.clip(rng.uniform(0.6, 1.6) - gap + 0.5, 0, 1) * rng.uniform(0.3, 0.9))


def _distance_to(edges: np.ndarray, position: np.ndarray) -> np.ndarray:
    """Return the distance from each position to its nearest edge, in px."""
    right = np.clip(np.searchsorted(edges, position), 1, len(edges) - 1)
    return np.minimum(np.abs(position - edges[right - 1]), np.abs(position - edges[right]))


def _crowns(scene: Scene, spacing: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Scatter one tree per cell of a jittered grid and find the nearest one of each pixel.

    Returns:
        dx, dy: (size, size) offset from that tree's middle, in units of `spacing`.
        tint: (size, size) random number in 0..1, one per tree.
        span: (size, size) crown radius of that tree, in units of `spacing`.
    """
    cells = int(np.ceil(scene.size / spacing)) + 3
    centres = scene.rng.uniform(0.1, 0.9, (cells, cells, 2))
    traits = np.stack([scene.rng.random((cells, cells)), scene.rng.uniform(0.45, 0.85, (cells, cells))])
    v, u = scene.y / spacing + 1, scene.x / spacing + 1
    row, column = v.astype(int), u.astype(int)
    best = np.full(u.shape, np.inf)
    dx, dy, tint, span = (np.zeros_like(u) for _ in range(4))
    # The jitter stays inside the cell, so the nearest middle is among the 3 x 3 cells around a pixel (nearly always).
    for i in (-1, 0, 1):
        for j in (-1, 0, 1):
            r, c = row + i, column + j
            offset_y, offset_x = v - (r + centres[r, c, 0]), u - (c + centres[r, c, 1])
            distance = offset_x**2 + offset_y**2
            nearer = distance < best
            best = np.where(nearer, distance, best)
            dx, dy = np.where(nearer, offset_x, dx), np.where(nearer, offset_y, dy)
            tint, span = np.where(nearer, traits[0][r, c], tint), np.where(nearer, traits[1][r, c], span)
    return dx, dy, tint, span


def paint_trees(scene: Scene, cover: np.ndarray) -> None:
    """Lay round crowns, lit from the sun's side, over dark gaps."""
    rng = scene.rng
    spacing = rng.uniform(4.0, 9.0)
    dx, dy, tint, span = _crowns(scene, spacing)
    radius = np.hypot(dx, dy) / span
    lit = (dx * scene.sun[0] + dy * scene.sun[1]) / span
    first, second = scene.colour(LEAVES, plant=True), scene.colour(LEAVES, plant=True)
    leaves = first + tint[..., None] * (second - first)
    shade = (0.92 + 0.45 * lit) * (1.1 - 0.35 * np.clip(radius, 0, 1.2) ** 2) + 0.06 * scene.noise(0.6)
    crown = np.clip((1.0 - radius) * spacing * 0.6 + 0.5, 0, 1)
    # Stands are closed (dark gaps) or open (the ground shows), decided once per patch.
    gap_strength = rng.uniform(0.55, 1.0)
    scene.lay(leaves * 0.35, cover * gap_strength)
    scene.lay(leaves * np.clip(shade, 0.2, 1.8)[..., None], cover * crown)
    scene.mark("forest", cover)


def paint_road(scene: Scene, width: float) -> None:
    """Lay one straight or gently curved road of `width` px, with verge, markings and cars where they fit."""
    rng = scene.rng
    along, across = scene.turned(rng.uniform(0, np.pi))
    across = across + rng.uniform(-1, 1) * 0.7 * along**2 / scene.size * rng.integers(0, 2)
    offset = np.abs(across)
    scene.lay(scene.colour(GRASS + SAND, plant=True), np.clip(width / 2 + rng.uniform(1, 3) - offset, 0, 1) * 0.6)
    road = scene.colour(PAVING) * (1 + 0.03 * scene.noise(0.8)[..., None])
    scene.lay(road, np.clip(width / 2 - offset + 0.5, 0, 1))
    scene.mark("roads", np.clip(width / 2 - offset + 0.5, 0, 1))
    if width > 4.5:
        dashed = (along % 9 < rng.choice([5, 9])) * 1.0
        scene.lay(np.full(3, 0.9), dashed * np.clip(0.7 - offset, 0, 1) * 0.7)
    for _ in range(rng.integers(0, 6) if width > 4 else 0):
        middle, lane = rng.uniform(-0.6, 0.6) * scene.size, rng.choice([-1, 1]) * width / 4
        car = np.clip(2.4 - np.abs(along - middle), 0, 1) * np.clip(1.4 - np.abs(across - lane), 0, 1)
        scene.lay(rng.uniform(0.05, 0.95, 3) * 0.5 + rng.uniform(0, 0.5), car)


def _house(scene: Scene, middle: np.ndarray, half: np.ndarray, angle: float, ridge: bool) -> None:
    """Lay one rectangular roof with its shadow.

    Args:
        scene: The picture, or the window of it that the house can touch.
        middle: (2,) x, y of the house in px.
        half: (2,) half sides in px, along and across the ridge.
        angle: Direction of the ridge in radians.
        ridge: Gable roof (two differently lit halves) or flat.
    """
    rng, (cos, sin) = scene.rng, (np.cos(angle), np.sin(angle))
    dx, dy = scene.x - middle[0], scene.y - middle[1]
    along, across = dx * cos + dy * sin, dy * cos - dx * sin
    sun = np.array([scene.sun @ (cos, sin), scene.sun @ (-sin, cos)])

    def inside(shift: float) -> np.ndarray:
        u, v = along + shift * sun[0], across + shift * sun[1]
        return np.clip(half[0] - np.abs(u) + 0.5, 0, 1) * np.clip(half[1] - np.abs(v) + 0.5, 0, 1)

    height = rng.uniform(1.5, 4.0)
    scene.lay(scene.canvas * 0.45, np.maximum(inside(height), inside(height / 2)))
    light = 1 + (0.28 * sun[1] * np.clip(across, -1, 1) if ridge else 0.02 * across / half[1])
    if rng.random() < 0.4:  # rows of tiles or sheet metal
        light = light * (1 + 0.07 * np.sin(2 * np.pi * along / rng.uniform(2.2, 3.5)))
    scene.lay(scene.colour(TILES) * light[..., None], inside(0))
    scene.mark("roofs", inside(0))
    if not ridge and half.min() > 4:  # plant rooms and skylights of flat roofs
        for u, v in rng.uniform(-0.6, 0.6, (rng.integers(1, 4), 2)) * half:
            box = np.clip(2.0 - np.abs(along - u), 0, 1) * np.clip(1.7 - np.abs(across - v), 0, 1)
            scene.lay(scene.colour(TILES), box)


def paint_roofs(scene: Scene, share: float) -> None:
    """Lay houses on a turned street grid; `share` is the part of the plots that is built on."""
    rng = scene.rng
    angle, plot, gables = rng.uniform(0, np.pi), rng.uniform(14, 30, 2), rng.random() < 0.65
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    origin = rng.uniform(0.25, 0.75, 2) * scene.size
    for u in np.arange(-scene.size, scene.size, plot[0]):
        for v in np.arange(-scene.size, scene.size, plot[1]):
            middle = origin + turn @ (np.array([u, v]) + rng.uniform(-2, 2, 2))
            window = scene.window(middle, plot.max())
            if rng.random() < share and window.x.size:
                _house(window, middle, plot * rng.uniform(0.26, 0.42, 2), angle, gables and rng.random() < 0.9)


def paint_water(scene: Scene, share: float) -> None:
    """Lay a lake, a river or a coast over about `share` of the picture, with shore and ripples."""
    rng = scene.rng
    along, across = scene.turned(rng.uniform(0, 2 * np.pi))
    swell = scene.noise(2.2) * scene.size
    bodies = (
        lambda: swell * 0.30,  # lakes
        lambda: across + swell * 0.10,  # coast
        lambda: -np.abs(across + swell * 0.12),  # river
    )
    depth = bodies[rng.integers(3)]()
    depth = depth - np.quantile(depth, 1 - share)
    shore = scene.colour(SAND + GRASS)
    scene.lay(shore, np.clip(depth / 2 + rng.uniform(0.5, 3.0), 0, 1) * 0.8)
    shallow, deep = scene.colour(WATERS) * 1.25, scene.colour(WATERS)
    water = shallow + np.clip(depth / rng.uniform(6, 40), 0, 1)[..., None] * (deep - shallow)
    ripples = np.sin(along / rng.uniform(0.8, 2.0) + scene.noise(2.0) * 2.5) * rng.uniform(0, 0.04)
    water = water * (1 + ripples + 0.02 * scene.noise(0.5))[..., None] + rng.uniform(0, 0.1)
    scene.lay(water, np.clip(depth + 0.5, 0, 1))
    scene.mark("water", np.clip(depth + 0.5, 0, 1))


def photograph(scene: Scene) -> np.ndarray:
    """Turn the canvas into (size, size, 3) uint8 through a random light, haze and camera."""
    rng = scene.rng
    picture = np.clip(scene.canvas, 0, 1.2) * rng.uniform(0.85, 1.4)
    picture = picture * (1 + 0.06 * scene.noise(3.0)[..., None])  # thin cloud, uneven light
    grey = picture.mean(axis=2, keepdims=True)
    picture = grey + rng.uniform(0.25, 1.1) * (picture - grey)
    picture = picture * rng.normal(1.0, 0.045, 3)
    haze = rng.uniform(0, 0.35) * rng.random()
    picture = picture + haze * (np.array([0.72, 0.76, 0.82]) - picture)
    picture = np.clip(picture, 0, 1) ** rng.uniform(0.75, 1.2)
    if rng.random() < 0.35:  # a softer lens: mix with the four neighbours
        near = sum(np.roll(picture, step, axis) for step, axis in ((1, 0), (-1, 0), (1, 1), (-1, 1))) / 4
        picture = 0.5 * picture + 0.5 * near
    picture = picture + rng.normal(0, rng.uniform(0.004, 0.022), picture.shape)
    return np.round(np.clip(picture, 0, 1) * 255).astype(np.uint8)


def _fields(scene: Scene) -> None:
    paint_fields(scene, np.ones((scene.size, scene.size)))
    if scene.rng.random() < 0.5:
        paint_trees(scene, scene.patch(scene.rng.uniform(0.03, 0.2)))
    if scene.rng.random() < 0.35:
        paint_road(scene, scene.rng.uniform(2, 4))
    if scene.rng.random() < 0.25:
        paint_roofs(scene, 0.06)


def _forest(scene: Scene) -> None:
    if scene.rng.random() < 0.4:
        paint_fields(scene, scene.patch(0.5))
    paint_trees(scene, scene.patch(scene.rng.uniform(0.7, 1.0)))
    if scene.rng.random() < 0.35:
        paint_road(scene, scene.rng.uniform(1.5, 3.5))
    if scene.rng.random() < 0.2:
        paint_water(scene, scene.rng.uniform(0.05, 0.15))


def _roads(scene: Scene) -> None:
    if scene.rng.random() < 0.6:
        paint_fields(scene, scene.patch(scene.rng.uniform(0.2, 0.8)))
    if scene.rng.random() < 0.6:
        paint_trees(scene, scene.patch(scene.rng.uniform(0.1, 0.4)))
    if scene.rng.random() < 0.4:
        paint_roofs(scene, 0.15)
    for _ in range(scene.rng.integers(1, 4)):
        paint_road(scene, scene.rng.uniform(5, 13))


def _roofs(scene: Scene) -> None:
    scene.lay(scene.colour(PAVING), scene.patch(scene.rng.uniform(0.2, 0.7), edge=0.6) * 0.8)
    if scene.rng.random() < 0.5:
        paint_road(scene, scene.rng.uniform(3, 7))
    paint_roofs(scene, scene.rng.uniform(0.6, 0.95))
    if scene.rng.random() < 0.7:
        paint_trees(scene, scene.patch(scene.rng.uniform(0.03, 0.18)))


def _water(scene: Scene) -> None:
    if scene.rng.random() < 0.5:
        paint_fields(scene, scene.patch(0.6))
    if scene.rng.random() < 0.6:
        paint_trees(scene, scene.patch(scene.rng.uniform(0.2, 0.7)))
    if scene.rng.random() < 0.3:
        paint_roofs(scene, 0.3)
    paint_water(scene, scene.rng.uniform(0.35, 0.85))
    if scene.rng.random() < 0.2:
        paint_road(scene, scene.rng.uniform(2, 6))  # a bridge


RECIPES: dict[str, Callable[[Scene], None]] = {
    "fields": _fields,
    "forest": _forest,
    "roads": _roads,
    "roofs": _roofs,
    "water": _water,
}


def build_scene(kind: str, rng: np.random.Generator, size: int = 96) -> Scene:
    """Paint one scene, not photographed yet.

    Args:
        kind: One of `CLASSES`.
        rng: Source of randomness; the same state gives the same scene.
        size: Side in px.

    Raises:
        ValueError: The class is unknown or the picture is smaller than 16 px.
    """
    if kind not in RECIPES:
        raise ValueError(f"There is no scene of kind '{kind}'; choose one of {', '.join(CLASSES)}.")
    if size < 16:
        raise ValueError(f"A scene of {size} px shows no structure; ask for 16 px or more (the demo uses 96).")
    scene = Scene.empty(rng, size)
    paint_ground(scene)
    RECIPES[kind](scene)
    return scene


def draw_scene(kind: str, rng: np.random.Generator, size: int = 96) -> np.ndarray:
    """Paint one scene and photograph it: (size, size, 3) uint8, RGB; arguments as `build_scene`."""
    return photograph(build_scene(kind, rng, size))


def draw_change(kind: str, rng: np.random.Generator, size: int = 96) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Photograph one scene, change it, and photograph it again.

    Args:
        kind: One of `CLASSES`.
        rng: Source of randomness.
        size: Side in px.

    Returns:
        Before and after, (size, size, 3) uint8, and (size, size) uint8: 255 where the class has changed, else 0.
    """
    scene = build_scene(kind, rng, size)
    before, old_ids = photograph(scene), scene.ids.copy()
    for _ in range(rng.integers(1, 4)):
        what = rng.integers(4)
        if what == 0:
            paint_road(scene, rng.uniform(3, 8))
        elif what == 1:
            paint_trees(scene, scene.patch(rng.uniform(0.05, 0.15)))
        elif what == 2:
            paint_water(scene, rng.uniform(0.05, 0.12))
        else:
            for _ in range(rng.integers(3, 8)):
                _house(
                    scene, rng.uniform(0, size, 2), rng.uniform(4, 10, 2), rng.uniform(0, np.pi), rng.random() < 0.6
                )
    return before, photograph(scene), np.where(scene.ids != old_ids, 255, 0).astype(np.uint8)


def _pictures(labels: str, kind: str, rng: np.random.Generator, size: int) -> dict[str, np.ndarray]:
    """Folder -> picture of one sample."""
    if labels == "classes":
        return {kind: draw_scene(kind, rng, size)}
    if labels == "maps":
        scene = build_scene(kind, rng, size)
        return {"image": photograph(scene), "mask": scene.ids}
    return dict(zip(("image1", "image2", "mask"), draw_change(kind, rng, size)))


def write_scenes(
    output_dir: Path, images_per_class: int = 160, size: int = 96, seed: int = 0, labels: str = "classes"
) -> int:
    """Write `images_per_class` samples of each class as PNG files and return how many there are.

    Each sample depends on (seed, class, number) alone, so asking for more keeps the first ones.

    Args:
        output_dir: Holds `CLASS/`, or `image/` and `mask/`, or `image1/`, `image2/` and `mask/`.
        images_per_class: Samples of each class.
        size: Side in px.
        seed: Of all samples.
        labels: One of `LABELS`.

    Raises:
        ValueError: Fewer than one picture per class is asked for, or `draw_scene` refuses the size.
    """
    if images_per_class < 1:
        raise ValueError(f"images_per_class is {images_per_class}; at least 1 is needed.")
    for kind in CLASSES:
        for number in range(images_per_class):
            rng = np.random.default_rng([seed, zlib.crc32(kind.encode()), number])
            for name, pixels in _pictures(labels, kind, rng, size).items():
                folder = Path(output_dir) / name
                folder.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(folder / f"{kind}_{number:04d}.png")
    return images_per_class * len(CLASSES)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--images_per_class", type=int, default=160)
    parser.add_argument("--size", type=int, default=96, help="side of a picture in px")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--labels", choices=LABELS, default="classes")
    args = parser.parse_args(argv)
    try:
        count = write_scenes(args.output_dir, args.images_per_class, args.size, args.seed, args.labels)
    except ValueError as error:
        parser.error(str(error))
    print(f"{count} scenes of {args.size} px in {args.output_dir}: {', '.join(CLASSES)}")


if __name__ == "__main__":
    main()
