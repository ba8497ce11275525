"""Text: the two parts never share a byte, a batch is a function of (seed, step), and what cannot work says so."""

import hashlib
import platform
import random
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small import assert_one_sentence
from torch import Tensor

from minitrain.data.text import VALIDATION_TOKENS, Text, decode, encode, own_text, python_version, standard_library

reproducibly = settings(derandomize=True, deadline=None, max_examples=60, database=None)

RANDOM_BYTES = np.random.default_rng(0).bytes(6000)


def indexed(size: int, context: int) -> Text:
    """A text whose tokens are their own positions, so that a window is the set of places it was cut from."""
    text = Text(bytes(size), context)
    border = len(text.train_tokens)
    text.train_tokens, text.validation_tokens = np.arange(border), np.arange(border, size)
    return text


@st.composite
def indexed_texts(draw: st.DrawFn) -> Text:
    context = draw(st.integers(1, 60))
    return indexed(draw(st.integers(10 * (context + 1), 10 * (context + 1) + 1500)), context)


def places(*tensors: Tensor) -> set[int]:
    return {place for tensor in tensors for place in tensor.flatten().tolist()}


def same_batches(a: list[tuple[Tensor, Tensor]], b: list[tuple[Tensor, Tensor]]) -> bool:
    return all(torch.equal(x, y) for one, other in zip(a, b, strict=True) for x, y in zip(one, other, strict=True))


