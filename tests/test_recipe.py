"""A recipe is a value: its text, its differences, what it refuses; and every parameter has exactly one owner."""

import json
from collections.abc import Callable
from dataclasses import FrozenInstanceError, fields, replace
from functools import partial
from typing import Any

import jaxtyping
import pytest
import torch
import torch.nn.functional as F
from small import assert_one_sentence, every_pair, in_own_process
from torch import Tensor, nn

from minitrain.cli.commands import table_of_groups
from minitrain.data.text import Text, standard_library
from minitrain.gpt import GPT, MLP, LayerNorm, RMSNormWithoutGain, SwiGLU, nanogpt_style, relu_squared
from minitrain.optim import AdamW
from minitrain.recipe import Recipe, by_kind, check_ownership, cross_entropy, describe, difference
from minitrain.schedules import warmup_stable_decay

BASE = Recipe(
    build_model=partial(GPT, depth=1, mlp=partial(MLP, activation=relu_squared)),
    data=partial(standard_library, context=8),
    steps=10,
    batch_size=64,
    make_optimizer=partial(AdamW, lr=1e-3, betas=(0.9, 0.95)),
    schedules={("*", "lr"): partial(warmup_stable_decay, steps=10)},
)


def other_loss(model: Callable[[Tensor], Tensor], inputs: Tensor, targets: Tensor) -> Tensor:
    return 2 * cross_entropy(model, inputs, targets)


def other_groups(model: nn.Module) -> list[dict[str, Any]]:
    return [{"name": "all", "params": list(model.parameters())}]


def other_data() -> Text:
    return Text(bytes(1000), context=8)


class Hook:
    """Does nothing, has a name."""

    def __init__(self, strength: float = 1.0):
        self.strength = strength

    def __call__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        pass

    def method(self) -> nn.Module:
        return GPT(depth=1)


def options(model: nn.Module, limits: dict[str, float] | None = None) -> list[dict[str, Any]]:
    return other_groups(model)


