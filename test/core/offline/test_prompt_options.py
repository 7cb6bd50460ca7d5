"""Prompts on the command line."""
from argparse import ArgumentParser, ArgumentTypeError

import pytest

from sam2_core.offline.prompt_options import InOrder, read_box, read_points, read_range, video_prompts


def parse(*arguments, first_frame=0):
    parser = ArgumentParser()
    parser.add_argument('--box', dest='given', action=InOrder, type=read_box)
    parser.add_argument('--points', dest='given', action=InOrder, type=read_points)
    return [(item.prompt.object_id, item.frame, item.action, item.prompt.box, item.prompt.points, item.prompt.labels)
            for item in video_prompts(parser.parse_args(arguments).given, first_frame)]


def test_each_option_is_a_new_object():
    assert parse('--box', '10,20,30.5,40', '--points', '5,6;7,8,-;9,1,+@12', '--box', ' 1, 2, 3, 4 @ 7 ') == [
        (1, 0, 'set', (10, 20, 30.5, 40), (), ()),
        (2, 12, 'set', None, ((5, 6), (7, 8), (9, 1)), (1, 0, 1)),
        (3, 7, 'set', (1, 2, 3, 4), (), ())]


def test_the_first_prompt_of_an_id_starts_it_and_others_correct_it():
    assert [item[:3] for item in parse('--points', '3:5,6@40', '--box', '3:1,2,3,4@40', '--points', '3:5,6,-@10',
                                       '--box', '1,2,3,4', '--points', '3:5,6@60')] == [
        (3, 40, 'set'), (3, 40, 'set'), (3, 10, 'refine'), (1, 0, 'set'), (3, 60, 'refine')]


def test_numbers_that_are_named_are_not_given_again():
    assert [item[0] for item in parse('--box', '1,2,3,4', '--box', '1:1,2,3,4', '--box', '2,2,3,4')] == [2, 1, 3]


def test_prompts_without_a_frame_are_on_the_first_one():
    assert parse('--box', '1,2,3,4', first_frame=25)[0][1] == 25


@pytest.mark.parametrize('read, text, reason', [
    (read_box, '1,2,3', '1,2,3: has 3 numbers; must be .ID:.X0,Y0,X1,Y1.@FRAME.'),
    (read_box, '10,20,5,5', 'X1 must exceed X0 and Y1 must exceed Y0 .not width and height'),
    (read_box, '1,2,3,x', '1,2,3,x: must be'),
    (read_box, '1,2,3,nan', 'must have finite numbers|X1 must exceed'),
    (read_box, '1,2,3,4@5@6', 'must be'),
    (read_box, '1,2,3,4@-5', "FRAME '-5': must be a whole number, at least 0"),
    (read_box, '0:1,2,3,4', "ID '0': must be a whole number, 1 to 65535"),
    (read_box, ':1,2,3,4', "ID '': must be a whole number"),
    (read_points, '1', '1: must be'),
    (read_points, '1,2,0', 'point 1,2,0: must be X,Y on the object, or X,Y,- not on it'),
    (read_points, '1,2;', 'must be'),
    (read_points, '', 'must be'),
    (read_range, '5', '5: must be LOW,HIGH'),
    (read_range, '5,5', 'the second is larger'),
    (read_range, 'a,b', 'must be LOW,HIGH'),
])
def test_a_wrong_text_is_named_with_the_form(read, text, reason):
    with pytest.raises(ArgumentTypeError, match=reason):
        read(text)


def test_a_range_is_two_numbers():
    assert read_range('-100,3.5') == (-100, 3.5)
