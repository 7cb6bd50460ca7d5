"""report.html and overlay.mp4 of runs over two discs: complete, and without external resources."""
import base64
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest

from sam2_core.drawing.overlay import colour
from sam2_ros.evaluation.metrics import Accuracy, FrameScores, Metrics, ObjectMetrics, to_json
from sam2_ros.evaluation.report.charts import TimelineChart, histogram, lowest, nice, ticks, timeline
from sam2_ros.evaluation.report.page import write_report
from sam2_ros.evaluation.report.pictures import draw_truth, write_video
from sam2_ros.evaluation.results import TOTAL, Answer, FrameOutput, ObjectOutput, Run
from sam2_ros.evaluation.scoring.scores import score
from sam2_ros.evaluation.scoring.worst_moments import moments
from sam2_ros.msg import Instance
from testing.discs import Discs, stamp

EVIL = '<script>alert(1)</script>&"\''
chromium = shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')


def output(mask, state=Instance.TRACKED):
    rows, columns = np.nonzero(mask)
    if not len(rows):
        return ObjectOutput(Instance.OCCLUDED, 0.0, 0.1)
    box = (int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1)
    return ObjectOutput(state, 0.9, 0.95, box, np.packbits(mask[box[1]:box[3], box[0]:box[2]]))


def follow(recording, mode='lock-step', label='red', skip=()):
    """Return a run whose masks equal the truth, but for object 1 in image 4, of which it has a part."""
    run = Run('discs', mode, 1.0, len(recording.stamps), 120, 160, {1: label, 2: 'blue'},
              parameters={'model': 'nano', 'cameras': ()}, versions={'model': 'nano, 256 pixels', 'device': 'CPU'},
              peak_memory=300 << 20, wall_seconds=1.0)
    for index in range(len(recording.stamps)):
        if index in skip:
            continue
        masks = {number: recording.mask(number, index) for number in (1, 2)}
        if index == 4:
            masks[1][40:] = False
        run.frames.append(FrameOutput(index, stamp(index), recording.arrivals[index] + 30_000_000,
                                      {number: output(mask) for number, mask in masks.items()},
                                      {'encode': 0.02, TOTAL: 0.03 + 0.001 * index}))
    run.answers = [Answer(recording.arrivals[0], stamp(0), 'SET', number, run.labels[number], True, '', stamp(0))
                   for number in (1, 2)]
    run.answers.append(Answer(recording.arrivals[3], stamp(3), 'SET', 9, label, False, f'box of {label}: too small'))
    return run


