"""Images with labels: letters drawn from fonts (no download, no file of others), or an `.npz` file of your own.

An epoch is a permutation of the training images. Each image is cropped out of its reflected surroundings at a random
place, and, if asked, mirrored; all of it in one gather, on the device on which the images lie as bytes.
"""

import functools
import hashlib
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from minitrain.data.letters import LETTERS, draw_letters

VALIDATION_SHARE = 0.1
ORDER, AUGMENTATION = 1, 2  # each draws from random numbers of its own, however seed, epoch and step coincide


class Images:
    """Training images in shuffled epochs with pad-crop and flip; validation images as they are.

    Images are uint8 `(N, H, W, C)` or grey `(N, H, W)`, labels whole numbers from 0, `(N,)`. Pixels are normalized by the
    training images' mean and standard deviation of each channel. The batch of a step is a pure function of (seed, step),
    the same one on every device. Raises `ValueError` for arrays that do not fit together.
    """

    row_size = 1
    unit = "images"

    def __init__(
        self,
        train_images: np.ndarray,
        train_labels: np.ndarray,
        validation_images: np.ndarray,
        validation_labels: np.ndarray,
        label_names: Sequence[str] | np.ndarray | None = None,
        pad: int = 0,
        flip: bool = False,
    ):
        check_images("train", train_images, train_labels)
        check_images("validation", validation_images, validation_labels)
        if train_images.shape[1:] != validation_images.shape[1:]:
            shapes = f"{train_images.shape[1:]} and {validation_images.shape[1:]}"
            raise ValueError(f"training and validation images must have the same shape, not {shapes}")
        if label_names is not None and np.ndim(label_names) != 1:
            raise ValueError("label_names must be a list with the name of each class")
        if label_names is None:
            label_names = [str(i) for i in range(int(max(train_labels.max(), validation_labels.max())) + 1)]
        self.label_names, self.classes = tuple(map(str, label_names)), len(label_names)
        for part, labels in (("train", train_labels), ("validation", validation_labels)):
            if labels.min() < 0 or labels.max() >= self.classes:
                wrong = labels[(labels < 0) | (labels >= self.classes)][0]
                raise ValueError(f"{part}_labels must be from 0 to {self.classes - 1}, and one is {wrong}")
        unseen = np.setdiff1d(validation_labels, train_labels)
        if unseen.size:
            raise ValueError(
                f"no training image has the label {unseen[0]}; take more rows, or shuffle those of the file"
            )
        height, width = train_images.shape[1:3]
        if type(pad) is not int or not 0 <= pad < min(height, width):
            raise ValueError(f"pad must be a whole number from 0 to {min(height, width) - 1}, not {pad!r}")
        self.pad, self.flip, self.size = pad, flip, len(train_images)
        arrays = [train_images, train_labels.astype(np.int64), validation_images, validation_labels.astype(np.int64)]
        self.digest = digest_of(arrays)
        arrays[::2] = [x.reshape(*x.shape[:3], -1) for x in arrays[::2]]  # grey: one channel
        self.channels = arrays[0].shape[3]
        mean, deviation = moments(arrays[0])
        # Copies, on the default device.
        tensors = [torch.tensor(np.ascontiguousarray(x)) for x in (*arrays, mean, deviation)]
        self.train_images, self.train_labels, self.validation_images, self.validation_labels = tensors[:4]
        self.mean, self.deviation = tensors[4:]

    def batch(self, seed: int, step: int, rows: int) -> tuple[Float[Tensor, "B C H W"], Int64[Tensor, " B"]]:
        """Normalized images, channels last in memory, and their labels."""
        index = epochs(self.size, seed, range(step * rows, (step + 1) * rows))
        random = np.random.default_rng((AUGMENTATION, seed, step))
        shifts = random.integers(-self.pad, self.pad, size=(2, rows), endpoint=True)
        mirrored = random.random(rows) < 0.5 if self.flip else np.zeros(rows, dtype=bool)
        device = self.train_images.device
        rows_of, shift_of, mirror = (torch.as_tensor(x, device=device) for x in (index, shifts, mirrored))
        pixels = crop(self.train_images, rows_of, shift_of, mirror)
        return self.normalize(pixels), self.train_labels[rows_of]

    def validation(self, rows: int) -> list[tuple[Tensor, Tensor]]:
        """All validation images, at most `rows` at a time, the same ones always."""
        batches = zip(self.validation_images.split(rows), self.validation_labels.split(rows), strict=True)
        return [(self.normalize(images), labels) for images, labels in batches]

    def seen(self, count: int, rows: int) -> list[tuple[Tensor, Tensor]]:
        """The first `count` training images as `validation` has its own: to measure what was learned by heart."""
        batches = zip(self.train_images[:count].split(rows), self.train_labels[:count].split(rows), strict=True)
        return [(self.normalize(images), labels) for images, labels in batches]

    def normalize(self, pixels: UInt8[Tensor, "B H W C"]) -> Float[Tensor, "B C H W"]:
        return ((pixels.float() - self.mean) / self.deviation).permute(0, 3, 1, 2)


