"""Command ``sam2_train``: fine-tuning as in sam2_core, which here reads label topics in bags, too."""
from __future__ import annotations

if __name__ == '__main__':  # before the imports below, which take seconds
    from sam2_ros.runtime.executables import main_of

    main_of('sam2_train')

from collections.abc import Sequence

from sam2_core.training import finetune

BAGS: finetune.BagFormat | None
try:
    from sam2_ros.recordings.label_bags import bag_format
except ImportError:  # rosbags is not installed; the other layouts do not need it
    BAGS = None
else:
    BAGS = bag_format


def main(arguments: Sequence[str] | None = None) -> int:
    """Fine-tune and return the exit code; see ``sam2_core.training.finetune.main``."""
    return finetune.main(arguments, BAGS)
