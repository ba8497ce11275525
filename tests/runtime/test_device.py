"""Device and precision are chosen with a reason or refused with one, and nothing is set by an import."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

import minitrain
from minitrain.runtime.device import autocast, choose_device, choose_precision, move, products_are_exact, use_fast_cpu


@pytest.fixture(autouse=True)
def settings() -> Iterator[None]:
    """Puts back what `use_fast_cpu` sets."""
    threads, products = torch.get_num_threads(), torch.get_float32_matmul_precision()
    yield
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision(products)


# --- device -----------------------------------------------------------------------------------------------------------


def test_the_device_asked_for_is_taken() -> None:
    assert choose_device("cpu") == ("cpu", "you asked for it")


def test_without_an_accelerator_auto_is_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert choose_device() == choose_device("auto") == ("cpu", "no accelerator is available")


def test_an_accelerator_goes_before_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("mps"))
    assert choose_device() == ("mps", "mps is available")


# All kinds that torch has a name for, and words that are none.
KINDS = [
    "cuda",
    "cuda:99",
    "mps",
    "xpu",
    "hpu",
    "mtia",
    "xla",
    "ipu",
    "vulkan",
    "meta",
    "lazy",
    "mkldnn",
    "maia",
    "fpga",
]
WORDS = ["gpu", "CPU", "", "cpu:x", "cuda:-1"]


def lacks(device: str) -> bool:
    try:
        return torch.zeros(1, device=device).sum().item() != 0
    except Exception:
        return True


@pytest.mark.parametrize("device", KINDS + WORDS)
def test_a_device_that_is_not_here_is_refused_with_a_sentence(device: str) -> None:
    if not lacks(device):
        pytest.skip(f"{device} is here")
    with pytest.raises(ValueError, match=f"device '{device}' is not available here; use 'auto' or 'cpu'"):
        choose_device(device)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
def test_moving_to_where_it_is_changes_nothing(dtype: torch.dtype) -> None:
    x = torch.arange(6).to(dtype)
    assert torch.equal(move(x, torch.device("cpu")), x)


# --- precision --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("asked", ["fp32", "bf16"])
@pytest.mark.parametrize("device", ["cpu", "cuda", "mps"])
def test_the_precision_asked_for_is_taken(device: str, asked: str) -> None:
    assert choose_precision(device, asked) == (asked, "you asked for it")


@pytest.mark.parametrize("asked", ["fp16", "float32", "", "BF16"])
def test_an_unknown_precision_is_refused(asked: str) -> None:
    with pytest.raises(ValueError, match=f"precision must be 'auto', 'fp32' or 'bf16', not '{asked}'"):
        choose_precision("cpu", asked)


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({}, ("fp32", "this CPU has no fast bf16")),
        ({"avx512_bf16": False, "amx_bf16": False, "avx2": True}, ("fp32", "this CPU has no fast bf16")),
        ({"avx512_bf16": True}, ("bf16", "this CPU has avx512_bf16")),
        ({"amx_bf16": True}, ("bf16", "this CPU has amx_bf16")),
    ],
)
def test_a_cpu_computes_in_bf16_where_it_has_instructions_for_it(
    capabilities: dict, expected: tuple, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert choose_precision("cpu") == expected


@pytest.mark.parametrize(
    ("fast", "expected"),
    [(True, ("bf16", "this GPU multiplies it natively")), (False, ("fp32", "this GPU has no fast bf16"))],
)
def test_a_gpu_computes_in_bf16_where_it_does_not_have_to_emulate_it(
    fast: bool, expected: tuple, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: fast or including_emulation)
    assert choose_precision("cuda") == choose_precision("cuda:1") == expected


def test_elsewhere_nothing_is_assumed() -> None:
    assert choose_precision("mps") == ("fp32", "bf16 was not tried on mps")


def test_bf16_is_for_the_products_and_fp32_leaves_them_alone() -> None:
    w, cpu = torch.ones(2, 2), torch.device("cpu")
    with autocast(cpu, "bf16"):
        assert (w @ w).dtype == torch.bfloat16
    assert isinstance(autocast(cpu, "fp32"), nullcontext)
    assert w.dtype == torch.float32


# --- settings of the process ------------------------------------------------------------------------------------------


def test_products_are_exact_at_the_highest_precision() -> None:
    torch.set_float32_matmul_precision("highest")
    assert products_are_exact()


def test_products_rounded_to_bf16_are_not_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = torch.Tensor.__matmul__

    def rounded(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return plain(a.bfloat16().to(a.dtype), b.bfloat16().to(b.dtype)) if a.dtype == torch.float32 else plain(a, b)

    monkeypatch.setattr(torch.Tensor, "__matmul__", rounded)
    assert not products_are_exact()


def test_asking_whether_products_are_exact_draws_no_random_number() -> None:
    before = torch.get_rng_state()
    products_are_exact()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("exact", "products"), [(True, "medium"), (False, "highest")])
def test_fast_products_are_kept_only_where_they_were_measured_to_be_exact(
    exact: bool, products: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("minitrain.runtime.device.products_are_exact", lambda: exact)
    said = use_fast_cpu(1)
    assert torch.get_float32_matmul_precision() == products
    assert [setting.value for setting in said] == ["1 thread", "fp32 by oneDNN"][: 1 + exact]


@pytest.mark.parametrize(("present", "asked", "expected"), [(1, None, 1), (3, None, 3), (7, None, 4), (1, 6, 6)])
def test_threads_are_at_most_four_unless_asked_for(present: int, asked: int | None, expected: int) -> None:
    torch.set_num_threads(present)
    said = use_fast_cpu(asked)
    assert torch.get_num_threads() == expected
    why = "you asked for it" if asked else "small models gain no more" if expected == 4 else "all that torch finds"
    assert said[0] == (f"{expected} thread{'s' * (expected != 1)}", why)


@pytest.mark.parametrize("threads", [0, -1, 1025, 100_000, 2**40])
def test_less_than_one_thread_and_more_than_a_system_can_start_are_refused(threads: int) -> None:
    """Asked for 100,000, torch ends the process without a word."""
    before = torch.get_num_threads()
    with pytest.raises(ValueError, match=f"threads must be at least 1 and at most 1024, not {threads}"):
        use_fast_cpu(threads)
    assert torch.get_num_threads() == before


IMPORT_EVERYTHING = """
import pkgutil, importlib, signal, warnings
import torch

def settings():
    return (torch.get_num_threads(), torch.get_num_interop_threads(), torch.get_float32_matmul_precision(),
            torch.get_default_dtype(), torch.is_grad_enabled(), torch.are_deterministic_algorithms_enabled(),
            torch.get_rng_state().tolist(), signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM),
            warnings.filters)

before = settings()
import minitrain
names = [module.name for module in pkgutil.walk_packages(minitrain.__path__, "minitrain.")]
for name in names:
    if not name.endswith("__main__"):
        importlib.import_module(name)
assert len(names) > 10, names
assert settings() == before
"""


def test_importing_the_package_sets_nothing() -> None:
    """Threads, product precision, dtype, random state and signal handlers belong to whoever imports."""
    environment = {**os.environ, "PYTHONPATH": str(Path(minitrain.__file__).parent.parent)}
    command = [sys.executable, "-c", IMPORT_EVERYTHING]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert found.returncode == 0, found.stderr
