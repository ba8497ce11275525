"""Settings of the whole test suite."""

import torch

torch.set_num_threads(1)  # the models are tiny, and the suite runs one worker per core
