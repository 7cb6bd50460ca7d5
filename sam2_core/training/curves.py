"""Curves of a training log, drawn as an image."""
from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np

_WIDTH, _HEIGHT, _MARGIN = 560, 300, 48
_PANELS = (('loss', ('loss',)),
           ('training: IoU', ('image_box_j', 'image_click_j', 'image_refined_j', 'video_tracked_j')),
           ('validation: IoU', ('validation_image_box_j', 'validation_image_click_j', 'validation_image_refined_j',
                                'validation_video_tracked_j')),
           ('validation: visible, hidden recognised', ('validation_video_present_right',
                                                     'validation_video_absent_right')))
_COLOURS = ((31, 119, 180), (255, 127, 14), (44, 160, 44), (214, 39, 40))


def draw(log: Path, image_file: Path) -> None:
    """Draw loss, IoU and presence over minutes from ``log.jsonl`` into a PNG file."""
    lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    panels = [_panel(title, names, lines) for title, names in _PANELS]
    image = np.concatenate([np.concatenate(panels[:2], axis=1), np.concatenate(panels[2:], axis=1)])
    cv2.imwrite(str(image_file), image[..., ::-1])


def _panel(title: str, names: tuple[str, ...], lines: list[dict]) -> np.ndarray:
    image = np.full((_HEIGHT, _WIDTH, 3), 255, np.uint8)
    # A value that was not finite is a string.
    curves = {name: np.array([(line['minutes'], line[name]) for line in lines
                              if isinstance(line.get(name), (int, float))]) for name in names}
    curves = {name: values for name, values in curves.items() if len(values)}
    cv2.putText(image, title, (_MARGIN, 20), 0, 0.5, (0, 0, 0), 1, cv2.LINE_AA)
    if not curves:
        return image
    right = max(values[:, 0].max() for values in curves.values()) or 1.0
    top = 1.0 if 'loss' not in names else float(np.percentile(curves['loss'][:, 1], 98)) or 1.0
    width, height = _WIDTH - _MARGIN - 12, _HEIGHT - 2 * _MARGIN + 16
    base = _HEIGHT - _MARGIN + 16

    def pixel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.round(np.stack((_MARGIN + x / right * width, base - np.clip(y / top, 0, 1) * height), axis=-1))

    for part in np.linspace(0, 1, 6):
        y = round(base - part * height)
        cv2.line(image, (_MARGIN, y), (_MARGIN + width, y), (225, 225, 225), 1)
        cv2.putText(image, f'{part * top:.2g}', (8, y + 4), 0, 0.38, (90, 90, 90), 1, cv2.LINE_AA)
        x = round(_MARGIN + part * width)
        cv2.putText(image, f'{part * right:.3g}', (x - 8, base + 16), 0, 0.38, (90, 90, 90), 1, cv2.LINE_AA)
    for row, (name, values) in enumerate(curves.items()):
        points = pixel(values[:, 0], values[:, 1]).astype(np.int32)
        cv2.polylines(image, [points], False, _COLOURS[row], 1, cv2.LINE_AA)
        label = name.removeprefix('validation_').removesuffix('_right').removesuffix('_j')
        cv2.putText(image, label, (_MARGIN + 12, base - 10 - 16 * row), 0, 0.42, _COLOURS[row], 1, cv2.LINE_AA)
    return image
