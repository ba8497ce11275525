"""Images: an epoch shows each once, a batch is a function of (seed, step), crops are crops, and bad files say so."""

import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.font_manager import FontProperties
from matplotlib.path import Path as Outline
from matplotlib.textpath import TextPath
from small import assert_one_sentence
from torch import Tensor

from minitrain.data.images import Images, crop, epochs, last_tenth_of_each_class, letters, moments, own_images
from minitrain.data.letters import FONTS, LETTERS, MASK, draw_letters, fill, masks, sample
from minitrain.recipe import Data

reproducibly = settings(derandomize=True, deadline=None, max_examples=40, database=None)
chance = np.random.default_rng(0)
PIXELS = chance.integers(256, size=(50, 8, 6, 3), dtype=np.uint8)
LABELS = np.arange(50) % 5


def small(pad: int = 0, flip: bool = False, train: int = 40) -> Images:
    return Images(PIXELS[:train], LABELS[:train], PIXELS[40:], LABELS[40:], pad=pad, flip=flip)


def raw(data: Images, images: Tensor) -> Tensor:
    """The bytes that were normalized, `(B, H, W, C)`."""
    return (images.permute(0, 2, 3, 1) * data.deviation + data.mean).round().to(torch.uint8)


def indexed(size: int) -> Images:
    """Images whose only pixel is their place, as is their label."""
    places = np.arange(size)
    return Images(places.astype(np.uint8).reshape(-1, 1, 1), places, np.zeros((1, 1, 1), np.uint8), np.zeros(1, int))


# --- batches ----------------------------------------------------------------------------------------------------------


def test_images_are_what_the_loop_asks_for():
    data = small()
    assert isinstance(data, Data)
    assert (data.row_size, data.size, data.unit, data.classes, data.channels) == (1, 40, "images", 5, 3)
    images, labels = data.batch(seed=0, step=0, rows=7)
    assert images.shape == (7, 3, 8, 6)
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert (images.dtype, labels.dtype) == (torch.float32, torch.int64)


def test_without_augmentation_a_batch_holds_whole_images_with_their_labels():
    data = small()
    images, labels = data.batch(seed=3, step=2, rows=16)
    for image, label in zip(raw(data, images).numpy(), labels.tolist(), strict=True):
        (place,) = (i for i in range(40) if np.array_equal(image, PIXELS[i]))
        assert label == LABELS[place]