class Page(HTMLParser):
    """Texts of a page and the resources it refers to."""

    EMPTY = {'meta', 'img', 'br', 'line', 'rect', 'path', 'circle', 'polyline', 'i'}

    def __init__(self, html):
        super().__init__()
        self.tags, self.links, self.texts, self.sources, self.open = [], [], [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.links += [value for name, value in attributes if name in ('src', 'href', 'action', 'data', 'srcset')]
        self.sources += [value for name, value in attributes if tag == 'img' and name == 'src']
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.EMPTY:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


@pytest.fixture
def recording():
    return Discs(images=12, hidden={2: [6, 7]})


@pytest.fixture
def page(tmp_path, recording):
    """Return a function that writes and reads the page of a run."""
    def page(run, recording=recording):
        scores = score(run, recording)
        write_report(run, scores, recording, tmp_path / 'report.html')
        return Page((tmp_path / 'report.html').read_text()), scores
    return page


def leaves(value):
    if isinstance(value, dict):
        return [leaf for name, item in value.items() if name != 'frames' for leaf in leaves(item)]
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return [leaf for item in value for leaf in leaves(item)]
    return [value if isinstance(value, str) else json.dumps(value)]


@pytest.mark.parametrize('mode', ['lock-step', 'real-time'])
def test_every_figure_of_metrics_json_is_in_the_report(page, recording, mode):
    shown, scores = page(follow(recording, mode, skip=[5] if mode == 'real-time' else ()))
    scores = json.loads(json.dumps(to_json(scores)))
    assert scores['objects']['1']['J'] < 1  # there is something to tell
    missing = [value for value in leaves(scores) if value and value not in shown.texts]
    assert missing == []


def test_a_report_needs_nothing_from_outside(page, recording):
    shown, _ = page(follow(recording))
    assert shown.open == []  # every tag is closed
    assert shown.links and all(link.startswith('data:image/jpeg;base64,') for link in shown.links)
    assert not {'script', 'link', 'iframe', 'object'} & set(shown.tags)
    assert 'http' not in ''.join(shown.texts) and 'url(' not in ''.join(shown.texts)


def test_what_the_recording_says_is_text(page, recording, tmp_path):
    recording.problems.append(EVIL)
    run = follow(recording, label=EVIL)
    run.recording, run.unusable, run.parameters = EVIL, {3: EVIL}, {'model': EVIL}
    shown, _ = page(run)
    assert 'script' not in shown.tags and shown.open == []
    said = ''.join(shown.texts)
    assert f'Evaluation of {EVIL}' in said
    assert f'1 {EVIL}' in said
    assert f'refused: box of {EVIL}: too small' in said
    assert f'image 3: {EVIL}' in said


def test_a_label_that_no_text_file_can_hold_is_no_obstacle(page, recording):
    shown, _ = page(follow(recording, label='mug \udc80'))
    assert '1 mug \\udc80' in ''.join(shown.texts)


def test_the_worst_moment_is_shown_with_the_truth_beside_it(page, recording):
    run = follow(recording)
    shown, scores = page(run)
    worst = moments(run, scores)[0]
    assert (worst.object_id, worst.index) == (1, 4)
    pictures = [cv2.imdecode(np.frombuffer(base64.b64decode(source.partition(',')[2]), np.uint8), cv2.IMREAD_COLOR)
                for source in shown.sources[:2]]
    truth, prediction = (cv2.cvtColor(picture, cv2.COLOR_BGR2RGB).astype(int) for picture in pictures)
    assert truth.shape == prediction.shape == (120, 160, 3)
    # the lower half of the red disc is tinted in the truth, and as in the recording in the prediction
    x, y = 48, 52
    assert np.abs(truth[y, x] - (0.6 * np.array([230, 60, 40]) + 0.4 * np.array(colour(1)))).max() < 25
    assert np.abs(prediction[y, x] - (230, 60, 40)).max() < 25


def test_worst_moments_lie_apart_and_leave_out_what_is_right(recording):
    run = follow(recording)
    run.images = 100
    scores = Metrics(mean=Accuracy(0.5, 0.5, 0.5), objects={1: ObjectMetrics(frames=FrameScores(
        list(range(12)), [1, 1, .5, .4, .3, .4, .5, .6, .7, .8, .9, 1], [1] * 12))})
    assert [moment.index for moment in moments(run, scores)] == [4, 9]
    assert [moment.value for moment in moments(run, scores)] == pytest.approx([0.65, 0.9])


def test_a_report_without_truth_shows_states_times_and_doubts(page):
    recording = Discs(images=12, annotated=())
    run = follow(recording)
    shown, scores = page(run, recording)
    assert scores.mean is None
    said = ''.join(shown.texts)
    assert 'no ground truth' in said
    assert 'Over time' in said and 'Latency' in said
    assert len(shown.sources) > 0 and 'score 0.900' in said


def test_a_run_that_processed_nothing_still_has_a_report(page):
    recording = Discs(images=3, broken=[0, 1, 2])
    run = Run('discs', 'lock-step', 1.0, 3, 0, 0, unusable=dict.fromkeys(range(3), 'cut off'))
    shown, _ = page(run, recording)
    said = ''.join(shown.texts)
    assert 'image 2: cut off' in said
    assert shown.sources == []


def test_an_empty_recording_still_has_a_report(page):
    shown, _ = page(Run('discs', 'lock-step', 1.0, 0, 0, 0), Discs(images=0))
    assert 'Evaluation of discs' in ''.join(shown.texts)


# --- charts

def test_j_is_drawn_where_it_was_and_prompts_and_states_are_marked():
    svg = timeline(TimelineChart(
        np.array([0.0, 5.0, 10.0]), np.array([1.0, 0.0, 1.0]), np.ones(3), [(0.0, 'tracked'), (4.0, 'lost')],
        [(2.0, 'SET', True), (6.0, 'SET, refused', False)]), 10.0)
    points = [tuple(map(float, point.split(',')))
              for point in re.search(r'class="j" points="([^"]*)"', svg).group(1).split()]
    (x0, y0), (x1, y1), (x2, y2) = points
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)
    assert y0 == y2 < y1  # SVG counts downwards
    assert re.search(r'class="tracked"[^>]*>\s*<title>tracked, 0.00 to 4.00 s', svg)
    assert re.search(r'class="lost"[^>]*>\s*<title>lost, 4.00 to 10.00 s', svg)
    assert svg.count('class="prompt"') == svg.count('class="refused"') == 1