def joined(batches: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    inputs, targets = zip(*batches, strict=True)
    return torch.cat(inputs), torch.cat(targets)


# --- the two parts ----------------------------------------------------------------------------------------------------


def test_the_parts_are_the_first_nine_tenths_and_the_last_tenth():
    text = Text(RANDOM_BYTES, context=16)
    assert text.train_tokens.tobytes() == RANDOM_BYTES[:5400]
    assert text.validation_tokens.tobytes() == RANDOM_BYTES[5400:]
    assert text.size == 5400


@reproducibly
@given(indexed_texts())
def test_training_and_validation_windows_share_no_place(text: Text):
    trained = places(*(tensor for step in range(5) for tensor in text.batch(0, step, rows=50)))
    assert not trained & places(*joined(text.validation(rows=7)))


def words(inputs: Tensor, targets: Tensor) -> set[bytes]:
    """All 8-byte words inside the windows."""
    windows = (bytes(row) for row in torch.cat((inputs, targets[:, -1:]), dim=1).tolist())
    return {window[i : i + 8] for window in windows for i in range(len(window) - 7)}


def test_no_word_of_the_validation_part_is_ever_trained_on():
    every_word = [RANDOM_BYTES[i : i + 8] for i in range(len(RANDOM_BYTES) - 7)]
    assert len(set(every_word)) == len(every_word)
    text = Text(RANDOM_BYTES, context=16)
    trained, validated = words(*text.batch(seed=0, step=0, rows=20_000)), words(*joined(text.validation(rows=64)))
    assert not trained & validated
    assert trained == set(every_word[: 5400 - 7])


# --- batches ----------------------------------------------------------------------------------------------------------


@reproducibly
@given(indexed_texts())
def test_targets_are_the_next_tokens_of_the_inputs(text: Text):
    for inputs, targets in [text.batch(3, 5, rows=20), *text.validation(rows=20)]:
        assert inputs.dtype == targets.dtype == torch.int64
        assert inputs.shape == targets.shape == (len(inputs), text.row_size)
        assert torch.equal(inputs, inputs[:, :1] + torch.arange(text.row_size))
        assert torch.equal(targets, inputs + 1)


def test_a_batch_holds_the_bytes_of_the_text():
    inputs, targets = Text(RANDOM_BYTES, context=16).batch(seed=0, step=0, rows=10)
    for row, next_row in zip(inputs.tolist(), targets.tolist(), strict=True):
        start = RANDOM_BYTES.index(bytes(row))
        assert bytes(next_row) == RANDOM_BYTES[start + 1 : start + 17]


def test_every_window_of_the_training_part_is_drawn_equally_often():
    text = indexed(100, context=5)  # 90 bytes to train on: windows of 6 start at 0 to 84
    inputs, targets = text.batch(seed=0, step=0, rows=85 * 400)
    counts = inputs[:, 0].bincount()
    assert len(counts) == 85
    assert ((counts - 400).abs() < 5 * 400**0.5).all()
    assert targets.max() == 89


def test_a_batch_depends_on_seed_and_step_alone():
    steps = [(seed, step) for seed in range(3) for step in range(4)]
    first, second = Text(RANDOM_BYTES, 16), Text(RANDOM_BYTES, 16)
    in_order = {key: first.batch(*key, rows=8) for key in steps}
    random.Random(0).shuffle(steps)
    for key in steps:
        second.validation(rows=3)
        torch.manual_seed(key[1])
        assert same_batches([second.batch(*key, rows=8)], [in_order[key]])


def test_another_seed_or_step_is_another_batch():
    text = Text(RANDOM_BYTES, context=16)
    batches = {(seed, step): text.batch(seed, step, rows=8)[0] for seed in range(8) for step in range(8)}
    assert len({tuple(inputs.flatten().tolist()) for inputs in batches.values()}) == 64


def test_batches_leave_the_default_random_numbers_alone():
    state, numpys = torch.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002 -- the state to protect
    Text(RANDOM_BYTES, context=16).batch(seed=0, step=0, rows=8)
    assert torch.equal(torch.get_rng_state(), state)
    assert np.random.get_state()[1].tolist() == numpys  # noqa: NPY002


# --- validation -------------------------------------------------------------------------------------------------------


@reproducibly
@given(indexed_texts())
def test_validation_windows_do_not_overlap(text: Text):
    for tensor in joined(text.validation(rows=7)):
        assert len(places(tensor)) == tensor.numel()


@reproducibly
@given(indexed_texts())
def test_a_short_validation_part_is_used_whole(text: Text):
    inputs, _ = joined(text.validation(rows=7))
    size = len(text.validation_tokens)
    assert inputs[0, 0] == text.validation_tokens[0]
    assert size - 1 - inputs.numel() < text.row_size  # what is left over is too short for another window


@reproducibly
@given(indexed_texts(), st.integers(1, 100))
def test_rows_only_splits_the_validation_windows(text: Text, rows: int):
    whole, split = text.validation(rows=10_000), text.validation(rows)
    assert len(whole) == 1
    assert same_batches([joined(split)], whole)
    assert {len(inputs) for inputs, _ in split[:-1]} <= {rows}
    assert 1 <= len(split[-1][0]) <= rows


def test_validation_is_the_same_at_every_call():
    text, again = Text(RANDOM_BYTES, context=16), Text(RANDOM_BYTES, context=16)
    before = text.validation(rows=4)
    text.batch(seed=1, step=1, rows=4)
    assert same_batches(before, text.validation(rows=4))
    assert same_batches(before, again.validation(rows=4))


def test_a_long_validation_part_is_sampled_evenly():
    text = indexed(3_000_000, context=100)
    inputs, _ = joined(text.validation(rows=64))
    assert VALIDATION_TOKENS - 100 < inputs.numel() <= VALIDATION_TOKENS
    gaps = inputs[:, 0].diff()
    assert gaps.max() - gaps.min() <= 100  # even, up to the window it is rounded to
    assert inputs[0, 0] == 2_700_000
    assert inputs[-1, -1] > 3_000_000 - 2 * gaps.max()


def test_a_window_longer_than_the_validation_budget_is_still_validated():
    context = VALIDATION_TOKENS + 1
    inputs, _ = joined(Text(bytes(10 * context + 30), context).validation(rows=1))
    assert inputs.shape == (1, context)


# --- what cannot work -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("context", [0, -4])
def test_a_context_below_one_is_refused(context: int):
    with pytest.raises(ValueError, match="context must be at least 1") as caught:
        Text(RANDOM_BYTES, context)
    assert_one_sentence(caught.value, context)


def test_a_context_longer_than_the_data_is_refused():
    with pytest.raises(ValueError, match="too short") as caught:
        Text(RANDOM_BYTES, context=10_000)
    assert_one_sentence(caught.value, "6,000 bytes", "context of 10000")


@reproducibly
@given(st.integers(1, 3000))
def test_the_size_that_the_error_asks_for_is_the_smallest_that_works(context: int):
    smallest = 10 * (context + 1)
    with pytest.raises(ValueError, match=f"at least {smallest:,} bytes"):
        Text(bytes(smallest - 1), context)
    text = Text(bytes(smallest), context)
    assert joined(text.validation(rows=1))[0].shape == (1, context)


@pytest.mark.parametrize(("content", "words"), [(b"x", ["1 bytes"]), (b"too short", ["9 bytes", "context of 8"])])
def test_a_file_too_short_is_refused(tmp_path: Path, content: bytes, words: list[str]):
    path = tmp_path / "short.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="too short") as caught:
        own_text(8, str(path))
    assert_one_sentence(caught.value, *words)


@pytest.mark.parametrize("content", [b"", b"\0", b"\x7fELF\0\0" * 100, "utf-16".encode("utf-16") * 100], ids=repr)
def test_an_empty_or_binary_file_is_refused(tmp_path: Path, content: bytes):
    path = tmp_path / "file.bin"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="empty or not a text") as caught:
        own_text(8, str(path))
    assert_one_sentence(caught.value, path)


