"""Regression gate: nano in lock-step on the three scenes must not get worse than the stored figures.

To renew the figures after a change that is meant to alter them (give the reason in the commit):

    .venv/bin/python test/ros/evaluation/test_regression_gate.py
"""
import datetime
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip('rosbags', reason='needs rosbags (pip install rosbags rosbags-image)')

from sam2_core import Prompt, Sam2Model, VideoPrompt, load_model, track_video
from sam2_core.masks import mask_box
from sam2_core.metrics import boundary_f, iou
from sam2_ros.evaluation.job import Job, do
from sam2_ros.evaluation.scenes import IMAGES, SCENES, record_scene
from sam2_ros.runtime.parameters import Parameters

FIGURES = Path(__file__).with_name('evaluation_figures.json')
ALLOWED = 0.01  # J&F


def evaluate(scene: str, folder: Path, model: Sam2Model) -> dict[str, float]:
    record_scene(scene, folder / scene)
    job = Job(folder / scene, folder / 'out' / scene, parameters=Parameters(device='cpu'), bag='', video=False)
    return do(job, model).mean.named


def test_every_scene_has_its_figures():
    assert json.loads(FIGURES.read_text())['scenes'].keys() == SCENES.keys()


@pytest.mark.slow
@pytest.mark.parametrize('scene', SCENES)
def test_nano_is_no_worse_than_it_was(model, tmp_path, scene):
    kept = json.loads(FIGURES.read_text())['scenes'][scene]
    found = evaluate(scene, tmp_path, model)
    assert found['J&F'] >= kept['J&F'] - ALLOWED, f'{scene}: {found}, kept: {kept}'


@pytest.mark.slow
def test_a_video_is_tracked_as_well_as_a_stream(model):
    """Give sam2_track the images and prompts of a scene: it must reach the figures of lock-step."""
    scene, name = SCENES['twins'], 'twins'
    tabletop = scene.tabletop()
    shown = [tabletop.render_depth(scene.first + number)[:2] for number in range(IMAGES)]
    prompts = [VideoPrompt(0, Prompt(number, box=mask_box(shown[0][1] == number))) for number in tabletop.objects]
    figures = {number: [] for number in tabletop.objects}
    for frame, result in track_video(model, [image for image, _ in shown], prompts):
        for number, item in result.objects.items():
            truth = shown[frame][1] == number
            figures[number].append((iou(item.mask, truth) + boundary_f(item.mask, truth)) / 2)
    found = np.mean([np.mean(values[1:-1]) for values in figures.values()])  # the objects are always in view
    assert found >= json.loads(FIGURES.read_text())['scenes'][name]['J&F'] - ALLOWED


def main() -> int:
    model = load_model('nano', device='cpu')
    with tempfile.TemporaryDirectory() as folder:
        scenes = {scene: {name: round(value, 4) for name, value in evaluate(scene, Path(folder), model).items()}
                  for scene in SCENES}
    FIGURES.write_text(json.dumps({'date': str(datetime.date.today()), 'scenes': scenes}, indent=1) + '\n')
    print(FIGURES.read_text())
    return 0


if __name__ == '__main__':
    sys.exit(main())
