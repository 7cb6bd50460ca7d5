"""sam2_evaluate on real bags: the command in this process, with the packaged model."""
import json

import cv2
import pytest

pytest.importorskip('rosbags', reason='needs rosbags (pip install rosbags rosbags-image)')

from rosbags.highlevel import AnyReader

from sam2_ros.evaluate import main
from sam2_ros.messages.conversions import from_pixels, to_rgb
from sam2_ros.recordings.bag_writer import BagWriter
from testing.discs import Discs, header
from testing.small_edgetam import small_variant

TIMES = ('latency', 'wall_seconds', 'peak_memory', 'peak_gpu_memory')


def write_bag(path, discs, truth=True):
    with BagWriter(path) as bag:
        for index, arrival in enumerate(discs.arrivals):
            bag.write('/camera/image', discs.image(index), arrival)
            if truth:
                bag.write('/camera/truth', from_pixels(discs.truth(index), 'mono16', header(index)), arrival)
        for prompt in discs.prompts:
            bag.write('/sam2/prompt', prompt.message, prompt.arrival)
    return path


@pytest.fixture
def bag(tmp_path):
    discs = Discs(6)
    discs.prompts = [discs.prompt(1), discs.prompt(2)]
    return write_bag(tmp_path / 'bag', discs)


def metrics_of(folder):
    return json.loads((folder / 'metrics.json').read_text())


def without_times(metrics):
    return {name: value for name, value in metrics.items() if name not in TIMES}


def test_a_bag_becomes_figures_and_the_same_bag_the_same_figures(bag, tmp_path, capsys):
    for name in ('a', 'b'):
        assert main([str(bag), '--image-topic', '/camera/image', '--ground-truth-topic', '/camera/truth',
                     '--model', 'nano', '--device', 'cpu', '--output', str(tmp_path / name)]) == 0
    first, second = (metrics_of(tmp_path / name) for name in ('a', 'b'))
    assert without_times(first) == without_times(second)
    assert first['mean']['J&F'] > 0.8 and set(first['objects']) == {'1', '2'}
    assert first['recording'] == 'bag' and first['mode'] == 'lock-step' and first['dropped'] == 0
    assert first['prompts'] == {'accepted': 2, 'refused': []} and first['prompts_from'] == 'topic'
    assert set(first['latency']) == {'decode', 'encode', 'attend', 'decode mask', 'memory', 'publish', 'total'}
    printed = capsys.readouterr().out
    assert '6 of 6 images processed, 0 dropped, 6 with truth' in printed and 'mean' in printed


def test_edgetam_is_evaluated_with_a_local_file(bag, tmp_path, monkeypatch):
    """Its weights are random, so only times and sizes mean anything."""
    assert main([str(bag), '--model', 'edgetam', '--checkpoint', str(small_variant(monkeypatch, tmp_path)),
                 '--device', 'cpu', '--output', str(tmp_path / 'out'), '--no-video']) == 0
    metrics = metrics_of(tmp_path / 'out')
    assert (metrics['processed'], metrics['dropped'], set(metrics['objects'])) == (6, 0, {'1', '2'})
    assert metrics['versions']['model'] == 'edgetam, 128 pixels, float32'
    latency = metrics['latency']
    assert all(0 < latency[stage]['p50'] < latency['total']['p50'] for stage in ('encode', 'attend', 'memory'))
    assert metrics['peak_memory'] > 0


def test_topics_are_found_and_objects_prompted_by_their_first_truth(tmp_path):
    bag = write_bag(tmp_path / 'bag', Discs(5, hidden={2: (0, 1)}))
    assert main([str(bag), '--output', str(tmp_path / 'out')]) == 0
    metrics = metrics_of(tmp_path / 'out')
    assert metrics['prompts_from'] == 'first-truth' and metrics['prompts']['accepted'] == 2
    assert metrics['objects']['1']['frames']['index'] == [1, 2, 3]
    assert metrics['objects']['2']['frames']['index'] == [3], 'from its first sight, that is its prompt, without it'


def test_prompts_from_a_file(bag, tmp_path):
    (tmp_path / 'prompts.yaml').write_text('[{frame: 1, id: 1, label: ball, box: [20, 18, 64, 62]}]')
    assert main([str(bag), '--prompts', str(tmp_path / 'prompts.yaml'), '--output', str(tmp_path / 'out')]) == 0
    metrics = metrics_of(tmp_path / 'out')
    assert metrics['objects']['1']['label'] == 'ball' and metrics['objects']['1']['J'] > 0.8
    assert metrics['not_prompted'] == {'2': 'no prompt for it'} and metrics['objects']['2']['J'] == 0


def test_in_real_time_every_image_is_processed_or_counted(bag, tmp_path):
    assert main([str(bag), '--mode', 'real-time', '--rate', '20', '--output', str(tmp_path / 'out')]) == 0
    metrics = metrics_of(tmp_path / 'out')
    assert metrics['processed'] + metrics['dropped'] == 6 and metrics['processed'] >= 1
    assert {'when_available', 'as_seen'} <= set(metrics) and metrics['latency']['result']['p50'] > 0


