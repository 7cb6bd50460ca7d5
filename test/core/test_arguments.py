"""Invalid values are refused while the command line is read, with their bounds."""
from argparse import ArgumentTypeError

import pytest
import torch

from sam2_core.arguments import device, number, rate, whole
from sam2_core.config import VARIANTS
from sam2_core.training import finetune, pretrain
from sam2_core.training.settings import TrainConfig


@pytest.mark.parametrize(('read', 'text', 'reason'), [
    (whole(1), '0', '0: must be a whole number of at least 1'),
    (whole(1), '2.5', '2.5: must be a whole number of at least 1'),
    (whole(1, 8), '9', '9: must be a whole number from 1 to 8'),
    (number(above=0), '0', '0: must be a number above 0'),
    (number(least=0, below=1), '1', '1: must be a number at least 0 and below 1'),
    (number(), 'nan', 'nan: must be a number'),
    (number(), 'inf', 'inf: must be a number'),
    (rate, 'neck=fast', 'neck=fast: must be RATE or PART=RATE, such as'),
    (rate, '-1', '-1: must be RATE or PART=RATE'),
    (device, 'gpu', 'gpu: this machine has cpu')])
def test_values_out_of_bounds_are_refused(read, text, reason):
    with pytest.raises(ArgumentTypeError, match=f'^{reason}'):
        read(text)


def test_values_within_bounds_are_accepted():
    assert whole(1, 8)('8') == 8 and number(least=0, below=1)('0') == 0.0
    assert rate('1e-5') == (None, 1e-5) and rate('image_encoder.neck=3e-6') == ('image_encoder.neck', 3e-6)
    assert device('cpu') == 'cpu'


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')
def test_a_gpu_that_is_not_there_is_refused():
    with pytest.raises(ArgumentTypeError, match='cuda:1: this machine has cpu'):
        device('cuda:1')


@pytest.mark.parametrize('option', ['--steps', '--minutes', '--batch', '--frames', '--objects', '--accumulate',
                                    '--epochs', '--log-every', '--chunks', '--clips', '--echo'])
def test_no_command_accepts_zero_for_a_size(option, capsys):
    """A run of 0 steps, or -3, would fail far from its cause, or never end."""
    for parser, needed in ((finetune.parser(), ['--data', 'd']), (pretrain.parser(), [])):
        length = [] if option in ('--steps', '--minutes', '--epochs') else ['--steps', '1']
        if option not in parser.format_help():
            continue
        with pytest.raises(SystemExit):
            parser.parse_args([*needed, '--output', 'o', *length, option, '0'])
        assert f'argument {option}: 0: must be' in capsys.readouterr().err


def test_a_run_without_end_is_refused(tmp_path):
    for length in ({'steps': -3}, {'minutes': 0.0}):
        with pytest.raises(ValueError, match='must be above 0'):
            TrainConfig(tmp_path, VARIANTS['nano'], **length)
