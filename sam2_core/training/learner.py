"""The modules that a run trains, with their optimizer and their moving average."""
from __future__ import annotations

import copy

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sam2_core.model import Sam2Model
from sam2_core.training import run_state
from sam2_core.training.clips import PackedClips
from sam2_core.training.divergence import UpdateGuard, not_finite
from sam2_core.training.initialise import start_memory
from sam2_core.training.optimizer import new_optimizer
from sam2_core.training.rollout import ForegroundHead, Knobs, Step, normalise, step_losses
from sam2_core.training.settings import TrainConfig, part_of


class Learner:
    """Model, auxiliary head, moving average and optimizer of a run.

    The average is the model itself if the settings ask for none.
    """

    def __init__(self, config: TrainConfig, model: Sam2Model, device: torch.device) -> None:
        """Prepare a model for training: on the device, with gradients except in its frozen parts."""
        self.config, self.device = config, device
        self.model = model.to(device).train()
        self.model.requires_grad_(True)
        self.model.no_mem_pos_enc.requires_grad_(False)  # no published version uses it
        for name, parameter in self.model.named_parameters():
            if part_of(name, config.frozen) is not None:
                parameter.requires_grad_(False)
        # Training uses the single mask; the fallback on the other masks is for inference.
        self.model.sam_mask_decoder.stability_threshold = -1.0
        self.head = ForegroundHead(config.model.d_model).to(device) if config.foreground else None
        self.average = copy.deepcopy(self.model).requires_grad_(False) if config.ema else self.model
        trained: dict[str, nn.Module] = {'model': self.model}
        if self.head is not None:
            trained['head'] = self.head
        self.saved = trained | ({'average': self.average} if config.ema else {})
        self.names = run_state.parameter_names(trained)
        self.optimizer = new_optimizer(self.names, config, device)
        self.guard = UpdateGuard(device)
        if device.type == 'cuda':  # a fused optimizer skips an update on the device, as for torch.amp.GradScaler
            self.optimizer.found_inf = self.guard.failed  # type: ignore[attr-defined]
        self._average_rate = torch.zeros((), device=device)

    def autocast(self) -> torch.autocast:
        """Return the precision in which the run computes."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.half)

    def losses(self, model: Sam2Model, clips: PackedClips, knobs: Knobs) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of the model or of its average on a batch of clips, and figures to log."""
        frames = clips.masks.shape[1]
        step = Step(frames, self.config.objects, image_objects=2 if frames == 1 else 1)
        with self.autocast():
            return step_losses(model, self.head, clips, step, knobs)

    def with_gradient(self) -> list[Tensor]:
        """Return the parameters that have a gradient."""
        return [parameter for parameter in self.names if parameter.grad is not None]

    def set_average_rate(self, step: int) -> None:
        """Set the share of the weights after step number ``step`` in the average, which is high at the start."""
        self._average_rate.fill_(1 - min(self.config.ema, (1 + step) / (10 + step)))

    def update(self, loss: Tensor) -> Tensor:
        """Apply the gradients, unless they or the loss are not finite, and return their norm before clipping."""
        gradient = torch.nn.utils.clip_grad_norm_(self.with_gradient(), self.config.clip_norm, foreach=True)
        self.guard.judge(loss, gradient)
        if self.device.type == 'cuda' or not self.guard.failed:
            self.optimizer.step()
        if self.average is not self.model:
            self._update_average()
        return gradient

    @torch.no_grad()
    def _update_average(self) -> None:
        averaged: list[Tensor] = list(self.average.parameters())
        present: list[Tensor] = list(self.model.parameters())
        change = torch._foreach_sub(present, averaged)
        torch._foreach_mul_(change, self._average_rate * (1 - self.guard.failed))
        torch._foreach_add_(averaged, change)

    def start_memory(self, clips: PackedClips) -> None:
        """Initialise a new model's memory from its trained image encoder, before the first clips of several frames."""
        with self.autocast():  # as in training, so that code compiled for it is used
            features = self.model.encode_image(normalise(clips.frames.flatten(0, 1))).stride16_bchw.detach()
        start_memory(self.model, features)
        if dist.is_initialized() and dist.get_world_size() > 1:  # each process has seen other clips
            for parameter in self.model.parameters():
                dist.broadcast(parameter.data, 0)
        for name in ('memory_encoder', 'memory_attention'):
            getattr(self.average, name).load_state_dict(getattr(self.model, name).state_dict())

    def not_finite(self) -> str | None:
        """Return the name of the first saved tensor with a value that is not finite, or None."""
        tensors = [(f'{prefix}.{key}', value) for prefix, module in self.saved.items()
                   for key, value in module.state_dict().items()]
        tensors += [(f'{field} of {self.names[parameter]}', state[field])
                    for parameter, state in self.optimizer.state.items()
                    for field in ('exp_avg', 'exp_avg_sq') if field in state]
        dtype = self.config.weights_dtype  # float16 ends at 65504
        stored = run_state.stored_values(self.average, self.average.state_dict(), dtype)
        return not_finite(tensors) or not_finite((f'{key} in {value.dtype}', value) for key, value in stored)