@pytest.fixture
def without_type_checks(monkeypatch: pytest.MonkeyPatch):
    """As outside this suite, where nothing stands before the library's own checks."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


# --- text and difference ----------------------------------------------------------------------------------------------


def test_the_text_names_every_value():
    assert describe(BASE) == {
        "build_model": "minitrain.gpt.GPT",
        "build_model.depth": "1",
        "build_model.mlp": "minitrain.gpt.MLP",
        "build_model.mlp.activation": "minitrain.gpt.relu_squared",
        "data": "minitrain.data.text.standard_library",
        "data.context": "8",
        "steps": "10",
        "batch_size": "64",
        "micro_batch_size": "None",
        "loss": "minitrain.recipe.cross_entropy",
        "param_groups": "minitrain.recipe.by_kind",
        "make_optimizer": "minitrain.optim.AdamW",
        "make_optimizer.lr": "0.001",
        "make_optimizer.betas": "(0.9, 0.95)",
        "schedules.*.lr": "minitrain.schedules.warmup_stable_decay",
        "schedules.*.lr.steps": "10",
        "before_step": "()",
        "after_step": "()",
        "precision": "'fp32'",
        "seed": "0",
    }
    assert str(BASE).splitlines() == [f"{path}: {text}" for path, text in describe(BASE).items()]


THIS = __name__
CHANGES = {
    "build_model": (
        partial(GPT, depth=2, mlp=partial(MLP, activation=relu_squared)),
        {"build_model.depth": ("1", "2")},
    ),
    "data": (
        other_data,
        {"data": ("minitrain.data.text.standard_library", f"{THIS}.other_data"), "data.context": ("8", None)},
    ),
    "steps": (11, {"steps": ("10", "11")}),
    "batch_size": (128, {"batch_size": ("64", "128")}),
    "micro_batch_size": (32, {"micro_batch_size": ("None", "32")}),
    "loss": (other_loss, {"loss": ("minitrain.recipe.cross_entropy", f"{THIS}.other_loss")}),
    "param_groups": (other_groups, {"param_groups": ("minitrain.recipe.by_kind", f"{THIS}.other_groups")}),
    "make_optimizer": (
        partial(AdamW, lr=2e-3, betas=(0.9, 0.99)),
        {"make_optimizer.lr": ("0.001", "0.002"), "make_optimizer.betas": ("(0.9, 0.95)", "(0.9, 0.99)")},
    ),
    "schedules": (
        {("*", "lr"): partial(warmup_stable_decay, steps=10, warmup=2)},
        {"schedules.*.lr.warmup": (None, "2")},
    ),
    "before_step": (
        (Hook, partial(Hook, 0.5)),
        {
            "before_step": ("()", None),
            "before_step.0": (None, f"{THIS}.Hook"),
            "before_step.1": (None, f"{THIS}.Hook"),
            "before_step.1.0": (None, "0.5"),
        },
    ),
    "after_step": ((Hook,), {"after_step": ("()", None), "after_step.0": (None, f"{THIS}.Hook")}),
    "precision": ("bf16", {"precision": ("'fp32'", "'bf16'")}),
    "seed": (1, {"seed": ("0", "1")}),
}


def test_the_table_of_changes_covers_every_field():
    assert CHANGES.keys() == {f.name for f in fields(Recipe)}


@pytest.mark.parametrize("name", CHANGES)
def test_changing_one_field_is_exactly_that_difference(name: str):
    value, expected = CHANGES[name]
    changed = replace(BASE, **{name: value})
    assert difference(BASE, changed) == expected
    assert difference(changed, BASE) == {path: (new, old) for path, (old, new) in expected.items()}


def test_an_argument_deep_inside_is_named_by_its_path_and_one_written_again_does_not_differ():
    other, again = (
        replace(BASE, build_model=partial(GPT, depth=1, mlp=partial(MLP, activation=f))) for f in (F.gelu, relu_squared)
    )
    path = "build_model.mlp.activation"
    assert difference(BASE, other) == {path: ("minitrain.gpt.relu_squared", "torch._C._nn.gelu")}
    assert difference(BASE, again) == {}


def test_stored_texts_can_be_compared_with_recipes():
    stored = json.loads(json.dumps(describe(BASE)))
    assert difference(stored, replace(BASE, seed=3)) == {"seed": ("0", "3")}
    assert difference(BASE, stored) == {}


def test_an_empty_argument_differs_from_none_at_all():
    given = replace(BASE, param_groups=partial(options, limits={}))
    assert difference(replace(BASE, param_groups=options), given)


def print_base() -> None:
    print(BASE)


def test_the_text_is_the_same_in_another_process():
    assert in_own_process("print_base()", module=__name__).splitlines() == str(BASE).splitlines()


# --- what a recipe refuses --------------------------------------------------------------------------------------------


def local_function() -> Callable:
    def inside() -> nn.Module:
        return GPT(depth=1)

    return inside


PLACES = {
    "build_model": lambda x: {"build_model": x},
    "make_optimizer.lr": lambda x: {"make_optimizer": partial(AdamW, lr=x)},
    "build_model.mlp.activation": lambda x: {"build_model": partial(GPT, mlp=partial(MLP, activation=x))},
    "build_model.mlp": lambda x: {"build_model": partial(GPT, mlp=partial(x, activation=F.relu))},
    "schedules.*.lr": lambda x: {"schedules": {("*", "lr"): x}},
    "after_step.1": lambda x: {"after_step": (Hook, x)},
}


def assert_refused(path: str, nameless: Any) -> None:
    with pytest.raises(TypeError, match="no stable name") as caught:
        replace(BASE, **PLACES[path](nameless))
    assert str(caught.value).startswith(f"{path} is ")
    assert_one_sentence(caught.value, "module-level function")


@pytest.mark.usefixtures("without_type_checks")
@pytest.mark.parametrize("path", PLACES)
def test_what_has_no_stable_name_is_refused_by_its_path(path: str):
    for nameless in (lambda *_: None, local_function(), Hook()):
        assert_refused(path, nameless)


@pytest.mark.usefixtures("without_type_checks")
def test_a_method_bound_to_an_object_or_without_a_module_is_refused():
    """The name of a bound one says nothing of the object it works on."""
    for method in (Hook(0.5).method, [1, 2].count):
        assert_refused("build_model", method)
    assert_refused("build_model.mlp.activation", torch.Tensor.relu)


def test_what_has_a_name_is_accepted():
    for named in (F.gelu, F.silu, torch.tanh, torch.relu, MLP, nn.GELU, Hook.method, abs):
        assert describe(named, "it")["it"].endswith(f".{named.__qualname__}")


NO_SIZES = [0, -1, 8.0, 0.5, True, "8", float("nan")]


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        ("steps", [*NO_SIZES, None], "must be a whole number of at least 1"),
        ("batch_size", [*NO_SIZES, None], "must be a whole number of at least 1"),
        ("micro_batch_size", NO_SIZES, "must be a whole number of at least 1"),
        ("micro_batch_size", [3, 48, 128], "must divide"),
        ("seed", [-1, 1.0, True, "0", None], "must be a whole number"),
        ("precision", ["fp16", "BF16", "", None], "must be 'fp32' or 'bf16'"),
    ],
)
@pytest.mark.usefixtures("without_type_checks")
def test_a_value_that_cannot_be_is_refused_by_name(name: str, values: list, words: str):
    for value in values:
        with pytest.raises(ValueError, match=words) as caught:
            replace(BASE, **{name: value})
        assert_one_sentence(caught.value, name, repr(value))


def test_a_recipe_is_frozen():
    with pytest.raises(FrozenInstanceError):
        BASE.steps = 11


# --- the loss ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3, 7, 5), (3, 5)], ids=["tokens", "images"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_cross_entropy_is_minus_the_mean_log_probability(shape: tuple[int, ...], dtype: torch.dtype):
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(shape, generator=random).to(dtype)
    targets = torch.randint(5, shape[:-1], generator=random)
    by_hand = -(logits.double().softmax(-1).gather(-1, targets[..., None])).log().mean()
    loss = cross_entropy(lambda inputs: logits, torch.zeros(3), targets)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(by_hand.item(), rel=1e-5)


# --- groups -----------------------------------------------------------------------------------------------------------


def names_in(model: nn.Module, groups: list[dict[str, Any]]) -> dict[str, list[str]]:
    """Group name to the names of its parameters."""
    names = {p: name for name, p in model.named_parameters()}
    return {group["name"]: [names[p] for p in group["params"]] for group in groups}


GPTS = every_pair(
    [nn.RMSNorm, LayerNorm], [RMSNormWithoutGain, LayerNorm, nn.Identity], [MLP, SwiGLU], [False, True], [False, True]
)


@pytest.mark.parametrize(("norm", "qk_norm", "mlp", "learned", "tied"), GPTS)
def test_every_parameter_of_every_gpt_is_in_the_group_of_its_kind(norm, qk_norm, mlp, learned: bool, tied: bool):
    model = GPT(16, depth=2, width=16, norm=norm, qk_norm=qk_norm, mlp=mlp, learned_positions=learned, tied=tied)
    groups = by_kind(model)
    check_ownership(model, groups)
    expected: dict[str, list[str]] = {"matrices": [], "embeddings": [], "head": [], "gains": []}
    for name, _ in model.named_parameters():
        if name.startswith(("embedding", "positions")):
            expected["embeddings"].append(name)
        elif name.startswith("head"):
            expected["head"].append(name)
        else:
            expected["gains" if "norm" in name else "matrices"].append(name)
    assert names_in(model, groups) == {kind: names for kind, names in expected.items() if names}
    assert bool(expected["head"]) is not tied


def test_only_matrices_decay():
    groups = by_kind(nanogpt_style(depth=1)) + by_kind(GPT(depth=1))
    decays = {(group["name"], group.get("weight_decay", "the optimizer's")) for group in groups}
    assert decays == {("matrices", "the optimizer's"), ("embeddings", 0.0), ("head", 0.0), ("gains", 0.0)}


class HeadFirst(nn.Module):
    """The tied head is registered before the embedding."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 9, bias=False)
        self.embedding = nn.Embedding(9, 4)
        self.embedding.weight = self.head.weight


