"""Memory: the tie that cannot be undone, and a peak predicted by hand. 60 minutes, difficulty 2 of 3.

Write the functions below in any order; `minitrain check memory` holds them against exact bits and, at the end, against
the plans of real training steps. Each is one to ten lines.
"""

# --- 1. The tie ---------------------------------------------------------------------------------------------------------
#
# Cut a float32 number into two halves: the upper is the number rounded to bfloat16 *to the nearest, ties to even* (what
# `x.bfloat16()` gives), the lower is the last 16 bits of its pattern. Nearly always the two halves say which number it was.


def twins(near: float) -> tuple[float, float]:
    """Two different finite float32 numbers with the same two halves.

    `near` is any finite bfloat16 number but zero and subnormal ones. The twins have its sign, and both lie less than two
    steps from it, a step being the way from one bfloat16 number to the next.
    """
    raise NotImplementedError


# --- 2. The peak --------------------------------------------------------------------------------------------------------
#
# A training step, every tensor of it but the loss in numbers of `size` bytes (4: float32, 2: bfloat16):
#
#     h = x @ up                          x: (rows, inputs)    up: (inputs, hidden)
#     a = gelu(h)
#     z = a @ out                         out: (hidden, classes)
#     loss = cross_entropy(z.float(), targets)
#     loss.backward(); optimizer.step(); optimizer.zero_grad()
#
# What is alive when:
# - Between steps: the weights and AdamW's two averages; no gradients. (Count in the middle of a run, not at its start.)
# - The forward pass keeps for the backward pass: of a product its input; of GELU its input; of the cross-entropy the
#   log-probabilities in float32. All else is dropped when it was used.
# - The backward pass goes from the loss to the input. Each of its operations makes a new tensor while what it reads is
#   still alive, and then drops what nobody needs any more:
#     cross-entropy    first makes the gradient of the log-probabilities, in float32; then, from this and the
#                      log-probabilities, the gradient of `z.float()`, in float32; from that the gradient of `z`
#     a product        first makes the weight's gradient, which stays; then, unless the input is `x`, the input's gradient
#     GELU             makes the gradient of `h` from `h` and the gradient of `a`
# - `x` is there from the forward pass to the end of the backward pass. The optimizer works in place.
# - Single numbers, and one number a row (the targets), are too few to count.


def standing(inputs: int, hidden: int, classes: int, size: int) -> int:
    """The bytes that are there between two steps."""
    raise NotImplementedError


def at_the_loss(rows: int, inputs: int, hidden: int, classes: int, size: int) -> int:
    """The most bytes at once while the backward pass is in the cross-entropy; with all that is `standing`, as below."""
    raise NotImplementedError


def in_the_middle(rows: int, inputs: int, hidden: int, classes: int, size: int) -> int:
    """The bytes at the moment when `a @ out` has made its second gradient, and nothing was dropped yet."""
    raise NotImplementedError


def at_the_end(rows: int, inputs: int, hidden: int, classes: int, size: int) -> int:
    """The bytes at the moment when `x @ up` has made its gradient, and nothing was dropped yet."""
    raise NotImplementedError


def peak(rows: int, inputs: int, hidden: int, classes: int, size: int) -> int:
    """The largest of these moments."""
    raise NotImplementedError
