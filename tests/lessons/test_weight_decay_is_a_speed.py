"""The lesson's twins at a tiny size, and that only the matrices inside the blocks are given other values."""

import pytest
import torch

from minitrain.lab.lessons import load_lesson

lesson = load_lesson("weight_decay_is_a_speed")
SMALL = {"steps": 10, "twin_steps": 6, "seeds": 2, "depth": 1, "width": 32, "context": 16, "batch_size": 64}
ARMS = lesson.experiment(**SMALL)["arms"]


@pytest.mark.parametrize("name", lesson.TWINS)
def test_twins_are_told_from_those_that_are_none(name: str):
    (line,) = ARMS[name](seed=1000)
    nothing = {"losses": 0, "logits": 0, "weights": 0}
    assert (line["differing"] == nothing) == name.startswith("twins")
    assert (lesson.differing([line]) == 0) == name.startswith("twins")
    assert (line["largest_gap"] == 0) == name.startswith("twins")


def test_only_the_matrices_are_changed():
    recipe = ARMS["AdamW"]
    torch.manual_seed(0)
    model = recipe.build_model()
    torch.manual_seed(0)
    twice = lesson.longer(recipe.build_model, times=2.0)
    for (name, p), q in zip(model.named_parameters(), twice.parameters(), strict=True):
        is_matrix = name.startswith("blocks.") and p.ndim == 2
        assert torch.equal(q, 2 * p if is_matrix else p), name
    groups = lesson.matrices_apart(model, lr=0.1, weight_decay=0.2, eps=None)
    assert {group["name"]: (group.get("lr"), group.get("weight_decay")) for group in groups} == {
        "matrices": (0.1, 0.2),
        "embeddings": (None, 0.0),
        "head": (None, 0.0),
        "gains": (None, 0.0),
    }


def test_the_neurons_of_three_weights_are_twins():
    a = lesson.one_neuron(lr=0.1, weight_decay=0.5, start=1, steps=50)
    b = lesson.one_neuron(lr=1.6, weight_decay=0.03125, start=4, steps=50)
    assert b == [(answer, 4 * norm) for answer, norm in a]
    assert a[-1][0] == pytest.approx(1.0, abs=1e-3)
    assert a != lesson.one_neuron(lr=0.1, weight_decay=0.25, start=1, steps=50)


def test_a_fall_compares_before_and_after():
    lines = [{"step": step, "x": 1.0 if step <= 200 else 0.25} for step in range(20, 601, 20)]
    assert lesson.fall("x")(lines) == 0.25
