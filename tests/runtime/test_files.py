"""Files are whole or not there; signals are remembered; exported weights come back as they were."""

import errno
import signal
import sys
import threading
import zipfile
from pathlib import Path
from typing import IO

import pytest
import torch
from small import CONTEXT, same, tiny_gpt

from minitrain.runtime.checkpoint import checkpoints, export_weights, load_checkpoint, load_weights, save_checkpoint
from minitrain.runtime.files import (
    append_line,
    check_writable,
    only_writer,
    stop_requests,
    write_atomically,
    write_text,
)

# --- written whole or not at all --------------------------------------------------------------------------------------


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_by_what_is_written(tmp_path: Path) -> None:
    path = tmp_path / "made" / "on the way" / "file"
    for text in (b"first", b"second and longer", b""):
        write_atomically(path, lambda file, text=text: file.write(text))
        assert path.read_bytes() == text
        assert names_in(path.parent) == ["file"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failing_writer_leaves_the_old_file_and_nothing_else(error: type[BaseException], tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail(file: IO[bytes]) -> None:
        file.write(b"half of the new")
        raise error

    with pytest.raises(error):
        write_atomically(path, fail)
    assert path.read_bytes() == b"old"
    assert names_in(tmp_path) == ["file"]


def test_the_old_file_is_there_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def look(file: IO[bytes]) -> None:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"

    write_atomically(path, look)
    assert path.read_bytes() == b"new"


def test_text_is_written_in_utf_8_with_its_newlines(tmp_path: Path) -> None:
    write_text(tmp_path / "file", "β₁: 0,9\n")
    assert (tmp_path / "file").read_bytes() == "β₁: 0,9\n".encode()


def test_lines_are_added_at_the_end(tmp_path: Path) -> None:
    append_line(tmp_path / "file", "a")
    append_line(tmp_path / "file", "β")
    assert (tmp_path / "file").read_bytes() == "a\nβ\n".encode()


def test_a_writable_folder_is_made_and_left_empty(tmp_path: Path) -> None:
    check_writable(tmp_path / "a" / "b")
    check_writable(tmp_path / "a" / "b")
    assert names_in(tmp_path / "a" / "b") == []


@pytest.mark.parametrize("below", ["", "below", "far/below"])
def test_a_folder_that_cannot_be_is_refused_with_a_sentence(below: str, tmp_path: Path) -> None:
    """A path at or below a file: not even root can make a folder there."""
    (tmp_path / "file").write_bytes(b"in the way")
    with pytest.raises(ValueError, match=r"^cannot write to folder .*file.* \(.+\); choose another with --out$"):
        check_writable(tmp_path / "file" / below)
    assert (tmp_path / "file").read_bytes() == b"in the way"


# --- signals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_remembered_not_obeyed(number: int) -> None:
    with stop_requests() as requested:
        assert not requested()
        signal.raise_signal(number)
        assert requested()
        assert requested()


def test_requests_are_forgotten_afterwards() -> None:
    with stop_requests() as requested:
        signal.raise_signal(signal.SIGTERM)
    with stop_requests() as requested:
        assert not requested()


def test_a_second_interrupt_is_obeyed_and_a_second_termination_is_not() -> None:
    with stop_requests():
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def handlers() -> tuple:
    return signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)


@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
def test_the_handlers_of_before_are_put_back(error: type[BaseException] | None) -> None:
    before = handlers()
    try:
        with stop_requests():
            assert handlers() != before
            if error:
                raise error
    except (RuntimeError, KeyboardInterrupt):
        pass
    assert handlers() == before


def test_outside_the_main_thread_no_stop_is_ever_requested() -> None:
    before, said = handlers(), []

    def ask() -> None:
        with stop_requests() as requested:
            said.append(requested())
            said.append(handlers() == before)

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    assert said == [False, True]


# --- checkpoints as files ---------------------------------------------------------------------------------------------


def test_the_newest_two_checkpoints_are_kept(tmp_path: Path) -> None:
    for step in (5, 90, 100, 1000):
        path = save_checkpoint(tmp_path, step, {"step": step})
        assert checkpoints(tmp_path)[0] == path
        assert load_checkpoint(tmp_path) == {"step": step}
    assert names_in(tmp_path / "checkpoints") == ["00000100.pt", "00001000.pt"]


def test_a_checkpoint_comes_back_bit_for_bit(tmp_path: Path) -> None:
    """What optimizers keep: tensors of several kinds, tuples, numbers."""
    content = {
        "x": torch.randn(3, 4, generator=torch.Generator().manual_seed(0)),
        "low": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
        "count": torch.arange(5, dtype=torch.uint8),
        "betas": (0.9, 0.95),
        "nested": [{"a": 1, "b": None}, {"c": 0.1 + 0.2}],
    }
    save_checkpoint(tmp_path, 1, content)
    assert same(load_checkpoint(tmp_path), content)


def test_a_checkpoint_of_code_is_not_run(tmp_path: Path) -> None:
    """Loading only builds numbers: a pickled call is refused, as damage is."""
    save_checkpoint(tmp_path, 1, {"step": 1})
    save_checkpoint(tmp_path, 2, {"step": 2, "call": print})
    with pytest.warns(UserWarning, match=r"00000002.pt is damaged"):
        assert load_checkpoint(tmp_path) == {"step": 1}


def test_checkpoints_are_ordered_by_number_and_nothing_else_counts(tmp_path: Path) -> None:
    for step in (99_999_500, 99_999_750, 100_000_000):
        save_checkpoint(tmp_path, step, {"step": step})
    (tmp_path / "checkpoints" / "best.pt").write_bytes(b"mine")
    save_checkpoint(tmp_path, 100_000_250, {"step": 100_000_250})
    assert [path.name for path in checkpoints(tmp_path)] == ["100000250.pt", "100000000.pt"]
    assert load_checkpoint(tmp_path) == {"step": 100_000_250}
    assert (tmp_path / "checkpoints" / "best.pt").read_bytes() == b"mine"


def test_a_full_disk_is_an_error_of_the_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch reports it as a RuntimeError that does not say so."""

    def full(content: object, file: object) -> None:
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="is the disk full"):
        save_checkpoint(tmp_path, 1, {})
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_an_archive_that_torch_would_misread_is_damaged(tmp_path: Path) -> None:
    """An entry marked as a folder passes its checksum and would be read as whatever the memory held."""
    path = save_checkpoint(tmp_path, 1, {"w": torch.ones(1000)})
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        start = archive.start_dir
    name = content.index(b"data/0", start)
    entry = content.rindex(b"PK\x01\x02", start, name)
    content[entry + 38] = 0x10  # the external attributes say: a folder
    path.write_bytes(content)
    with pytest.warns(UserWarning, match="damaged"), pytest.raises(ValueError, match="every checkpoint"):
        load_checkpoint(tmp_path)


@pytest.mark.skipif(sys.platform == "win32", reason="no such locks there")
def test_two_processes_do_not_write_to_one_folder(tmp_path: Path) -> None:
    with only_writer(tmp_path), pytest.raises(ValueError, match="another process"), only_writer(tmp_path):
        pass
    with only_writer(tmp_path):
        pass


def test_a_file_system_without_locks_stops_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(handle: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr("minitrain.runtime.files.fcntl.flock", no_locks)
    with only_writer(tmp_path):
        pass


# --- exported weights -------------------------------------------------------------------------------------------------


def trained_gpt(**sizes: object) -> torch.nn.Module:
    """With other weights than a new model has, in every tensor."""
    model = tiny_gpt(**sizes)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(generator=generator)
    return model


@pytest.mark.parametrize("tied", [False, True])
def test_exported_weights_come_back_bit_for_bit(tied: bool, tmp_path: Path) -> None:
    model, other = trained_gpt(tied=tied), tiny_gpt(tied=tied)
    export_weights(model, tmp_path / "weights.safetensors")
    load_weights(other, tmp_path / "weights.safetensors")
    assert same(dict(other.state_dict()), dict(model.state_dict()))
    assert (other.head.weight is other.embedding.weight) == tied
    tokens = torch.arange(CONTEXT)[None]
    assert torch.equal(model(tokens), other(tokens))
    assert names_in(tmp_path) == ["weights.safetensors"]


def test_tied_weights_are_written_once(tmp_path: Path) -> None:
    for tied in (False, True):
        export_weights(trained_gpt(tied=tied), tmp_path / str(tied))
    saved = (tmp_path / "False").stat().st_size - (tmp_path / "True").stat().st_size
    assert saved >= tiny_gpt().head.weight.numel() * 4


def test_an_export_replaces_the_one_before(tmp_path: Path) -> None:
    for model in (tiny_gpt(), trained_gpt()):
        export_weights(model, tmp_path / "weights")
        loaded = tiny_gpt()
        load_weights(loaded, tmp_path / "weights")
        assert same(dict(loaded.state_dict()), dict(model.state_dict()))


SENTENCE = r"does not hold the weights of this model \(.+\); give the file of a matching run$"


@pytest.mark.parametrize("share", [0, 0.001, 0.1, 0.5, 0.999])
def test_a_cut_export_is_refused_with_a_sentence(share: float, tmp_path: Path) -> None:
    path = tmp_path / "weights"
    export_weights(trained_gpt(), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(ValueError, match=SENTENCE) as raised:
        load_weights(tiny_gpt(), path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("sizes", [{"width": 64}, {"tied": True}], ids=["wider", "tied"])
@pytest.mark.parametrize("reverse", [False, True])
def test_another_models_weights_are_refused_with_a_sentence(sizes: dict, reverse: bool, tmp_path: Path) -> None:
    models = [trained_gpt(), trained_gpt(**sizes)]
    written, read = models[::-1] if reverse else models
    export_weights(written, tmp_path / "weights")
    with pytest.raises(ValueError, match=SENTENCE) as raised:
        load_weights(read, tmp_path / "weights")
    assert "\n" not in str(raised.value)
