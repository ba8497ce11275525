"""Pictures of letters, drawn from the outlines of matplotlib's own fonts.

Each shows one of ten capitals, turned, slanted, scaled, moved and coloured at random, on a background that changes its
colour from edge to edge, with noise on every pixel. A family of fonts is either for training or for validation. The pixels
depend on the installed matplotlib, whose fonts these are, and on the FreeType in it, which reads their outlines.
"""

import functools
from pathlib import Path

import numpy as np

LETTERS = tuple("ABCDEFGHIJ")
SIDE = 32
FONTS = {
    "train": (
        "DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSansMono", "DejaVuSansMono-Bold",
        "DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic",
    ),
    "validation": ("STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "cmr10", "cmb10", "cmss10", "cmti10", "cmtt10"),
}  # fmt: skip

TURN, SLANT = 0.25, 0.1  # at most: radians, and width over height
HEIGHT, SHIFT = (18, 24), 2  # of the letter, and at most away from the middle, in pixels
CHANGE = 0.3  # of the background's colour from edge to edge, of the way to another colour
CONTRAST = 0.4  # between letter and background at least; like the noise, in a range of 1
NOISE = (0.02, 0.1)  # standard deviation, one for each image
MASK, FINER = 48, 4  # pixels of a mask's side, and how many times finer it is filled
MASK_HEIGHTS = 1.5  # side of a mask, in heights of its letter
CHUNK = 250  # images drawn at once, from random numbers of their own


@functools.lru_cache(maxsize=4)
def draw_letters(count: int, part: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """`count` images, uint8 `(count, 32, 32, 3)`, and their labels, int64; the first ones are the same for every count."""
    shapes, whose = masks(part), list(FONTS).index(part)
    chunks = [draw_chunk(shapes, np.random.default_rng((whose, seed, i))) for i in range(-(-count // CHUNK))]
    images, labels = np.concatenate(chunks)[:count], np.arange(count) % len(LETTERS)
    images.flags.writeable = labels.flags.writeable = False  # the next caller gets the same arrays
    return images, labels


def draw_chunk(masks: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Images of A to J over and over, uint8 `(CHUNK, 32, 32, 3)`."""

    def uniform(low: float, high: float, *shape: int) -> np.ndarray:
        return random.uniform(low, high, (CHUNK, 1, 1, *shape)).astype(np.float32)

    y, x = np.mgrid[:SIDE, :SIDE].astype(np.float32) - (SIDE - 1) / 2
    near, other, ink = uniform(0, 1, 3), uniform(0, 1, 3), uniform(0, 1, 3)
    far = near + CHANGE * (other - near)
    sine, cosine = circle(uniform(0, 2 * np.pi))
    across = (cosine * x + sine * y) / SIDE + 0.5
    image = near + across[..., None] * (far - near)

    (sine, cosine), slant = circle(uniform(-TURN, TURN)), uniform(-SLANT, SLANT)
    height, down, right = uniform(*HEIGHT), uniform(-SHIFT, SHIFT), uniform(-SHIFT, SHIFT)
    y, x = y - down, x - right
    y, x = cosine * y - sine * x, sine * y + cosine * x
    mask = masks[random.integers(len(masks), size=CHUNK), np.arange(CHUNK) % len(LETTERS)]
    scale = MASK / MASK_HEIGHTS / height
    covered = sample(mask, y * scale, (x + slant * y) * scale)[..., None]
    image += covered * (apart(ink, (near + far) / 2) - image)

    image += uniform(*NOISE)[..., None] * random.standard_normal(image.shape, np.float32)
    return (image * 255).round().clip(0, 255).astype(np.uint8)


def circle(angle: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sine and cosine, float32, rounded from float64, since processors differ in the last digits of theirs."""
    return np.sin(angle, dtype=np.float64).astype(np.float32), np.cos(angle, dtype=np.float64).astype(np.float32)


def apart(ink: np.ndarray, background: np.ndarray) -> np.ndarray:
    """The ink, moved away from the background where it is too close to it to be seen."""
    difference = ink - background
    distance = np.sqrt(np.square(difference).mean(axis=-1, keepdims=True))  # root mean square over the channels
    return background + difference * np.maximum(1, CONTRAST / distance)


def sample(mask: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """The masks at places counted from their middle, between pixels by bilinear interpolation; 0 outside."""
    y, x = ((place + (MASK - 1) / 2).clip(0, MASK - 1.001) for place in (y, x))  # a mask's edge is empty
    row, column = y.astype(np.int32), x.astype(np.int32)
    y, x = y - row, x - column
    flat = mask.ravel()
    corner = (np.arange(len(mask), dtype=np.int32)[:, None, None] * MASK + row) * MASK + column
    top = flat[corner] + x * (flat[corner + 1] - flat[corner])
    bottom = flat[corner + MASK] + x * (flat[corner + MASK + 1] - flat[corner + MASK])
    return top + y * (bottom - top)


@functools.lru_cache(maxsize=2)
def masks(part: str) -> np.ndarray:
    """How much of each pixel a letter covers, float32 `(fonts, letters, MASK, MASK)`, the letter in the middle."""
    import matplotlib
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextPath

    folder, filled = Path(matplotlib.get_data_path(), "fonts", "ttf"), []
    for name in FONTS[part]:
        if not (folder / f"{name}.ttf").is_file():
            raise FileNotFoundError(f"matplotlib brought no font {name}.ttf in {folder}; install it again with pip")
        font = FontProperties(fname=folder / f"{name}.ttf")
        outlines = [TextPath((0, 0), letter, size=100, prop=font).to_polygons() for letter in LETTERS]
        filled += [fill([np.asarray(polygon) for polygon in outline]) for outline in outlines]
    return np.stack(filled).reshape(-1, len(LETTERS), MASK, MASK)


def fill(outline: list[np.ndarray]) -> np.ndarray:
    """Fills closed polygons of `(x, up)` by the even-odd rule: inside is what an odd number of edges is to the left of."""
    corners = np.concatenate(outline)
    low, high = corners.min(axis=0), corners.max(axis=0)
    side, size = MASK * FINER, (high - low)[1] * MASK_HEIGHTS
    scaled = [((polygon - (low + high) / 2) * (1, -1) / size + 0.5) * side - 0.5 for polygon in outline]
    x0, y0 = np.concatenate([polygon[:-1] for polygon in scaled]).T
    x1, y1 = np.concatenate([polygon[1:] for polygon in scaled]).T
    above = np.stack((y0, y1))[..., None] <= np.arange(side)
    edge, row = np.nonzero(above[0] != above[1])
    x0, y0, x1, y1 = (z[edge] for z in (x0, y0, x1, y1))
    crossing = np.ceil(x0 + (row - y0) / (y1 - y0) * (x1 - x0)).astype(int)
    crossings = np.zeros((side, side), dtype=int)
    np.add.at(crossings, (row, crossing), 1)
    inside = crossings.cumsum(axis=1) % 2
    return inside.reshape(MASK, FINER, MASK, FINER).mean(axis=(1, 3)).astype(np.float32)