@pytest.mark.parametrize("model", [GPT(16, depth=1, tied=True), HeadFirst()], ids=["embedding first", "head first"])
def test_a_tied_head_is_an_embedding(model: nn.Module):
    groups = {group["name"]: group["params"] for group in by_kind(model)}
    assert "head" not in groups
    assert groups["embeddings"][0] is model.head.weight


def test_frozen_parameters_are_left_out():
    model = GPT(16, depth=1)
    model.embedding.weight.requires_grad_(False)
    groups = by_kind(model)
    check_ownership(model, groups)
    assert [group["name"] for group in groups] == ["matrices", "head", "gains"]


class Convolutions(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 10)


def test_kernels_are_matrices_and_biases_are_gains():
    model = Convolutions()
    assert names_in(model, by_kind(model)) == {
        "matrices": ["stem.weight"],
        "head": ["head.weight", "head.bias"],
        "gains": ["stem.bias", "norm.weight", "norm.bias"],
    }


# --- ownership --------------------------------------------------------------------------------------------------------


def two_layers() -> tuple[nn.Module, list[dict[str, Any]]]:
    """A model and groups that own it: the first layer in `a`, the second in `b`."""
    model = nn.Sequential(nn.Linear(2, 3, bias=False), nn.Linear(3, 4, bias=False))
    return model, [{"name": "a", "params": [model[0].weight]}, {"name": "b", "params": [model[1].weight]}]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda model, groups: groups.pop(), ["1.weight", "no group", "exactly one group"]),
        (lambda model, groups: groups[1]["params"].append(model[0].weight), ["0.weight", "a and b"]),
        (lambda model, groups: groups[1]["params"].append(model[1].weight), ["1.weight", "b and b"]),
        (
            lambda model, groups: groups[1]["params"].append(nn.Parameter(torch.zeros(3))),
            ["group b", "not a parameter"],
        ),
        (lambda model, groups: groups.append({"params": groups[0]["params"]}), ["a and group 2"]),
    ],
    ids=["no group", "two groups", "twice in one", "foreign", "without a name"],
)
def test_what_is_not_owned_once_is_named_with_its_groups(change: Callable, words: list[str]):
    model, groups = two_layers()
    change(model, groups)
    with pytest.raises(ValueError, match="group") as caught:
        check_ownership(model, groups)
    assert_one_sentence(caught.value, *words)


