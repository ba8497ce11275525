"""The rotational step of `fast_rotation.py` as one kernel in C++ that reads and writes each row once.

Adam's direction, the row's sums and the turned row, while the row is in the cache nearest to the core: hardly slower than
torch's fused AdamW, where every further pass over memory costs as much again. Rows of any number and length, contiguous.
"""

from collections.abc import Callable

import torch

ROWS = """
#include <ATen/cpu/vec/vec.h>
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>
using Lanes = at::vec::Vectorized<real>;
constexpr int64_t width = Lanes::size();

real total(Lanes x) { return at::vec::vec_reduce_all<real>([](Lanes& a, Lanes& b) { return a + b; }, x); }

// Turns each row of `weight` by `reach`, its angle times its length, against `given`: the update, or with `adam` a gradient.
extern "C" void kernel(real* weight, const real* given, real* m_rows, real* v_rows, const real* norm, real* size,
    const real* reach, const double* numbers, int64_t rows, int64_t inputs, int64_t adam, int64_t center, int64_t threads)
{
    const real rms_decay = numbers[0], rms_share = numbers[1], ones = numbers[2], eps = std::numeric_limits<real>::epsilon();
    const Lanes m_share(numbers[3]), v_share(numbers[4]), m_scale(numbers[5]), v_scale(numbers[6]), adam_eps(numbers[7]);
    const real smallest = 1e8 * std::numeric_limits<real>::min(), largest = 1e-8 * std::numeric_limits<real>::max();
    #pragma omp parallel num_threads(threads)
    {
        std::vector<real> scratch(inputs);
        real* const u = scratch.data();
        #pragma omp for
        for (int64_t row = 0; row < rows; row++) {
            const int64_t start = row * inputs;
            real* const w = weight + start;
            for (int64_t i = 0; i < inputs; i += width) {
                const int64_t n = std::min(width, inputs - i);
                Lanes x = Lanes::loadu(given + start + i, n);
                if (adam) {
                    const Lanes m0 = Lanes::loadu(m_rows + start + i, n), v0 = Lanes::loadu(v_rows + start + i, n);
                    const Lanes m = m0 + m_share * (x - m0), v = v0 + v_share * (x * x - v0);
                    m.store(m_rows + start + i, n);
                    v.store(v_rows + start + i, n);
                    x = m * m_scale / (v.sqrt() * v_scale + adam_eps);
                }
                x.store(u + i, n);
            }
            real mean = 0, along = 0, dot, u_squared, w_squared;
            const auto project = [&] {  // u <- u - mean - along w, and what is left of both
                Lanes u_sum(0), w_sum(0), uu(0), uw(0), ww(0);
                for (int64_t i = 0; i < inputs; i += width) {
                    const int64_t n = std::min(width, inputs - i);
                    const Lanes y = Lanes::loadu(w + i, n);
                    (Lanes::loadu(u + i, n) - Lanes(mean) - Lanes(along) * y).store(u + i, n);
                    const Lanes x = Lanes::loadu(u + i, n);
                    u_sum = u_sum + x, w_sum = w_sum + y, uu = uu + x * x, uw = uw + x * y, ww = ww + y * y;
                }
                u_squared = total(uu), w_squared = total(ww);
                mean = center ? total(u_sum) / inputs : 0;
                dot = total(uw) - mean * total(w_sum);
                along = dot / w_squared;
            };
            project();
            const real whole = u_squared;
            real across = whole - mean * mean * inputs - along * dot, first_dot = dot;
            if (!(across >= real(0.05) * whole)) {  // the difference of two large numbers has few digits: measure it
                along = 0;
                project();  // the mean alone
                project();
                across = u_squared > 64 * eps * eps * whole ? u_squared : 0;
                mean = along = 0;
            }
            if (!(across > smallest && across < largest)) across = first_dot * 0;
            size[row] = rms_decay * size[row] + rms_share * across;
            if (across == 0) continue;
            const real c = reach[row] / std::sqrt(size[row] / ones), q = norm[row] / std::sqrt(w_squared + c * (c * across));
            const Lanes of_w(q * (1 + c * along)), of_u(q * c), shift(q * c * mean);
            for (int64_t i = 0; i < inputs; i += width) {
                const int64_t n = std::min(width, inputs - i);
                (of_w * Lanes::loadu(w + i, n) - of_u * Lanes::loadu(u + i, n) + shift).store(w + i, n);
            }
        }
    }
}
"""


def row_kernel(dtype: torch.dtype) -> Callable[..., None]:
    """`ROWS`, compiled for float32 or float64 as torch compiles its own kernels; kept on disk by torch."""
    from torch._inductor.codecache import CppPythonBindingsCodeCache  # here, for it takes a second

    real = "double" if dtype == torch.float64 else "float"
    arguments = ["real*"] * 7 + ["double*"] + ["int64_t"] * 5
    return CppPythonBindingsCodeCache.load_pybinding(arguments, f"using real = {real};{ROWS}")