@reproducibly
@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 9))
def test_every_epoch_shows_every_image_once(size: int, rows: int, seed: int):
    shown = np.concatenate([epochs(size, seed, range(i * rows, (i + 1) * rows)) for i in range(-(-3 * size // rows))])
    for epoch in shown[: 3 * size].reshape(3, size):
        assert np.array_equal(np.sort(epoch), np.arange(size))


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = {tuple(epochs(30, seed, range(30 * epoch, 30 * epoch + 30))) for seed in range(4) for epoch in range(4)}
    assert len(orders) == 16


def test_a_batch_depends_on_seed_and_step_alone():
    steps = [(seed, step) for seed in range(3) for step in range(6)]
    first, second = small(pad=2, flip=True), small(pad=2, flip=True)
    in_order = {key: first.batch(*key, rows=9) for key in steps}
    random.Random(0).shuffle(steps)
    for key in steps:
        torch.manual_seed(key[1])
        images, labels = second.batch(*key, rows=9)
        assert torch.equal(images, in_order[key][0])
        assert torch.equal(labels, in_order[key][1])
    assert len({images.sum().item() for images, _ in in_order.values()}) == 18


def test_pixels_are_normalized_by_the_training_images():
    data = small()
    images, _ = data.batch(seed=0, step=0, rows=40)
    assert torch.allclose(images.mean((0, 2, 3)), torch.zeros(3), atol=1e-5)
    assert torch.allclose(images.std((0, 2, 3), correction=0), torch.ones(3), atol=1e-5)
    (validation, labels), (rest, _) = data.validation(rows=6)
    expected = (PIXELS[40:46] - PIXELS[:40].mean((0, 1, 2))) / PIXELS[:40].std((0, 1, 2))
    assert np.allclose(validation.permute(0, 2, 3, 1), expected, atol=1e-5)
    assert labels.tolist() == LABELS[40:46].tolist()
    assert len(rest) == 4


def test_a_constant_channel_is_zero_and_not_nan():
    pixels = PIXELS.copy()
    pixels[..., 1] = 7
    data = Images(pixels[:40], LABELS[:40], pixels[40:], LABELS[40:])
    images, _ = data.batch(0, 0, rows=40)
    assert torch.equal(images[:, 1], torch.zeros(40, 8, 6))
    assert moments(pixels)[1][1] == 1


def test_images_lie_on_the_default_device_and_share_no_memory_with_the_arrays():
    with torch.device("meta"):
        data = small()
    tensors = (data.train_images, data.train_labels, data.validation_images, data.mean, data.deviation)
    assert all(tensor.device.type == "meta" for tensor in tensors)
    pixels = PIXELS[:40].copy()
    data = Images(pixels, LABELS[:40], PIXELS[40:], LABELS[40:])
    pixels[:] = 0
    assert torch.equal(data.train_images, torch.tensor(PIXELS[:40]))


def test_the_digest_is_of_pixels_and_labels():
    assert small().digest == small(pad=1, flip=True).digest
    labels = LABELS.copy()
    labels[3] += 1
    others = (
        small(train=35),
        Images(PIXELS[:40], labels[:40], PIXELS[40:], LABELS[40:]),
        Images(PIXELS[:40], LABELS[:40], PIXELS[40:][::-1], LABELS[40:]),
    )
    assert len({small().digest, *(data.digest for data in others)}) == 4


# --- crops and mirrors ------------------------------------------------------------------------------------------------


def test_a_crop_is_a_window_of_the_image_and_its_reflections():
    images = torch.tensor(PIXELS)
    index, mirrored = torch.tensor([4, 4, 9, 0]), torch.tensor([False, True, True, False])
    shifts = torch.tensor([[0, -3, 2, 3], [0, 1, -3, 3]])
    found = crop(images, index, shifts, mirrored)
    for image, i, mirror, down, right in zip(found, index, mirrored, *shifts, strict=True):
        whole = PIXELS[i][:, ::-1] if mirror else PIXELS[i]
        padded = np.pad(whole, ((3, 3), (3, 3), (0, 0)), mode="reflect")
        assert np.array_equal(image, padded[3 + down : 11 + down, 3 + right : 9 + right])


def test_every_shift_and_mirror_is_drawn_equally_often():
    pixels = np.arange(48, dtype=np.uint8).reshape(1, 8, 6)  # so that the corner's pixel tells the crop
    data = Images(pixels, np.zeros(1, int), pixels, np.zeros(1, int), pad=1, flip=True)
    images = raw(data, data.batch(seed=0, step=0, rows=18 * 400)[0])[:, 3, 2:4, 0]
    _, counts = images.unique(dim=0, return_counts=True)
    assert len(counts) == 18
    assert ((counts - 400).abs() < 5 * 400**0.5).all()


def test_crops_of_a_step_are_not_those_of_the_next():
    data = Images(PIXELS[:1], LABELS[:1], PIXELS[:1], LABELS[:1], pad=3)
    batches = [data.batch(seed, step, rows=20)[0] for seed in range(3) for step in range(3)]
    assert len({batch.sum().item() for batch in batches}) == 9


def test_the_order_of_the_images_does_not_depend_on_augmentation():
    assert torch.equal(small().batch(1, 1, 20)[1], small(pad=2, flip=True).batch(1, 1, 20)[1])


# --- letters ----------------------------------------------------------------------------------------------------------


def test_letters_are_balanced_and_the_same_every_time():
    data = letters(train=500, validation=100)
    assert data.train_images.shape == (500, 32, 32, 3)
    assert data.label_names == tuple("ABCDEFGHIJ")
    assert data.train_labels.bincount().tolist() == [50] * 10
    assert data.validation_labels.bincount().tolist() == [10] * 10
    draw_letters.cache_clear()
    masks.cache_clear()
    assert letters(train=500, validation=100).digest == data.digest
    assert letters(train=500, validation=100, seed=1).digest != data.digest


def test_fewer_letters_are_the_first_ones():
    many, labels = draw_letters(510, "train", 0)
    few, few_labels = draw_letters(270, "train", 0)
    assert np.array_equal(few, many[:270])
    assert np.array_equal(few_labels, labels[:270])
    assert len(np.unique(many.reshape(510, -1), axis=0)) == 510


def test_no_family_of_fonts_is_in_both_parts():
    def family(font: str) -> str:
        return font[:6] if font.startswith("DejaVu") else font[:2]

    families = {part: {family(font) for font in fonts} for part, fonts in FONTS.items()}
    assert not families["train"] & families["validation"]
    assert masks("train").shape == masks("validation").shape == (8, 10, MASK, MASK)


def test_masks_are_the_letters():
    """Against matplotlib's own test of whether a point is inside an outline."""
    import matplotlib

    name = Path(matplotlib.get_data_path(), "fonts", "ttf", f"{FONTS['train'][0]}.ttf")
    for letter in "ABG":
        path = TextPath((0, 0), letter, size=100, prop=FontProperties(fname=name))
        box = path.get_extents()
        step = 1.5 * box.height / MASK
        offset = (np.arange(MASK) - (MASK - 1) / 2) * step
        x, up = np.meshgrid((box.x0 + box.x1) / 2 + offset, (box.y0 + box.y1) / 2 - offset)
        points = np.stack((x.ravel(), up.ravel()), axis=1)
        polygons = [Outline(np.asarray(polygon)) for polygon in path.to_polygons()]
        inside = sum(polygon.contains_points(points).astype(int) for polygon in polygons) % 2
        covered = masks("train")[0, LETTERS.index(letter)]
        clear = np.abs(covered - 0.5) > 0.49  # pixels that no edge crosses
        assert clear.mean() > 0.8
        assert np.array_equal(covered[clear] > 0.5, inside.reshape(MASK, MASK)[clear] == 1)


def test_a_ring_is_filled_but_for_its_hole():
    def square(half: float) -> np.ndarray:
        return half * np.array([[-1, -1], [1, -1], [1, 1], [-1, 1], [-1, -1]])

    ring = fill([square(3), square(1.5)])
    assert ring[MASK // 2, MASK // 2] == 0
    assert ring.sum() == pytest.approx((1 - 1 / 4) * (MASK / 1.5) ** 2, rel=0.01)
    assert ring[0].max() == ring[-1].max() == ring[:, 0].max() == ring[:, -1].max() == 0


def test_masks_are_read_at_their_pixels_and_between_them():
    mask = chance.random((2, MASK, MASK)).astype(np.float32)
    y, x = (np.full((2, 1, 1), place, dtype=np.float32) for place in (2.75, -4.25))
    row, column = 26, 19  # counted from the middle at 23.5: 26.25 and 19.25
    near, far = (0.75 * mask[:, i, column] + 0.25 * mask[:, i, column + 1] for i in (row, row + 1))
    expected = 0.75 * near + 0.25 * far
    assert np.allclose(sample(mask, y, x)[:, 0, 0], expected, atol=1e-5)


def test_nothing_is_drawn_or_asked_for_at_import():
    code = "import sys, minitrain.data.download; print('matplotlib' in sys.modules, 'pooch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["False", "False"]


# --- files of one's own -----------------------------------------------------------------------------------------------


def arrays(**others: Any) -> dict[str, Any]:
    """A file of 60 training rows of three classes, and of 6 test rows."""
    labels = np.arange(60, dtype=np.uint8) % 3
    return {
        "train_images": np.arange(60 * 20, dtype=np.int64).astype(np.uint8).reshape(60, 5, 4),
        "train_labels": labels,
        "test_images": np.zeros((6, 5, 4), np.uint8),
        "test_labels": labels[:6],
        **others,
    }


@pytest.fixture
def npz(tmp_path: Path) -> Any:
    def write(**others: Any) -> str:
        path = str(tmp_path / "own.npz")
        np.savez_compressed(path, **{key: x for key, x in arrays(**others).items() if x is not None})
        return path

    return write


def test_grey_images_of_a_file_with_test_rows(npz: Any):
    data = own_images(npz(label_names=np.array(["x", "y", "z"])), held_out="test", pad=0, flip=False)
    assert (data.size, data.channels, data.classes, data.label_names) == (60, 1, 3, ("x", "y", "z"))
    assert data.batch(0, 0, 10)[0].shape == (10, 1, 5, 4)
    assert np.array_equal(data.train_images[..., 0], arrays()["train_images"])
    assert data.validation_labels.tolist() == [0, 1, 2, 0, 1, 2]


def test_validation_images_are_the_last_tenth_of_each_class_of_the_training_rows(npz: Any):
    data = own_images(npz(test_images=None, test_labels=None), pad=0)
    assert (data.size, data.label_names) == (54, ("0", "1", "2"))
    assert np.array_equal(data.train_images[..., 0], arrays()["train_images"][:54])
    assert np.array_equal(data.validation_images[..., 0], arrays()["train_images"][54:])
    assert last_tenth_of_each_class(np.array([0] * 10 + [1] * 25)).nonzero()[0].tolist() == [9, 33, 34]


def test_limits_take_the_first_rows(npz: Any):
    data = own_images(npz(), pad=0, limit=12, held_out_limit=3)
    assert np.array_equal(data.train_images[..., 0], arrays()["train_images"][:12])
    assert np.array_equal(data.validation_images[..., 0], arrays()["train_images"][54:57])


grey, labels = arrays()["train_images"], arrays()["train_labels"]


@pytest.mark.parametrize(
    ("others", "words"),
    [
        ({"train_images": None}, ["lacks train_images", "train_labels, test_images"]),
        ({"test_labels": None}, ["lacks test_labels"]),
        ({"train_images": grey / 255}, ["train_images must be uint8", "float64"]),
        ({"train_images": grey[:, 0]}, ["train_images must have the shape (N, H, W, C)", "(60, 4)"]),
        ({"train_images": grey.reshape(60, 1, 4, 5)}, ["train_images must have the shape", "(60, 1, 4, 5)"]),
        ({"train_images": grey[:, :0]}, ["no pixel", "(60, 0, 4)"]),
        ({"train_images": grey[:0], "train_labels": labels[:0]}, ["no pixel", "(0, 5, 4)"]),
        ({"test_images": np.zeros((6, 4, 4), np.uint8)}, ["the same shape", "(5, 4)", "(4, 4)"]),
        ({"train_labels": labels / 2}, ["train_labels must be whole numbers", "float64"]),
        ({"train_labels": labels[:-1]}, ["train_labels must have the shape (60,)", "(59,)"]),
        ({"train_labels": labels.astype(int) - 1}, ["train_labels must be from 0 to 2", "-1"]),
        ({"train_labels": np.where(labels == 2, 2**62, 0)}, ["must be below the 60 images there are"]),
        ({"label_names": np.array(["x", "y"])}, ["train_labels must be from 0 to 1", "2"]),
        ({"label_names": np.array("x")}, ["label_names must be a list"]),
        ({"test_labels": np.full(6, 7)}, ["no training image has the label 7"]),
        ({"train_labels": labels // 2 * 2}, ["no training image has the label 1"]),
        ({"train_labels": np.array([0, 1, 2] * 20, dtype=object)}, ["cannot be read", "numpy.savez"]),
    ],
)
def test_a_file_in_another_layout_is_refused(npz: Any, others: dict[str, Any], words: list[str]):
    with pytest.raises(ValueError, match=r".") as error:
        own_images(npz(**others), held_out="test", pad=0)
    assert_one_sentence(error.value, *words)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"limit": 0}, ["limit must be a whole number from 1 to the 54 rows"]),
        ({"limit": 55}, ["limit", "54", "55"]),
        ({"held_out_limit": 7}, ["held_out_limit", "6"]),
        ({"pad": 4}, ["pad must be a whole number from 0 to 3", "4"]),
        ({"pad": -1}, ["pad", "-1"]),
        ({"limit": 2, "pad": 0}, ["no training image has the label 2", "shuffle"]),
    ],
)
def test_an_argument_that_cannot_work_is_refused(npz: Any, arguments: dict[str, Any], words: list[str]):
    with pytest.raises(ValueError, match=r".") as error:
        own_images(npz(), **{"pad": 0, **arguments})
    assert_one_sentence(error.value, *words)


def test_what_is_no_file_of_arrays_is_refused(npz: Any, tmp_path: Path):
    with pytest.raises(FileNotFoundError) as missing:
        own_images(str(tmp_path / "nothing.npz"))
    assert_one_sentence(missing.value, "nothing.npz", "train_images and train_labels")
    whole = Path(npz())
    for name, content in (("text", b"words"), ("half", whole.read_bytes()[:500])):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match="not a complete") as error:
            own_images(str(tmp_path / name))
        assert_one_sentence(error.value, name)
    broken, headless = bytearray(whole.read_bytes()), bytearray(whole.read_bytes())
    broken[60:100] = bytes(40)
    headless[headless.rfind(b"PK\x01\x02")] = 0
    for content, words in ((broken, "cannot be read"), (headless, "write")):
        whole.write_bytes(content)
        with pytest.raises(ValueError, match=words) as error:
            own_images(str(whole))
        assert_one_sentence(error.value, "own.npz")


def test_too_few_rows_to_hold_out_are_refused(npz: Any):
    with pytest.raises(ValueError, match="ten training rows") as error:
        own_images(npz(train_images=grey[:27], train_labels=labels[:27]))
    assert_one_sentence(error.value)
    for count in (0, -1):
        with pytest.raises(ValueError, match="train must be a whole number") as error:
            letters(train=count)
        assert_one_sentence(error.value, count)
