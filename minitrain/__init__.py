"""minitrain: a compact GPT trainer, written to be read.

Read `gpt.py`, `recipe.py` and `train.py` to understand a run, then `optim.py`.
"""

__version__ = "0.1.0"
