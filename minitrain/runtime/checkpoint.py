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


def save_checkpoint(folder: Path, step: int, content: dict[str, Any]) -> Path:
    """Writes the checkpoint of `step` into a run's folder and removes all but the newest two."""
    path = folder / "checkpoints" / f"{step:08}.pt"
    write_atomically(path, lambda file: torch.save(content, file))
    for old in checkpoints(folder)[KEPT:]:
        old.unlink(missing_ok=True)
    return path


def checkpoints(folder: Path) -> list[Path]:
    """A run's checkpoints, the newest first."""
    return sorted((folder / "checkpoints").glob("*.pt"), reverse=True)


def load_checkpoint(folder: Path) -> dict[str, Any]:
    """The newest checkpoint that is whole; each damaged one is reported by a warning and passed over.

    Raises `FileNotFoundError` where there is none, `ValueError` where all are damaged.
    """
    found = checkpoints(folder)
    if not found:
        raise FileNotFoundError(f"there is no checkpoint in {folder}; start this run again without --resume")
    for path in found:
        try:
            check_whole(path)
            return torch.load(path, map_location="cpu", weights_only=True)
        except (OSError, EOFError, RuntimeError, ValueError, KeyError, pickle.UnpicklingError, zipfile.BadZipFile):
            warnings.warn(f"checkpoint {path} is damaged; trying the one before it", stacklevel=2)
    raise ValueError(f"every checkpoint in {folder} is damaged; start this run again without --resume")


def check_whole(path: Path) -> None:
    """Raises `BadZipFile` where a byte of the archive is wrong; torch reads it without looking at the checksums."""
    with zipfile.ZipFile(path) as archive:
        broken = archive.testzip()
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
