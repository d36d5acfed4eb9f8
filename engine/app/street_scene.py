"""Draw synthetic street scenes and their labels: examples that are free of any data set's licence terms.

python -m ccnet.engine.app.street_scene FOLDER 80       80 images and masks, for dataset=folder
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

Colour = tuple[int, int, int]
Point = tuple[float, float]
Size = tuple[int, int]

CLASSES = ("sky", "building", "road", "pavement", "tree", "car", "person", "pole")
SKY, BUILDING, ROAD, PAVEMENT, TREE, CAR, PERSON, POLE = range(len(CLASSES))

_WALLS: tuple[Colour, ...] = ((146, 112, 92), (158, 146, 128), (120, 92, 82), (134, 130, 128))
_PAINTS: tuple[Colour, ...] = ((150, 30, 32), (38, 58, 104), (188, 190, 192), (40, 42, 46))
_HORIZON = 0.45  # as a fraction of the height


def street_scene(seed: int, *, size: Sequence[int] = (360, 480)) -> tuple[np.ndarray, np.ndarray]:
    """Draw a street between buildings, with trees, cars and people, and its labels.

    Args:
        seed: the seed of the random numbers; each seed yields a different scene.
        size: (H, W) in pixels.

    Returns:
        The image, RGB uint8 (H, W, 3), and the indices into ``CLASSES``, uint8 (H, W).
    """
    rng = np.random.default_rng(seed)
    height, width = size[0], size[1]
    canvas = _Canvas(_sky(rng, height, width))
    vanishing = (width * rng.uniform(0.42, 0.58), _HORIZON * height)
    for side in (-1, 1):
        _houses(canvas, rng, vanishing, (height, width), side)
    _ground(canvas, vanishing, (height, width))
    canvas.add_noise(rng, top=int(vanishing[1]), strength=9)
    for distance in sorted(rng.uniform(0.12, 0.6, 5)):  # from far to near
        draw = _UPRIGHT[rng.integers(len(_UPRIGHT))]
        across = rng.choice([-1, 1]) * rng.uniform(0.62, 0.8)
        draw(canvas, rng, _on_ground(vanishing, (height, width), across, distance), distance * height)
    for distance, lane in zip((0.14, 0.25, 0.44), rng.permutation([-0.27, 0.27, 0.27]), strict=True):
        near = distance * rng.uniform(0.9, 1.15)
        _car(canvas, rng, _on_ground(vanishing, (height, width), lane, near), near * height)
    canvas.add_noise(rng, top=0, strength=4)
    return np.asarray(canvas.image.filter(ImageFilter.GaussianBlur(0.6))), np.asarray(canvas.labels)


def write_streets(folder: Path, number: int, *, first: int = 1000) -> None:
    """Write street scenes to ``images`` and their labels to ``masks``, in a form that ``dataset=folder`` can read.

    Args:
        folder: created if needed.
        number: the number of scenes.
        first: the seed of the first scene; it increases by 1 per scene.
    """
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    for index in range(number):
        image, labels = street_scene(first + index)
        Image.fromarray(image).save(folder / "images" / f"street_{index:04d}.png")
        Image.fromarray(labels).save(folder / "masks" / f"street_{index:04d}.png")


class _Canvas:
    """An image, RGB uint8 (H, W, 3), and its label map (H, W); shapes are drawn into both."""

    def __init__(self, background: np.ndarray):
        self.image = Image.fromarray(background)
        self.labels = Image.new("L", self.image.size, SKY)

    def polygon(self, points: Sequence[Point], colour: Colour, label: int, *, outline: Colour | None = None) -> None:
        """Draw a filled polygon of a class."""
        ImageDraw.Draw(self.image).polygon(points, fill=colour, outline=outline)
        ImageDraw.Draw(self.labels).polygon(points, fill=label)

    def rectangle(self, box: tuple[float, float, float, float], colour: Colour, label: int) -> None:
        """Draw a filled rectangle of a class."""
        ImageDraw.Draw(self.image).rectangle(box, fill=colour)
        ImageDraw.Draw(self.labels).rectangle(box, fill=label)

    def ellipse(self, box: tuple[float, float, float, float], colour: Colour, label: int | None) -> None:
        """Draw a filled ellipse of a class; if `label` is None, leave the labels unchanged."""
        ImageDraw.Draw(self.image).ellipse(box, fill=colour)
        if label is not None:
            ImageDraw.Draw(self.labels).ellipse(box, fill=label)

    def add_noise(self, rng: np.random.Generator, *, top: int, strength: float) -> None:
        """Add grey noise of standard deviation ``strength`` to the image below row ``top``."""
        pixels = np.asarray(self.image).astype(float)
        pixels[top:] += rng.normal(0, strength, pixels[top:].shape[:2])[..., None]
        self.image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _sky(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Return a sky that brightens towards the horizon, with soft clouds."""
    down = np.linspace(0, 1, height)[:, None, None]
    colour = (1 - down) * np.array([128, 168, 214]) + down * np.array([226, 232, 238])
    coarse = Image.fromarray((rng.random((6, 8)) * 255).astype(np.uint8))
    clouds = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)) / 255
    return np.clip(colour + 34 * np.clip(clouds[..., None] - 0.5, 0, 1), 0, 255).astype(np.uint8)


