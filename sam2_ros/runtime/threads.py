"""Set OMP_WAIT_POLICY so that idle OpenMP threads do not spin. Import this module before torch."""
import os

# Waiting threads of PyTorch's CPU kernels spin by default and take processor time from all other processes: on two busy
# cores, a frame of nano took four times as much. The variable is read when torch is loaded.
os.environ.setdefault('OMP_WAIT_POLICY', 'passive')
