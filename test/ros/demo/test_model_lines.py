"""What the demo prints about the model and the scores of a user's own clip."""
import argparse
import io
from pathlib import Path

import pytest
from rich.console import Console

from sam2_ros.demo.__main__ import choose, main, warn_of_low_scores


@pytest.fixture
def console(monkeypatch, tmp_path):
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_CACHE', str(tmp_path))
    return Console(file=io.StringIO(), width=60)


def options(**given):
    return argparse.Namespace(**{'clip': Path('a.mp4'), 'model': None, **given})


def test_a_clip_gets_the_chosen_model_and_a_line_that_names_it(console):
    chosen = options()
    choose(chosen, console)
    assert chosen.model == 'nano'
    (line,) = console.file.getvalue().splitlines()  # not broken at the width of the console
    assert line.startswith('model: nano (packaged') and '; better masks: --model ' in line


def test_the_synthetic_scene_keeps_nano_and_says_nothing(console):
    chosen = options(clip=None)
    assert choose(chosen, console) is None
    assert chosen.model == 'nano' and not console.file.getvalue()
    named = options(clip=None, model='sam2.1_hiera_tiny')
    choose(named, console)
    assert named.model == 'sam2.1_hiera_tiny'


def test_a_warning_names_the_object_and_the_cures(console):
    """The recorder's reports arrive as JSON, so the keys of objects are text."""
    result = {'low_scores': [{'object_id': 3, 'mean': 0.314, 'frame': 57}], 'figures': {'objects': {'3': 'cup'}}}
    warn_of_low_scores(result, choose(options(), console), console)
    line = console.file.getvalue().splitlines()[-1]
    assert line.startswith('object 3 (cup): the score stays low, 0.31 ')
    assert '--model ' in line and 'prompt' in line


def test_an_unknown_model_for_a_clip_is_refused_before_anything_starts(capsys, tmp_path):
    assert main(['--clip', 'a.mp4', '--box', '1,2,3,4', '--model', 'sam3', '--output', str(tmp_path / 'out')]) == 2
    assert "model 'sam3' is not known" in capsys.readouterr().out
    assert not (tmp_path / 'out').exists()