def _houses(canvas: _Canvas, rng: np.random.Generator, vanishing: Point, size: Size, side: int) -> None:
    """Draw a row of houses with windows along one side of the street, from far to near."""
    edges = np.linspace(1.05, 0.08, 5)  # distances from the vanishing point: 1 is the edge of the image
    for far, near in reversed([*zip(edges[1:], edges[:-1], strict=True)]):
        wall = _as_colour(np.array(_WALLS[rng.integers(len(_WALLS))]) * rng.uniform(0.8, 1.05))
        storeys = rng.uniform(0.75, 1.5)
        corners = ((near, 0), (far, 0), (far, storeys), (near, storeys))
        canvas.polygon([_on_wall(vanishing, size, side, *corner) for corner in corners], wall, BUILDING)
        for floor in np.arange(0.18, storeys - 0.15, 0.26).tolist():
            for start in (0.12, 0.42, 0.72):
                left, right = (near + (far - near) * part for part in (start, start + 0.16))
                corners = ((left, floor), (right, floor), (right, floor + 0.15), (left, floor + 0.15))
                window = [_on_wall(vanishing, size, side, *corner) for corner in corners]
                canvas.polygon(window, (58, 68, 82), BUILDING, outline=(206, 200, 190))


def _on_wall(vanishing: Point, size: Size, side: int, distance: float, up: float) -> Point:
    """Return the pixel position (x, y) of a point on the fronts of the houses."""
    height, width = size
    return vanishing[0] + side * distance * 0.62 * width, vanishing[1] + distance * height * (0.18 - 0.62 * up)


def _on_ground(vanishing: Point, size: Size, across: float, distance: float) -> Point:
    """Return the pixel position (x, y) of a point on the ground; the road spans -0.53 to 0.53 in `across`."""
    height, width = size
    return vanishing[0] + across * distance * 1.3 * width, vanishing[1] + distance * height * 0.75


def _ground(canvas: _Canvas, vanishing: Point, size: Size) -> None:
    """Draw pavements, kerbs, the road and its lane markings."""
    height, width = size
    corners = [vanishing, *((vanishing[0] + x * width, float(height)) for x in (-2.2, 2.2))]
    canvas.polygon(corners, (150, 146, 142), PAVEMENT)
    for half, colour, label in ((0.56, (176, 174, 168), PAVEMENT), (0.53, (92, 92, 96), ROAD)):
        canvas.polygon([vanishing, *(_on_ground(vanishing, size, x, 1.2) for x in (-half, half))], colour, label)
    for start in np.geomspace(0.08, 0.9, 9):
        ends = ((-0.012, start), (0.012, start), (0.012, start * 1.17), (-0.012, start * 1.17))
        canvas.polygon([_on_ground(vanishing, size, *end) for end in ends], (222, 222, 214), ROAD)


