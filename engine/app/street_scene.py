"""Draw street scenes: example images that no data set's licence restricts."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

Colour = tuple[int, int, int]
Point = tuple[float, float]

_WALLS: tuple[Colour, ...] = ((146, 112, 92), (158, 146, 128), (120, 92, 82), (134, 130, 128))
_PAINTS: tuple[Colour, ...] = ((150, 30, 32), (38, 58, 104), (188, 190, 192), (40, 42, 46))
_HORIZON = 0.45  # of the height


def street_scene(seed: int, *, size: Sequence[int] = (360, 480)) -> np.ndarray:
    """Return a street between buildings, with trees, cars and people: RGB uint8 (H, W, 3); each seed draws another."""
    rng = np.random.default_rng(seed)
    height, width = size
    image = Image.fromarray(_sky(rng, height, width))
    draw = ImageDraw.Draw(image)
    horizon = _HORIZON * height
    vanishing = (width * rng.uniform(0.42, 0.58), horizon)
    for side in (-1, 1):
        _houses(draw, rng, vanishing, (height, width), side)
    _ground(draw, vanishing, (height, width))
    image = _textured(image, rng, top=int(horizon), strength=9)
    for distance in sorted(rng.uniform(0.12, 0.6, 5)):  # far ones first
        kind = rng.choice(["tree", "tree", "pole", "person"])
        side = rng.choice([-1, 1])
        foot = _on_ground(vanishing, (height, width), side * rng.uniform(0.62, 0.8), distance)
        _UPRIGHT[kind](image, rng, foot, distance * height)
    for distance, lane in zip((0.14, 0.25, 0.44), rng.permutation([-0.27, 0.27, 0.27]), strict=True):
        distance *= rng.uniform(0.9, 1.15)
        _car(image, rng, _on_ground(vanishing, (height, width), lane, distance), distance * height)
    return np.asarray(_textured(image, rng, top=0, strength=4).filter(ImageFilter.GaussianBlur(0.6)))


def _sky(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Return a sky that brightens towards the horizon, with soft clouds."""
    down = np.linspace(0, 1, height)[:, None, None]
    colour = (1 - down) * np.array([128, 168, 214]) + down * np.array([226, 232, 238])
    clouds = Image.fromarray((rng.random((6, 8)) * 255).astype(np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    mixed = colour + 34 * np.clip(np.asarray(clouds)[..., None] / 255 - 0.5, 0, 1)
    return np.clip(mixed, 0, 255).astype(np.uint8)


def _houses(
    draw: ImageDraw.ImageDraw, rng: np.random.Generator, vanishing: Point, size: tuple[int, int], side: int
) -> None:
    """Draw a row of houses with windows along one side of the street, the far ones first."""
    edges = np.linspace(1.05, 0.08, 5)  # distances to the viewer: 1 is the edge of the image
    for far, near in reversed([*zip(edges[1:], edges[:-1], strict=True)]):
        wall = tuple(int(channel) for channel in np.array(_WALLS[rng.integers(len(_WALLS))]) * rng.uniform(0.8, 1.05))
        storeys = rng.uniform(0.75, 1.5)
        corners = [_wall(vanishing, size, side, near, 0), _wall(vanishing, size, side, far, 0)]
        corners += [_wall(vanishing, size, side, far, storeys), _wall(vanishing, size, side, near, storeys)]
        draw.polygon(corners, fill=wall)
        for floor in np.arange(0.18, storeys - 0.15, 0.26):
            for start in np.linspace(0.12, 0.72, 3):
                left, right = (near + (far - near) * part for part in (start, start + 0.16))
                window = [_wall(vanishing, size, side, left, floor), _wall(vanishing, size, side, right, floor)]
                window += [
                    _wall(vanishing, size, side, right, floor + 0.15),
                    _wall(vanishing, size, side, left, floor + 0.15),
                ]
                draw.polygon(window, fill=(58, 68, 82), outline=(206, 200, 190))


def _wall(vanishing: Point, size: tuple[int, int], side: int, distance: float, up: float) -> Point:
    """Return a point of the front of the houses: `distance` from the vanishing point, `up` in heights of the image."""
    height, width = size
    x = vanishing[0] + side * distance * 0.62 * width
    return x, vanishing[1] + distance * height * (0.18 - 0.62 * up)


def _on_ground(vanishing: Point, size: tuple[int, int], across: float, distance: float) -> Point:
    """Return a point on the ground; the road is between -0.55 and 0.55 `across`."""
    height, width = size
    return vanishing[0] + across * distance * 1.3 * width, vanishing[1] + distance * height * 0.75


def _ground(draw: ImageDraw.ImageDraw, vanishing: Point, size: tuple[int, int]) -> None:
    """Draw pavements, kerbs, the road and its lane markings."""
    height, width = size
    draw.polygon([vanishing, *((vanishing[0] + x * width, height) for x in (-2.2, 2.2))], fill=(150, 146, 142))
    for half, colour in ((0.56, (176, 174, 168)), (0.53, (92, 92, 96))):
        draw.polygon([vanishing, *(_on_ground(vanishing, size, x, 1.2) for x in (-half, half))], fill=colour)
    for start in np.geomspace(0.08, 0.9, 9):
        ends = [(-0.012, start), (0.012, start), (0.012, start * 1.17), (-0.012, start * 1.17)]
        draw.polygon([_on_ground(vanishing, size, x, distance) for x, distance in ends], fill=(222, 222, 214))


def _textured(image: Image.Image, rng: np.random.Generator, *, top: int, strength: float) -> Image.Image:
    pixels = np.asarray(image).astype(float)
    pixels[top:] += rng.normal(0, strength, pixels[top:].shape[:2])[..., None]
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _tree(image: Image.Image, rng: np.random.Generator, foot: Point, scale: float) -> None:
    draw, (x, y) = ImageDraw.Draw(image), foot
    draw.rectangle((x - 0.03 * scale, y - 0.6 * scale, x + 0.03 * scale, y), fill=(70, 54, 42))
    for _ in range(160):
        dx, dy = rng.normal(0, 0.17, 2) * scale
        radius = rng.uniform(0.02, 0.07) * scale
        green = rng.integers(60, 110)
        box = (x + dx - radius, y - 0.85 * scale + dy - radius, x + dx + radius, y - 0.85 * scale + dy + radius)
        draw.ellipse(box, fill=(int(green * 0.6), int(green), int(green * 0.4)))


def _pole(image: Image.Image, rng: np.random.Generator, foot: Point, scale: float) -> None:
    draw, (x, y) = ImageDraw.Draw(image), foot
    half = max(0.018 * scale, 1)
    draw.rectangle((x - half, y - 1.3 * scale, x + half, y), fill=(96, 98, 98))
    draw.rectangle((x - half, y - 1.3 * scale, x + 0.22 * scale, y - 1.27 * scale), fill=(96, 98, 98))


def _person(image: Image.Image, rng: np.random.Generator, foot: Point, scale: float) -> None:
    draw, (x, y) = ImageDraw.Draw(image), foot
    size = 0.5 * scale
    coat = tuple(int(channel) for channel in rng.integers(30, 120, 3))
    for leg in (-0.07, 0.02):
        draw.rectangle((x + leg * size, y - 0.48 * size, x + (leg + 0.06) * size, y), fill=(44, 46, 60))
    draw.ellipse((x - 0.16 * size, y - 0.86 * size, x + 0.16 * size, y - 0.38 * size), fill=coat)
    draw.ellipse((x - 0.07 * size, y - size, x + 0.07 * size, y - 0.84 * size), fill=(196, 154, 130))


def _car(image: Image.Image, rng: np.random.Generator, foot: Point, scale: float) -> None:
    """Draw a car from behind."""
    draw, (x, y) = ImageDraw.Draw(image), foot
    half, paint = 0.34 * scale, _PAINTS[rng.integers(len(_PAINTS))]
    draw.ellipse((x - 1.1 * half, y - 0.1 * half, x + 1.1 * half, y + 0.12 * half), fill=(48, 48, 52))
    for wheel in (-0.82, 0.52):
        draw.rectangle((x + wheel * half, y - 0.3 * half, x + (wheel + 0.3) * half, y), fill=(22, 22, 24))
    draw.polygon(_tapered(foot, half, (0.62, 1.36), (0.86, 0.82)), fill=paint)
    draw.rounded_rectangle((x - half, y - 0.86 * half, x + half, y - 0.16 * half), radius=0.16 * half, fill=paint)
    glass = [
        (x + part * half, y - up * half) for part, up in ((-0.54, 1.28), (0.54, 1.28), (0.72, 0.88), (-0.72, 0.88))
    ]
    draw.polygon(glass, fill=(50, 58, 68))
    for light in (-0.94, 0.7):
        draw.rectangle(
            (x + light * half, y - 0.66 * half, x + (light + 0.24) * half, y - 0.5 * half), fill=(190, 34, 30)
        )
    draw.rectangle((x - 0.24 * half, y - 0.46 * half, x + 0.24 * half, y - 0.34 * half), fill=(226, 220, 160))


def _tapered(foot: Point, half: float, top: Point, bottom: Point) -> list[Point]:
    """Return the corners of a symmetric trapezoid; its `top` and `bottom` are (half the width, height) times `half`."""
    corners = ((-top[0], top[1]), top, bottom, (-bottom[0], bottom[1]))
    return [(foot[0] + across * half, foot[1] - up * half) for across, up in corners]


_UPRIGHT = {"tree": _tree, "pole": _pole, "person": _person}