def test_frozen_parameters_may_be_in_a_group_or_not_and_a_shared_one_is_owned_once():
    model, groups = two_layers()
    model[1].weight.requires_grad_(False)
    check_ownership(model, groups)
    check_ownership(model, groups[:1])
    model[1] = model[0]
    check_ownership(model, groups[:1])


def test_checking_does_not_use_up_a_generator_of_parameters():
    """`model.parameters()` is one; once read it is empty, and an optimizer made of it would train nothing."""
    model, _ = two_layers()
    groups = [{"name": "all", "params": model.parameters()}]
    check_ownership(model, groups)
    assert len(torch.optim.SGD(groups, lr=0.1).param_groups[0]["params"]) == 2


def test_the_table_shows_every_group_with_its_sizes():
    _, groups = two_layers()
    groups[1] |= {"lr": 0.02, "weight_decay": 0.0}
    del groups[1]["name"]
    optimizer = torch.optim.AdamW(groups, lr=0.001, weight_decay=0.1)
    header, *lines = table_of_groups(optimizer).splitlines()
    assert header.split() == ["group", "tensors", "parameters", "lr", "decay"]
    assert [line.rsplit(maxsplit=4) for line in lines] == [
        ["a", "1", "6", "0.001", "0.1"],
        ["group 1", "1", "12", "0.02", "0"],
    ]


def test_the_table_of_a_gpt_counts_all_of_its_parameters():
    model = GPT(depth=1)
    lines = table_of_groups(AdamW(by_kind(model))).splitlines()[1:]
    assert [line.split()[0] for line in lines] == ["matrices", "embeddings", "head", "gains"]
    total = sum(int(line.split()[2].replace(",", "")) for line in lines)
    assert total == sum(p.numel() for p in model.parameters())
