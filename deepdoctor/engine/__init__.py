"""The engine: the one process that owns the accelerator and the loaded model. With the scripts that build nano, all that imports torch."""

import os

# Read by OpenMP when torch is loaded. Its threads would otherwise spin while they wait: on a machine that does anything else besides, a
# training step of the embedded model took four times as long (benchmarks/results/openmp_waiting.md).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