def _tree(canvas: _Canvas, rng: np.random.Generator, foot: Point, scale: float) -> None:
    x, y = foot
    canvas.rectangle((x - 0.03 * scale, y - 0.6 * scale, x + 0.03 * scale, y), (70, 54, 42), TREE)
    for _ in range(160):
        dx, dy = rng.normal(0, 0.17, 2) * scale
        radius = rng.uniform(0.02, 0.07) * scale
        box = (x + dx - radius, y - 0.85 * scale + dy - radius, x + dx + radius, y - 0.85 * scale + dy + radius)
        canvas.ellipse(box, _as_colour(rng.integers(60, 110) * np.array([0.6, 1, 0.4])), TREE)


def _pole(canvas: _Canvas, rng: np.random.Generator, foot: Point, scale: float) -> None:
    x, y = foot
    half = max(0.018 * scale, 1)
    canvas.rectangle((x - half, y - 1.3 * scale, x + half, y), (96, 98, 98), POLE)
    canvas.rectangle((x - half, y - 1.3 * scale, x + 0.22 * scale, y - 1.27 * scale), (96, 98, 98), POLE)


def _person(canvas: _Canvas, rng: np.random.Generator, foot: Point, scale: float) -> None:
    (x, y), size = foot, 0.5 * scale
    for leg in (-0.07, 0.02):
        canvas.rectangle((x + leg * size, y - 0.48 * size, x + (leg + 0.06) * size, y), (44, 46, 60), PERSON)
    coat = _as_colour(rng.integers(30, 120, 3))
    canvas.ellipse((x - 0.16 * size, y - 0.86 * size, x + 0.16 * size, y - 0.38 * size), coat, PERSON)
    canvas.ellipse((x - 0.07 * size, y - size, x + 0.07 * size, y - 0.84 * size), (196, 154, 130), PERSON)


_UPRIGHT = (_tree, _tree, _pole, _person)


def _car(canvas: _Canvas, rng: np.random.Generator, foot: Point, scale: float) -> None:
    """Draw a car from behind."""
    (x, y), half, paint = foot, 0.34 * scale, _PAINTS[rng.integers(len(_PAINTS))]
    canvas.ellipse((x - 1.1 * half, y - 0.1 * half, x + 1.1 * half, y + 0.12 * half), (48, 48, 52), None)  # shadow
    for left in (-0.82, 0.52):
        canvas.rectangle((x + left * half, y - 0.3 * half, x + (left + 0.3) * half, y), (22, 22, 24), CAR)
    canvas.polygon(_tapered(foot, half, (0.62, 1.36), (0.86, 0.82)), paint, CAR)
    canvas.rectangle((x - half, y - 0.86 * half, x + half, y - 0.16 * half), paint, CAR)
    canvas.polygon(_tapered(foot, half, (0.54, 1.28), (0.72, 0.88)), (50, 58, 68), CAR)
    for left in (-0.94, 0.7):
        box = (x + left * half, y - 0.66 * half, x + (left + 0.24) * half, y - 0.5 * half)
        canvas.rectangle(box, (190, 34, 30), CAR)
    canvas.rectangle((x - 0.24 * half, y - 0.46 * half, x + 0.24 * half, y - 0.34 * half), (226, 220, 160), CAR)


def _tapered(foot: Point, half: float, top: Point, bottom: Point) -> list[Point]:
    """Return the corners of a symmetric trapezoid; `top` and `bottom` are (half-width, height) in units of `half`."""
    corners = ((-top[0], top[1]), top, bottom, (-bottom[0], bottom[1]))
    return [(foot[0] + across * half, foot[1] - up * half) for across, up in corners]


def _as_colour(values: np.ndarray) -> Colour:
    red, green, blue = (int(value) for value in values)
    return red, green, blue


if __name__ == "__main__":
    if len(sys.argv) != 3 or not sys.argv[2].isdecimal():
        raise SystemExit("usage: python -m ccnet.engine.app.street_scene FOLDER NUMBER")
    write_streets(Path(sys.argv[1]), int(sys.argv[2]))
