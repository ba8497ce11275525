"""Weight decay is a speed: find the twin of a run.

30 minutes, difficulty 2 of 3. Write the four functions below, from the top to the bottom; each is a line or two.
`minitrain check weight_decay_is_a_speed` trains both runs in float32 and compares bits.

Run A trains a weight matrix `w` whose scale the network does not notice: `loss(c * w) == loss(w)` for every `c` above 0. Run
B is to do the same with a matrix that is `c` times as large, at the start and after every step, so that both make the same
predictions. `c` is a power of two: multiplying by it changes no digit of a float. You are given A's learning rate, weight
decay and, where the optimizer has one, `eps`, and return those of B, and by how much B's first weights are longer than A's.

Write `g` for A's gradient. Begin with the question what B's gradient is, at `c * w`.
"""


def sgd_twin(c: float, lr: float, weight_decay: float) -> tuple[float, float, float]:
    """`(lr, weight_decay, scale)` of B, for SGD with momentum, where `weight_decay * w` is added to the gradient.

    b <- momentum b + (g + weight_decay w);  w <- w - lr b
    """
    raise NotImplementedError


def adamw_twin(c: float, lr: float, weight_decay: float, eps: float) -> tuple[float, float, float, float]:
    """`(lr, weight_decay, scale, eps)` of B, for AdamW.

    m, v: averages of g and g^2;  w <- (1 - lr weight_decay) w - lr m / (sqrt(v) + eps)
    """
    raise NotImplementedError


def lion_twin(c: float, lr: float, weight_decay: float) -> tuple[float, float, float]:
    """`(lr, weight_decay, scale)` of B, for Lion.

    w <- (1 - lr weight_decay) w - lr sign(an average of g)
    """
    raise NotImplementedError


def adam_l2_twin(c: float, lr: float, weight_decay: float, eps: float) -> tuple[float, float, float, float]:
    """`(lr, weight_decay, scale, eps)` of B, for Adam with L2. AdamW's answer does not fit, but there is one.

    m, v: averages of h and h^2, where h = g + weight_decay w;  w <- w - lr m / (sqrt(v) + eps)
    """
    raise NotImplementedError
