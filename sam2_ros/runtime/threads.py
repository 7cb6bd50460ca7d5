"""A robot's cores belong to all of its nodes. To be imported before torch."""
import os

# The threads of PyTorch's CPU kernels otherwise spin while they wait for each other, and burn the time of every other
# process: on two busy cores a frame of nano cost four times as much processor time. Read when torch is loaded.
os.environ.setdefault('OMP_WAIT_POLICY', 'passive')
