"""Train like ``sam2_train`` under torchrun; every process saves its weights as rank0.safetensors, and so on."""
import os
import sys

import torch.distributed as dist
from safetensors.torch import save_file

from sam2_core.datasets import SkippedFiles
from sam2_core.training import finetune
from sam2_core.training.distributed import join_processes

options = finetune.parser().parse_args()
options.device = join_processes(options.device)
trainer = finetune.prepare(options, None, SkippedFiles(options.output / 'skipped.jsonl'))
complete = trainer.run()
save_file({name: value.contiguous() for name, value in trainer.model.state_dict().items()},
          options.output / f'rank{os.environ["RANK"]}.safetensors')
dist.destroy_process_group()
sys.exit(0 if complete else 3)
