"""Before any test module is imported: without a GPU, Triton kernels run interpreted."""

import os

import torch

# Triton reads this when a kernel is decorated, so it must be set before the first import of triton.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
