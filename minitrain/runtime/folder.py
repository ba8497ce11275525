"""The folder of a run: what is written into it, and how a stopped run is taken up again.

recipe.txt          the recipe and what else the last bits depend on, one value per line
metrics.jsonl       one line per logged step; free of times, so that a resumed run writes the same file
checkpoints/        the newest two

The command adds `options.json`, and at the end `model.safetensors` and `picture.png`.
"""

import json
import math
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from minitrain.recipe import describe, difference
from minitrain.runtime.checkpoint import checkpoints, load_checkpoint, load_model, save_checkpoint
from minitrain.runtime.files import append_line, write_text

if TYPE_CHECKING:
    from minitrain.train import Run

CONTENTS = {"recipe", "data", "environment", "step", "model", "optimizer", "hooks", "losses", "metrics", "random"}


def start_or_resume(run: "Run", folder: Path | str | None, resume: bool) -> None:
    """Starts a run's folder, or takes up the run that it holds; a run killed before its first checkpoint starts anew.

    Raises `FileExistsError` where a new run would overwrite an old one, `FileNotFoundError` where there is none to resume,
    and what `restore` raises.
    """
    if folder is None:
        return
    run.folder = Path(folder)
    metrics = run.folder / "metrics.jsonl"
    if resume and not (metrics.exists() or checkpoints(run.folder)):
        raise FileNotFoundError(
            f"{folder} holds no run to resume; check the path, or start a run there without --resume"
        )
    if not resume:
        refuse_to_overwrite(run.folder)
    remove_leftovers(run.folder)
    kept = ""
    if resume and checkpoints(run.folder):
        saved = load_checkpoint(run.folder)
        try:
            restore(run, saved)
            kept = saved["metrics"]
            run.metrics = [json.loads(line) for line in kept.splitlines()]
        except (LookupError, TypeError, AttributeError, RuntimeError) as error:
            # its bytes are whole, so somebody wrote it so
            raise ValueError(
                f"the checkpoint in {folder} is not as a run wrote it ({error!r}); start a new run in another folder"
            ) from error
    write_text(metrics, kept)  # the steps after the checkpoint will be taken again
    facts = {**describe(run.recipe), "data digest": run.data.digest, **environment(run)}
    write_text(run.folder / "recipe.txt", "".join(f"{name}: {text}\n" for name, text in facts.items()))


def refuse_to_overwrite(folder: Path) -> None:
    """Raises `FileExistsError` where a folder already holds a run."""
    if (folder / "metrics.jsonl").exists() or checkpoints(folder):
        raise FileExistsError(f"{folder} already holds a run; go on with it by --resume, or choose another folder")


def log(run: "Run", metrics: dict[str, Any]) -> None:
    """Keeps a line of metrics, and writes it where the run has a folder."""
    run.metrics.append(or_null({"step": run.step, **metrics}))
    if run.folder:
        append_line(run.folder / "metrics.jsonl", json.dumps(run.metrics[-1]))


def or_null(value: Any) -> Any:
    """The same with None for NaN and infinity, which JSON has no words for."""
    if isinstance(value, dict):
        return {key: or_null(x) for key, x in value.items()}
    if isinstance(value, list):
        return [or_null(x) for x in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def remove_leftovers(folder: Path) -> None:
    """Removes what a killed run was writing."""
    ours = ".*.[0-9]*.tmp"  # as `write_atomically` names them, by the process
    for temporary in (*folder.glob(ours), *(folder / "checkpoints").glob(ours)):
        temporary.unlink(missing_ok=True)


def save(run: "Run") -> None:
    """Writes a checkpoint of a run that has a folder, once its numbers are known to be numbers."""
    if run.folder is None:
        return
    check_losses(run, 0)
    if not all(p.isfinite().all() for p in run.model.parameters()):
        raise FloatingPointError(
            f"a weight is no longer a number after step {run.step}; lower lr or warm up for longer"
        )
    content = {
        "recipe": describe(run.recipe),
        "data": run.data.digest,
        "environment": environment(run),
        "step": run.step,
        "model": run.model.state_dict(),
        "optimizer": run.optimizer.state_dict(),
        "hooks": [
            hook.state_dict() if hasattr(hook, "state_dict") else {} for hook in run.before_step + run.after_step
        ],
        "losses": run.losses,
        "metrics": "".join(json.dumps(line) + "\n" for line in run.metrics),
        "random": random_state(run.device),
    }
    save_checkpoint(run.folder, run.step, content)


def restore(run: "Run", saved: dict[str, Any]) -> None:
    """Puts a checkpoint's content into a freshly built run.

    Raises `ValueError` naming the first difference where the checkpoint is of another recipe or other data. Another
    device, precision, thread count or torch version is allowed, with a warning that the bits will differ.
    """
    if not saved.keys() >= CONTENTS:
        raise ValueError("the checkpoint was not written by a run of this kind; give the folder of one that was")
    changed = difference(saved["recipe"], run.recipe)
    for name in ("precision", "data.path"):  # told of below; decided by the digest
        changed.pop(name, None)
    if changed:
        (path, (old, new)), more = next(iter(changed.items())), len(changed) - 1
        others = f" (and {more} more)" if more else ""
        raise ValueError(
            f"the checkpoint is of another run: {path} was {old} and is now {new}{others}; make them equal"
        )
    if saved["data"] != run.data.digest:
        raise ValueError("the data are not those the checkpoint was trained on; give the same text, or start a new run")
    for name, value in environment(run).items():
        was = saved["environment"].get(name)
        if was != value:
            warnings.warn(f"{name} was {was} and is now {value}: the run goes on, but not bit for bit", stacklevel=3)
    if saved["step"] not in range(run.recipe.steps + 1):
        raise ValueError(f"the checkpoint is of step {saved['step']}, which this run does not have; start a new one")
    load_model(run.model, saved)
    run.optimizer.load_state_dict(saved["optimizer"])
    for hook, state in zip(run.before_step + run.after_step, saved["hooks"], strict=True):
        if state:
            hook.load_state_dict(state)
    run.losses.copy_(saved["losses"])
    run.step = saved["step"]
    set_random_state(saved["random"], run.device)


def check_losses(run: "Run", first: int) -> None:
    """Raises `FloatingPointError` naming the step, from `first` on, at which the loss stopped being a number."""
    bad = ~run.losses[first : run.step].isfinite()
    if bad.any():
        step = first + int(bad.int().argmax())
        raise FloatingPointError(
            f"the loss is {run.losses[step].item()} at step {step}; lower lr or warm up for longer"
        )


def environment(run: "Run") -> dict[str, str]:
    """What the last bits of a result depend on beside the recipe."""
    return {
        "device": run.device.type,
        "precision": run.recipe.precision,
        "threads": str(torch.get_num_threads()),
        "torch": str(torch.__version__),
        "float32 products": torch.get_float32_matmul_precision(),
    }


def random_state(device: torch.device) -> dict[str, torch.Tensor]:
    """The states of torch's default generators that a run draws from."""
    state = {"cpu": torch.get_rng_state()}
    if device.type != "cpu":
        state[device.type] = torch.get_device_module(device).get_rng_state()
    return state


def set_random_state(state: dict[str, torch.Tensor], device: torch.device) -> None:
    """The reverse of `random_state`; a state of another device is left out."""
    torch.set_rng_state(state["cpu"])
    if device.type in state and device.type != "cpu":
        torch.get_device_module(device).set_rng_state(state[device.type])