def test_a_long_line_keeps_its_failures():
    values = np.ones(100_000)
    values[[5, 70_001]] = 0.1, 0.2
    times, kept = lowest(np.arange(100_000.0), values)
    assert len(kept) < 1000
    assert {5.0, 70_001.0} <= set(times[kept < 1])
    assert (np.diff(times) > 0).all()


def test_the_histogram_counts_every_image():
    values = np.random.default_rng(1).gamma(4, 0.01, 500)
    svg = histogram([*values, 30.0], {'p50': float(np.median(values))})
    assert sum(int(count) for count in re.findall(r'<title>(\d+) images', svg)) == 501
    assert f'p50 {np.median(values) * 1e3:.1f} ms' in svg


@pytest.mark.parametrize('end', [0.003, 0.7, 1, 12.3, 59, 400, 86_400])
def test_axes_have_a_few_round_values(end):
    values = ticks(end)
    assert 4 <= len(values) <= 10 and values[0] == 0 and values[-1] <= end
    assert nice(end) >= end * (1 - 1e-9)


# --- video

def test_the_video_has_every_image_with_the_truth_outlined(recording, tmp_path):
    seen = []
    assert write_video(follow(recording), recording, tmp_path / 'overlay.mp4', seen.append)
    assert seen == list(range(12))
    video = cv2.VideoCapture(str(tmp_path / 'overlay.mp4'))
    assert video.get(cv2.CAP_PROP_FPS) == pytest.approx(10)
    frames = []
    while (read := video.read())[0]:
        frames.append(read[1])
    assert len(frames) == 12
    truth = draw_truth(np.zeros((120, 160, 3), np.uint8), {1: recording.mask(1, 4)}, white=True)
    outline = truth[45:62].min(2) > 200  # of the half that is not predicted
    calm = frames[4][45:62][outline].astype(int).mean()
    assert calm > 170  # white where the recording is red or grey


def test_in_real_time_the_video_shows_what_was_known_when_the_image_came(recording, tmp_path):
    run = follow(recording, 'real-time')
    run.frames = run.frames[:1]  # known 35 ms after the first image was taken, 65 ms before the second
    assert write_video(run, recording, tmp_path / 'overlay.mp4')
    video = cv2.VideoCapture(str(tmp_path / 'overlay.mp4'))
    first, second = video.read()[1], video.read()[1]
    inside = (slice(34, 46), slice(34, 46))  # of the red disc, which the overlay tints
    tinted = 0.6 * np.array([40, 60, 230]) + 0.4 * np.array(colour(1))[::-1]
    assert np.abs(first[inside].mean((0, 1)) - (40, 60, 230)).max() < 25
    assert np.abs(second[inside].mean((0, 1)) - tinted).max() < 25


def test_a_broken_image_stands_still_in_the_video(tmp_path):
    recording = Discs(images=6, broken=[2, 3])
    run = follow(recording, skip=[2, 3])
    run.unusable = {2: 'cut off', 3: 'cut off'}
    assert write_video(run, recording, tmp_path / 'overlay.mp4')
    assert cv2.VideoCapture(str(tmp_path / 'overlay.mp4')).get(cv2.CAP_PROP_FRAME_COUNT) == 6


def test_no_video_is_written_of_nothing(tmp_path):
    recording = Discs(images=3, broken=[0, 1, 2])
    assert not write_video(Run('discs', 'lock-step', 1.0, 3, 0, 0), recording, tmp_path / 'overlay.mp4')
    assert not (tmp_path / 'overlay.mp4').exists()


# --- a browser

@pytest.mark.slow
@pytest.mark.skipif(not chromium, reason='needs chromium: apt-get install chromium')
def test_a_browser_shows_it(page, recording, tmp_path):
    page(follow(recording))
    subprocess.run([chromium, '--headless', '--no-sandbox', '--disable-gpu', f'--user-data-dir={tmp_path}/profile',
                    '--window-size=1100,1500', f'--screenshot={tmp_path}/page.png',
                    (tmp_path / 'report.html').as_uri()], check=True, capture_output=True, timeout=120)
    picture = cv2.imread(str(tmp_path / 'page.png'))
    assert picture.shape[:2] == (1500, 1100)
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 100  # text, charts and pictures, no blank page