def crop(
    images: UInt8[Tensor, "N H W C"],
    index: Int64[Tensor, " B"],
    shifts: Int64[Tensor, "2 B"],
    mirrored: Tensor,
) -> UInt8[Tensor, "B H W C"]:
    """The images at `index`, mirrored where asked, then cropped `shifts` pixels further (down, right).

    What comes in at an edge is a reflection.
    """
    height, width = images.shape[1:3]
    y = shifts[0, :, None] + torch.arange(height, device=images.device)
    x = shifts[1, :, None] + torch.arange(width, device=images.device)
    x = torch.where(mirrored[:, None], width - 1 - x, x)
    y, x = (
        size - 1 - (size - 1 - place.abs()).abs() for size, place in ((height, y), (width, x))
    )  # reflected at edges
    return images[index[:, None, None], y[:, :, None], x[:, None, :]]


def epochs(size: int, seed: int, places: range) -> np.ndarray:
    """Which images stand at `places` in the endless row of shuffled epochs, `(len(places),)` int64."""
    position = np.arange(places.start, places.stop)
    each = range(places.start // size, (places.stop - 1) // size + 1)
    return np.concatenate(
        [permutation(size, seed, epoch)[position[position // size == epoch] % size] for epoch in each]
    )


@functools.lru_cache(maxsize=2)
def permutation(size: int, seed: int, epoch: int) -> np.ndarray:
    """The order of an epoch, int64; kept, because every step of the epoch asks for it."""
    return np.random.default_rng((ORDER, seed, epoch)).permutation(size)


def letters(train: int = 5000, validation: int = 1000, pad: int = 2, flip: bool = False, seed: int = 0) -> Images:
    """Drawn letters A to J, 32x32 RGB; the validation letters come from families of fonts that are never trained on.

    The first images are the same for every count. `digest` tells whether another machine drew the same pixels.
    """
    for name, count in (("train", train), ("validation", validation)):
        if type(count) is not int or count < 1:
            raise ValueError(f"{name} must be a whole number of letters, at least 1, not {count!r}")
    return Images(
        *draw_letters(train, "train", seed), *draw_letters(validation, "validation", seed), LETTERS, pad=pad, flip=flip
    )


def own_images(
    path: str,
    pad: int = 4,
    flip: bool = True,
    held_out: Literal["validation", "test"] = "validation",
    limit: int | None = None,
    held_out_limit: int | None = None,
) -> Images:
    """An `.npz` file: `train_images`, `train_labels`, for "test" also `test_images`, `test_labels`; perhaps `label_names`.

    "validation" holds out the last tenth of each class of the training rows: choose everything with it. "test" trains on all
    training rows and evaluates on the test rows. The limits take the first rows of either part. Raises `FileNotFoundError`
    where there is no file, `ValueError` for one in another layout.
    """
    if held_out not in ("validation", "test"):
        raise ValueError(f"held_out must be 'validation' or 'test', not {held_out!r}")
    return split_images(read_npz(path, held_out), pad, flip, held_out, limit, held_out_limit)


def split_images(
    arrays: dict[str, np.ndarray], pad: int, flip: bool, held_out: str, limit: int | None, held_out_limit: int | None
) -> Images:
    """The data of `own_images`, from its arrays."""
    images, labels = arrays["train_images"], arrays["train_labels"]
    check_images("train", images, labels)
    if labels.max() >= len(labels):  # each number up to it would be a class
        raise ValueError(f"train_labels must be below the {len(labels):,} images there are, and one is {labels.max()}")
    if held_out == "test":
        others, other_labels = arrays["test_images"], arrays["test_labels"]
        check_images("test", others, other_labels)
    else:
        held = last_tenth_of_each_class(labels)
        others, other_labels, images, labels = images[held], labels[held], images[~held], labels[~held]
    images, labels = first(images, limit, "limit"), first(labels, limit, "limit")
    others, other_labels = (first(x, held_out_limit, "held_out_limit") for x in (others, other_labels))
    return Images(images, labels, others, other_labels, arrays.get("label_names"), pad=pad, flip=flip)


def first(array: np.ndarray, limit: int | None, name: str) -> np.ndarray:
    """The first `limit` rows, or all."""
    if limit is not None and (type(limit) is not int or not 1 <= limit <= len(array)):
        raise ValueError(
            f"{name} must be a whole number from 1 to the {len(array):,} rows that there are, not {limit!r}"
        )
    return array[:limit]


def last_tenth_of_each_class(labels: np.ndarray) -> np.ndarray:
    """A mask, True where a row is held out; classes of fewer than ten rows hold out none."""
    held = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        held[rows[len(rows) - int(len(rows) * VALIDATION_SHARE) :]] = True
    if not held.any():
        raise ValueError(
            "no class has ten training rows, of which the last could be held out; give more, or hold out 'test'"
        )
    return held


def read_npz(path: str, held_out: str = "test") -> dict[str, np.ndarray]:
    """The arrays of the layout, those of the test rows only where they are wanted."""
    wanted = ("train_images", "train_labels") + ("test_images", "test_labels") * (held_out == "test")
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file {path}; give the path of an .npz file with {' and '.join(wanted)}")
    return unpacked(path, wanted, Path(path).stat().st_mtime_ns)


@functools.lru_cache(maxsize=1)
def unpacked(path: str, wanted: tuple[str, ...], modified: int) -> dict[str, np.ndarray]:
    """The same, kept: a run asks for its data more than once, and unpacking them takes seconds."""
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is not a complete .npz file; write one with numpy.savez")
    try:
        with open(path, "rb") as content, np.load(content, allow_pickle=False) as file:
            there = file.files
            arrays = {name: np.asarray(file[name]) for name in (*wanted, "label_names") if name in there}
    except Exception as error:  # a broken member, in any of several packings; or objects, which numpy refuses
        raise ValueError(f"{path} cannot be read ({error}); write plain arrays with numpy.savez") from error
    missing = [name for name in wanted if name not in arrays]
    if missing:
        raise ValueError(f"{path} lacks {' and '.join(missing)}; it holds {', '.join(there) or 'nothing'}")
    return arrays


def check_images(part: str, images: np.ndarray, labels: np.ndarray) -> None:
    """Raises `ValueError` unless these are bytes of images, and a whole number for each."""
    if images.dtype != np.uint8:
        raise ValueError(f"{part}_images must be uint8, from 0 to 255, not {images.dtype}")
    if images.ndim not in (3, 4) or images.shape[-1] == 0 or images.shape[3:] not in ((), (1,), (3,), (4,)):
        raise ValueError(f"{part}_images must have the shape (N, H, W, C), or (N, H, W) if grey, not {images.shape}")
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"{part}_labels must be whole numbers, not {labels.dtype}")
    if labels.shape != images.shape[:1]:
        raise ValueError(f"{part}_labels must have the shape ({len(images)},), one for each image, not {labels.shape}")
    if not images.size:
        raise ValueError(f"{part}_images holds no pixel; its shape is {images.shape}")


def moments(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each channel, float32, from exact sums; 1 for the deviation of a constant channel."""
    count = images.size // images.shape[3]
    mean = images.sum(axis=(0, 1, 2), dtype=np.int64) / count
    square = np.einsum("nhwc,nhwc->c", images, images, dtype=np.int64) / count
    variance = square - mean**2
    deviation = np.sqrt(np.where(variance > 1e-9, variance, 1))
    return mean.astype(np.float32), deviation.astype(np.float32)


def digest_of(arrays: Sequence[np.ndarray]) -> str:
    """The sha256 of shapes and values."""
    total = hashlib.sha256()
    for array in arrays:
        total.update(f"{array.shape} {array.dtype.newbyteorder('<')}".encode())
        total.update(np.ascontiguousarray(array).data)
    return total.hexdigest()
