"""A small ResNet on real photographs: a part of CIFAR-10, with batch norm, with ghost noise on top, and with layer norm.

    python benchmarks/cifar.py [FILE.npz]      # without a file, CIFAR-10 is downloaded

Takes the first 5,000 training and 1,000 test images (of a file, as `own_images` reads it; of a download, in its order) and
writes docs/results/cifar.json. One thread for each of two workers; what was run before is taken from the cache.
"""

import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

from torch import nn

from minitrain.data.download import cifar10
from minitrain.data.images import own_images
from minitrain.lab.accuracy import Accuracy
from minitrain.lab.claims import Claim, said
from minitrain.lab.compare import Metrics, compare, difference, final
from minitrain.lab.records import make_record, table, write_record
from minitrain.optim import SGD
from minitrain.recipe import Recipe
from minitrain.resnet import cifar_resnet, layer_norm
from minitrain.schedules import linear, warmup_stable_decay
from minitrain.techniques.ghost_noise import noisy_batch_norm, noisy_layer_norm

ROOT = Path(__file__).parents[1]
STEPS, SEEDS = 600, 5
BATCH, NOISE, LAYER, LAYER_NOISE = "batch norm", "batch norm, noise 16", "layer norm", "layer norm, noise 16"


def accuracy(metrics: Metrics) -> float:
    """Test images that are named rightly at the end, in percent."""
    return 100 * final("val_accuracy")(metrics)


def gap(metrics: Metrics) -> float:
    """How many more of 1,000 training images are, in points."""
    return 100 * final("train_accuracy")(metrics) - accuracy(metrics)


# Fixed before the runs were made: what the lesson on ghost noise asks, on photographs.
CLAIMS = [
    Claim("noise", "Ghost noise of 16 names more test images rightly than batch norm alone",
          lambda runs: difference(runs, NOISE, BATCH, accuracy), above=0.0, unit="points", arms=(NOISE, BATCH)),
    Claim("noise-gap", "It narrows the gap between training and test images",
          lambda runs: difference(runs, NOISE, BATCH, gap), below=0.0, unit="points", arms=(NOISE, BATCH)),
    Claim("layer-noise", "Ghost noise of 16 names more test images rightly than layer norm alone",
          lambda runs: difference(runs, LAYER_NOISE, LAYER, accuracy), above=0.0, unit="points", arms=(LAYER_NOISE, LAYER)),
    Claim("batch-norm", "Batch norm names more test images rightly than layer norm",
          lambda runs: difference(runs, BATCH, LAYER, accuracy), above=0.0, unit="points", arms=(BATCH, LAYER)),
]  # fmt: skip


def main() -> None:
    """Runs, prints, and writes the record."""
    first = {"held_out": "test", "limit": 5000, "held_out_limit": 1000}
    base = Recipe(
        build_model=partial(cifar_resnet, depth=8, norm=nn.BatchNorm2d),
        data=partial(own_images, path=sys.argv[1], **first) if len(sys.argv) > 1 else partial(cifar10, **first),
        steps=STEPS,
        batch_size=64,
        make_optimizer=partial(SGD, lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4),
        schedules={("*", "lr"): partial(warmup_stable_decay, steps=STEPS, warmup=60, cooldown=300, shape=linear)},
        precision="bf16",
    )
    norms = {
        BATCH: nn.BatchNorm2d,
        NOISE: partial(noisy_batch_norm, ghost_batch_size=16),
        LAYER: layer_norm,
        LAYER_NOISE: partial(noisy_layer_norm, ghost_batch_size=16),
    }
    arms = {name: replace(base, build_model=partial(cifar_resnet, depth=8, norm=norm)) for name, norm in norms.items()}
    probe = partial(Accuracy, every=STEPS, seen=1000)
    runs = compare(arms, seeds=range(101, 101 + SEEDS), probes=[probe], evaluate_every=STEPS, progress=True)
    record = make_record("cifar", "record", runs, {"test images, %": accuracy, "gap to training, points": gap}, CLAIMS)
    record["command"] = "python benchmarks/cifar.py [FILE.npz]"
    text = json.dumps(record)  # where the file lies is nobody's business; its digest says which data these were
    record = json.loads(text.replace(json.dumps(sys.argv[1])[1:-1], "FILE.npz")) if len(sys.argv) > 1 else record
    print(table(record))
    print("\n".join(map(said, record["claims"])))
    write_record(ROOT / "docs" / "results" / "cifar.json", record)


if __name__ == "__main__":
    main()
