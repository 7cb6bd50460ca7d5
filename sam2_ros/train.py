"""``sam2_train``: the fine-tuning of sam2_core, which may also read our label topics in bags."""
from __future__ import annotations

if __name__ == '__main__':  # before the imports below, which take seconds
    from sam2_ros.runtime.executables import main_of

    main_of('sam2_train')

from collections.abc import Sequence

from sam2_core.training import finetune

try:
    from sam2_ros.recordings.label_bags import bag_format
except ImportError:  # rosbags is not installed: the other layouts do without
    bag_format = None


def main(arguments: Sequence[str] | None = None) -> int:
    """Fine-tune; see ``sam2_core.training.finetune.main``."""
    return finetune.main(arguments, bags=bag_format)
