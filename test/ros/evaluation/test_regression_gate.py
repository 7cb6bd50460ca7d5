"""Regression gate: nano in lock-step on the three scenes must not get worse than the stored figures.

To renew the figures after a change that is meant to alter them (give the reason in the commit):

    .venv/bin/python test/ros/evaluation/test_regression_gate.py
"""
import datetime
import json
import sys
import tempfile
from pathlib import Path

import pytest

pytest.importorskip('rosbags', reason='needs rosbags (pip install rosbags rosbags-image)')

from sam2_core import Sam2Model, load_model
from sam2_ros.evaluation.job import Job, do
from sam2_ros.evaluation.scenes import SCENES, record_scene
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
