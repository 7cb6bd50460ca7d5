"""Command ``python -m sam2_core.training.loop``, and the names of a training run in one place."""
import sys

from sam2_core.training.distributed import join_processes
from sam2_core.training.pretrain import main
from sam2_core.training.settings import Schedule, TrainConfig, part_of
from sam2_core.training.trainer import Trainer

__all__ = ['Schedule', 'TrainConfig', 'Trainer', 'join_processes', 'main', 'part_of']

if __name__ == '__main__':
    sys.exit(main())