def test_a_missing_path_is_refused(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="no file or folder") as caught:
        own_text(8, str(tmp_path / "nowhere"))
    assert_one_sentence(caught.value, tmp_path / "nowhere", "--data")


def test_a_folder_without_text_is_refused(tmp_path: Path):
    (tmp_path / "empty folder").mkdir()
    (tmp_path / "empty.txt").touch()
    (tmp_path / "image.bin").write_bytes(b"\0\1\2")
    with pytest.raises(ValueError, match="no text file") as caught:
        own_text(8, str(tmp_path))
    assert_one_sentence(caught.value, tmp_path)


# --- own text ---------------------------------------------------------------------------------------------------------


def digest_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_windows_newlines_are_read_as_newlines(tmp_path: Path):
    (tmp_path / "windows.txt").write_bytes(b"one\r\ntwo\r\n" * 50)
    assert own_text(8, str(tmp_path / "windows.txt")).digest == digest_of(b"one\ntwo\n" * 50)


def test_a_folder_is_its_texts_in_sorted_order(tmp_path: Path):
    contents = {"b.txt": b"bee " * 50, "a/z.py": b"zed\r\n" * 50, "a/b/c.md": b"sea " * 50}
    for name, content in {**contents, "a/image.bin": b"\0\1", "a/empty.txt": b""}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    expected = b"\n".join([b"sea " * 50, b"zed\n" * 50, b"bee " * 50])
    assert own_text(8, str(tmp_path)).digest == digest_of(expected)


# --- the standard library ---------------------------------------------------------------------------------------------


def listed_modules() -> list[str]:
    return files("minitrain.data").joinpath("standard_library.txt").read_text().split()


def library_folder(path: Path) -> Path:
    """A stand-in for a Python's library: every module of the list, one line each."""
    for name in listed_modules():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(f"# {name}\n")
    return path


def test_the_list_of_modules_is_sorted_without_duplicates():
    names = listed_modules()
    assert names == sorted(set(names))
    assert f"{len(names)} modules" in standard_library.__doc__
    assert not [name for name in names if not name.endswith(".py") or name.startswith("/") or ".." in name]


def test_this_pythons_library_is_a_text_of_the_promised_size():
    text, again = standard_library(context=128), standard_library(context=64)
    assert text.digest == again.digest
    assert len(text.train_tokens) + len(text.validation_tokens) == pytest.approx(7e6, rel=0.1)
    assert 0 not in text.train_tokens


def test_the_library_is_read_in_the_order_of_the_list(tmp_path: Path):
    text = standard_library(8, str(library_folder(tmp_path)))
    assert text.digest == digest_of("\n".join(f"# {name}\n" for name in listed_modules()).encode())


def test_one_changed_byte_of_the_library_changes_the_digest(tmp_path: Path):
    before = standard_library(8, str(library_folder(tmp_path))).digest
    (tmp_path / listed_modules()[7]).write_text("# changed\n")
    assert standard_library(8, str(tmp_path)).digest != before


def test_a_missing_module_is_named_with_what_to_do(tmp_path: Path):
    gone = listed_modules()[7]
    (library_folder(tmp_path) / gone).unlink()
    with pytest.raises(FileNotFoundError) as caught:
        standard_library(8, str(tmp_path))
    assert_one_sentence(caught.value, f"1 of {len(listed_modules())}", gone, tmp_path, "install", "--data PATH")


# --- text and tokens --------------------------------------------------------------------------------------------------


@reproducibly
@given(st.text(min_size=1))
def test_decoding_what_was_encoded_gives_the_text_back(text: str):
    tokens = encode(text)
    assert tokens.dtype == torch.int64
    assert tokens.shape == (1, len(text.encode()))
    assert decode(tokens[0]) == text


def test_an_empty_text_encodes_to_no_tokens_of_the_same_type():
    assert encode("").shape == (1, 0)
    assert encode("").dtype == torch.int64


def test_tokens_are_the_bytes_of_utf_8():
    assert encode("aé").tolist() == [[0x61, 0xC3, 0xA9]]


@pytest.mark.parametrize(("tokens", "text"), [([0xFF, 0x41], "\ufffdA"), ([0x41, 0xC3], "A\ufffd"), ([], "")])
def test_broken_utf_8_decodes_to_a_replacement_mark(tokens: list[int], text: str):
    assert decode(torch.tensor(tokens, dtype=torch.int64)) == text
    assert decode(np.array(tokens, dtype=np.uint8)) == text


def test_python_version_names_the_minor_release():
    assert platform.python_version().startswith(python_version() + ".")
    assert python_version().count(".") == 1