def test_results_become_a_bag_to_look_at_and_masks_training_data(bag, tmp_path):
    out = tmp_path / 'out'
    for _ in range(2):  # what is written to look at is written anew, training data never
        assert main([str(bag), '--bag', 'images', '--export', 'coco', 'davis', '--min-score', '0.5',
                     '--output', str(out)]) == 0
    with AnyReader([out / 'results']) as reader:
        counts = {topic: info.msgcount for topic, info in reader.topics.items()}
    assert counts['/sam2/instances'] == counts['/sam2/label_image'] == counts['/image'] == 6
    labels = cv2.imread(str(out / 'davis' / 'Annotations' / 'bag' / '00003.png'), cv2.IMREAD_UNCHANGED)
    assert labels is not None
    assert (out / 'coco' / 'annotations' / 'instances_bag.json').exists()
    assert any(problem.startswith('export coco: ') for problem in metrics_of(out)['problems'])
    assert main([str(bag), '--bag', 'none', '--output', str(tmp_path / 'plain')]) == 0
    assert {path.name for path in (tmp_path / 'plain').iterdir()} == {'metrics.json', 'report.html', 'overlay.mp4'}
    assert main([str(bag), '--bag', 'none', '--no-video', '--output', str(tmp_path / 'bare')]) == 0
    assert {path.name for path in (tmp_path / 'bare').iterdir()} == {'metrics.json', 'report.html'}


def test_parameters_come_from_a_file_and_options_before_it(bag, tmp_path):
    (tmp_path / 'mine.yaml').write_text('max_objects: 1\nimage_size: 128\n')
    assert main([str(bag), '--parameters', str(tmp_path / 'mine.yaml'), '--image-size', '96', '--memory-policy',
                 'iou_gated', '--output', str(tmp_path / 'out')]) == 0
    metrics = metrics_of(tmp_path / 'out')
    assert metrics['parameters']['memory_policy'] == 'iou_gated'
    assert metrics['parameters']['image_size'] == 96 and 'nano, 96 pixels' in metrics['versions']['model']
    (refused,) = metrics['prompts']['refused']
    assert refused['id'] == 2 and 'max_objects is 1' in refused['reason']
    assert metrics['not_prompted']['2'].startswith('refused: 1 objects are tracked already')


def test_a_damaged_bag_is_named_and_costs_the_others_nothing(bag, tmp_path, capsys):
    (tmp_path / 'bad.mcap').write_bytes(b'no bag')
    write_bag(tmp_path / 'other' / 'bag', Discs(4))
    assert main([str(bag), str(tmp_path / 'bad.mcap'), str(tmp_path / 'other' / 'bag'),
                 '--output', str(tmp_path / 'out')]) == 1
    assert sorted(path.name for path in (tmp_path / 'out').iterdir()) == ['bag', 'bag_2', 'summary.html',
                                                                          'summary.json']
    assert metrics_of(tmp_path / 'out' / 'bag')['images'] == 6 and metrics_of(tmp_path / 'out' / 'bag_2')['images'] == 4
    assert 'bad.mcap' in capsys.readouterr().err
    assert main([str(tmp_path / 'bad.mcap'), '--output', str(tmp_path / 'out2')]) == 2


def test_a_bag_without_truth_tells_what_there_is_to_tell(tmp_path, capsys):
    discs = Discs(4)
    discs.prompts = [discs.prompt(1)]
    bag = write_bag(tmp_path / 'bag', discs, truth=False)
    assert main([str(bag), '--output', str(tmp_path / 'out')]) == 0
    assert metrics_of(tmp_path / 'out')['mean'] is None
    assert 'no ground truth' in capsys.readouterr().out


def test_a_folder_in_the_layout_of_davis(tmp_path):
    discs = Discs(5)
    for kind, of, suffix in (
            ('JPEGImages', lambda index: to_rgb(discs.image(index))[..., ::-1], 'jpg'),
            ('Annotations', lambda index: discs.truth(index).astype('u1'), 'png')):
        for clip in ('first', 'second'):
            folder = tmp_path / 'davis' / kind / '480p' / clip
            folder.mkdir(parents=True)
            for index in range(5):
                cv2.imwrite(str(folder / f'{index:05}.{suffix}'), of(index))
    assert main(['--davis', str(tmp_path / 'davis'), '--output', str(tmp_path / 'out')]) == 0
    for clip in ('first', 'second'):
        metrics = metrics_of(tmp_path / 'out' / clip)
        assert metrics['mean']['J&F'] > 0.8 and metrics['protocol']['frames_counted'] == 'DAVIS'


@pytest.mark.parametrize(('arguments', 'reason'), [
    ([], 'give either bags, --davis DIR or --sav DIR'),
    (['bag', '--davis', 'x'], 'give either bags, --davis DIR or --sav DIR'),
    (['bag', '--rate', '0', '--mode', 'real-time'], '--rate 0: must be positive'),
    (['bag', '--rate', '2'], 'lock-step has no rate; add --mode real-time'),
    (['bag', '--min-score', '2'], '--min-score 2: must lie between 0 and 1'),
    (['bag', '--prompts', 'nowhere.yaml'], '--prompts nowhere.yaml: must be topic, first-truth or a YAML file')])
def test_arguments_that_make_no_sense_are_refused_with_the_cure(arguments, reason, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        main([*arguments, '--output', str(tmp_path)])
    assert end.value.code == 2
    assert reason in capsys.readouterr().err


@pytest.mark.parametrize(('arguments', 'reason'), [
    (['--checkpoint', 'none.pt'], 'none.pt'), (['--dtype', 'int8'], "dtype 'int8': must be one of"),
    (['--parameters', 'none.yaml'], 'parameters none.yaml: No such file')])
def test_a_node_that_cannot_be_had_ends_the_run_with_the_reason(arguments, reason, bag, tmp_path, capsys):
    assert main([str(bag), *arguments, '--output', str(tmp_path / 'out')]) == 2
    assert reason in capsys.readouterr().err
    assert not (tmp_path / 'out').exists()
