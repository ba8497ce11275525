"""Checkpoints: everything the next step depends on, so that a resumed run is bit for bit the uninterrupted one on a CPU.

A run's folder keeps the newest two, `checkpoints/00000250.pt`, each written whole or not at all and readable without
running code (`weights_only=True`). Plain weights are exported as safetensors.
"""

import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

from minitrain.runtime.files import write_atomically

KEPT = 2
UNREADABLE = (
    OSError, EOFError, RuntimeError, ValueError, LookupError, AttributeError, TypeError,
    pickle.UnpicklingError, zipfile.BadZipFile,
)  # fmt: skip


def save_checkpoint(folder: Path, step: int, content: dict[str, Any]) -> Path:
    """Writes the checkpoint of `step` into a run's folder and removes all but the newest two."""
    path = folder / "checkpoints" / f"{step:08}.pt"
    try:
        write_atomically(path, lambda file: torch.save(content, file))
    except RuntimeError as error:  # torch hides why writing failed
        raise OSError(f"could not write {path}; is the disk full?") from error
    for old in checkpoints(folder)[KEPT:]:
        old.unlink(missing_ok=True)
    return path


def checkpoints(folder: Path) -> list[Path]:
    """A run's checkpoints, the newest first."""
    numbered = (path for path in (folder / "checkpoints").glob("*.pt") if path.stem.isdigit())
    return sorted(numbered, key=lambda path: int(path.stem), reverse=True)


def load_checkpoint(folder: Path) -> dict[str, Any]:
    """The newest checkpoint that is whole; each damaged one is reported by a warning and passed over.

    Raises `FileNotFoundError` where there is none, `ValueError` where all are damaged.
    """
    found = checkpoints(folder)
    if not found:
        raise FileNotFoundError(f"there is no checkpoint in {folder}; start a new run")
    for path in found:
        try:
            check_whole(path)
            return torch.load(path, map_location="cpu", weights_only=True)
        except UNREADABLE:
            warnings.warn(f"checkpoint {path} is damaged; trying the one before it", stacklevel=2)
    raise ValueError(f"every checkpoint in {folder} is damaged; start a new run in another folder")


def load_model(model: nn.Module, content: dict[str, Any]) -> None:
    """Puts a checkpoint's weights into a model. Raises `ValueError` where they are another model's."""
    try:
        model.load_state_dict(content["model"])
    except (KeyError, TypeError, RuntimeError) as error:
        first = str(error).splitlines()[-1].strip()
        raise ValueError(
            f"the checkpoint holds another model's weights ({first}); give the folder of a matching run"
        ) from None


def check_whole(path: Path) -> None:
    """Raises `BadZipFile` where a byte of the archive is wrong; torch reads it without looking at the checksums."""
    with zipfile.ZipFile(path) as archive:
        broken = archive.testzip()
        for entry in archive.infolist():  # torch stores plainly; an entry that looks otherwise would be read as garbage
            if entry.external_attr or entry.compress_type or entry.file_size != entry.compress_size:
                broken = entry.filename
    if broken is not None:
        raise zipfile.BadZipFile(f"wrong checksum of {broken}")


def export_weights(model: nn.Module, path: Path | str) -> None:
    """Writes the model's plain weights as safetensors, tied tensors once."""
    named = dict(model.named_parameters()) | dict(model.named_buffers())
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items() if name in named}
    write_atomically(Path(path), lambda file: file.write(safetensors.torch.save(weights)))


def load_weights(model: nn.Module, path: Path | str) -> None:
    """Reads weights written by `export_weights` into a model of the same shape.

    Raises `ValueError` for a damaged file or another model's weights.
    """
    try:
        safetensors.torch.load_model(model, str(path))
    except (RuntimeError, safetensors.SafetensorError) as error:
        first = str(error).splitlines()[0]
        raise ValueError(
            f"{path} does not hold the weights of this model ({first}); give the file of a matching run"
        ) from None
