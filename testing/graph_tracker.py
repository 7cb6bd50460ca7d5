"""Tracker that runs exported graphs with onnxruntime, by model.json and the rules of MemoryBank."""
from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnxruntime
import torch
import torch.nn.functional as F

from sam2_core import Prompt, Sam2Model
from sam2_core.memory import MemoryBank, stack_memories


class GraphTracker:
    """StreamTracker on graphs; of the model in PyTorch, only the configuration is used."""

    def __init__(self, folder: Path, model: Sam2Model, objects: int) -> None:
        self.about = json.loads((folder / 'model.json').read_text())
        self.outputs = {g['file']: [port['name'] for port in g['outputs']] for g in self.about['graphs']}
        self.sessions = {g['file']: onnxruntime.InferenceSession(folder / g['file'], providers=['CPUExecutionProvider'])
                         for g in self.about['graphs'] if g['stage'] in (
                             'encode_image', 'decode_prompted', 'adopt_mask') or g['objects'] == objects}
        self.config, self.objects = model.config, objects
        self.banks: dict[int, MemoryBank] = {}

    def run(self, graph: str, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run a graph with those of the inputs that it has; return its outputs by name."""
        file = f'{graph}.onnx'
        session = self.sessions[file]
        return dict(zip(self.outputs[file], session.run(None, {i.name: inputs[i.name] for i in session.get_inputs()}),
                        strict=True))

    def step(self, image: np.ndarray, prompts: Mapping[int, Prompt]) -> dict[int, np.ndarray]:
        """Process the next image; return the mask logits of all objects."""
        features = self.run('encode_image', {'image': self._square(image)})
        found = self._track(features)
        for object_id, prompt in prompts.items():
            found[object_id] = self._prompt(features, prompt.check(*image.shape[:2]), image.shape[:2],
                                            found.get(object_id))
        for ids in self._batches(found):
            rows = {name: np.stack([found[i][name] for i in ids]) for name in ('logits', 'object_score')}
            memory = self.run(f'encode_memory_{self.objects}', {
                **features, **rows, 'prompted': np.array([i in prompts for i in ids], np.int32)})['memory']
            for object_id, one in dict(zip(ids, memory, strict=True)).items():
                bank = self.banks.setdefault(object_id, MemoryBank(self.config, 4, torch.device('cpu'), torch.float32))
                bank.write(torch.from_numpy(one), torch.from_numpy(found[object_id]['pointers']), object_id in prompts)
        return {object_id: masks['logits'] for object_id, masks in found.items()}

    def _square(self, image: np.ndarray) -> np.ndarray:
        about = self.about['image']
        pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float() * about['scale']
        pixels = F.interpolate(pixels, size=(about['size'],) * 2, mode='bilinear', antialias=True)
        mean, std = (torch.tensor(about[name])[:, None, None] for name in ('mean', 'std'))
        return ((pixels - mean) / std).numpy()

    def _batches(self, ids) -> list[list[int]]:
        """Return batches of the graphs' size; the last object is repeated as filler."""
        ids = list(ids)
        batches = [ids[i:i + self.objects] for i in range(0, len(ids), self.objects)]
        return [batch + batch[-1:] * (self.objects - len(batch)) for batch in batches]

    def _track(self, features: dict[str, np.ndarray]) -> dict[int, dict[str, np.ndarray]]:
        found = {}
        for ids in self._batches(self.banks):
            memories = [self._memory(self.banks[i]) for i in ids]
            memory = {name: np.stack([m[name] for m in memories]) for name in memories[0]}
            attended = self.run(f'attend_memory_{self.objects}', {**features, **memory})
            masks = self.run(f'decode_tracked_{self.objects}', {**features, **attended})
            for row, object_id in enumerate(ids):
                found[object_id] = {name: values[row] for name, values in {**masks, **attended}.items()}
        return found

    def _memory(self, bank: MemoryBank) -> dict[str, np.ndarray]:
        about, memory = self.about['memory'], stack_memories([bank])

        def fill(rows: torch.Tensor, room: int, empty: float) -> np.ndarray:
            filled = np.full((room, *rows.shape[1:]), empty, rows.float().numpy().dtype)
            filled[:len(rows)] = rows.float()  # raises ValueError if there is too little room
            return filled

        return {'frames': fill(memory.frames[0], about['frames'], 0),
                'time_slots': fill(memory.time_slots[0], about['frames'], about['empty']).astype(np.int32),
                'pointers': fill(memory.pointers[0], about['pointers'], 0),
                'pointer_ages': fill(memory.pointer_ages[0], about['pointers'], about['empty']).astype(np.int32)}

    def _prompt(self, features: dict[str, np.ndarray], prompt: Prompt, size: tuple[int, int],
                tracked: dict[str, np.ndarray] | None) -> dict[str, np.ndarray]:
        side = self.about['image']['size']
        if prompt.mask is not None:
            mask = F.interpolate(torch.from_numpy(prompt.mask)[None, None].float(), size=(side, side), mode='bilinear',
                                 antialias=True) >= 0.5
            return self._first(self.run('adopt_mask', {**features, 'mask': mask.float().numpy()}))
        room = self.about['prompt']['points']
        points, labels = np.zeros((1, room, 2), np.float32), np.full((1, room), self.about['prompt']['no_point'],
                                                                     np.int32)
        xy, kinds = prompt.as_points(*size, side)
        points[0, :len(xy)], labels[0, :len(xy)] = xy, kinds
        known = tracked is not None
        return self._first(self.run('decode_prompted', {
            **features, 'points': points, 'labels': labels, 'use_previous': np.array([known], np.int32),
            'features': tracked['features'][None] if known else features['without_memory'],
            'previous_logits': (tracked['logits'] if known else np.zeros((side // 4,) * 2, np.float32))[None, None]}))

    @staticmethod
    def _first(masks: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {name: values[0] for name, values in masks.items()}
