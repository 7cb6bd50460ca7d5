"""Frames of video files: each once, in order, forwards and backwards."""
import numpy as np
import pytest

from sam2_core.offline import video
from sam2_core.offline.frames import FrameError, UnreadableFrame
from sam2_core.offline.sources import open_frames
from sam2_core.offline.video import VideoFrames
from testing.dataset_files import jpeg, scene
from testing.video_files import decoded, rotate, vary_rate, write_video

COUNT = 40


@pytest.fixture
def path(tmp_path):
    return write_video(tmp_path / 'clip.mp4', [scene(frame)[0] for frame in range(COUNT)])


def check(path, frames: range) -> None:
    """Compare with a decoder that goes through the whole file once."""
    expected = decoded(path)
    read = list(VideoFrames(path).read(frames))
    assert [frame for frame, _ in read] == list(frames)
    for frame, image in read:
        np.testing.assert_array_equal(image, expected[frame])


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(video, 'BLOCK_BYTES', 7 * scene(0)[0].nbytes)


@pytest.mark.parametrize('frames', [range(COUNT), range(13, 29), range(COUNT - 1, -1, -1), range(31, 4, -1),
                                    range(5, 4, -1), range(0)], ids=str)
def test_any_part_is_read_in_both_directions(path, frames, small_blocks):
    check(path, frames)


def test_a_varying_frame_rate_neither_drops_nor_repeats_frames(path, small_blocks):
    vary_rate(path, [1 + frame * frame % 7 for frame in range(COUNT)])
    source = VideoFrames(path)
    assert len({*np.diff(source.index.times).round(3)}) > 3  # the file does vary
    assert len(source) == COUNT
    check(path, range(COUNT))
    check(path, range(COUNT - 1, -1, -1))


def test_the_rate_is_the_mean_of_a_varying_one(path):
    durations = [1 + frame % 3 for frame in range(COUNT)]
    vary_rate(path, durations)
    assert VideoFrames(path).rate == pytest.approx(10 * (COUNT - 1) / sum(durations[:-1]), rel=1e-3)


def test_a_rotated_video_is_read_as_players_show_it(path):
    stored = decoded(path)
    rotate(path)
    (_, first), *_ = VideoFrames(path).read(range(1))
    np.testing.assert_array_equal(first, np.rot90(stored[0], -1))


def test_a_video_that_ends_early_has_the_frames_that_are_there(tmp_path):
    path = write_video(tmp_path / 'clip.avi', [scene(frame)[0] for frame in range(COUNT)], codec='MJPG')
    path.write_bytes(path.read_bytes()[:path.stat().st_size * 6 // 10])
    lines = []
    source = VideoFrames(path, notice=lines.append)
    assert len(source) == len(decoded(path)) < COUNT
    assert lines == [f'clip.avi: {len(source)} frames can be decoded, its header says {COUNT}; if the video is '
                     f'incomplete, copy it again']


def test_seeking_that_cannot_be_proved_is_replaced_by_decoding(path, small_blocks, monkeypatch):
    lines = []
    source = VideoFrames(path, notice=lines.append)
    expected = decoded(path)
    monkeypatch.setattr(video.cv2, 'CAP_PROP_POS_MSEC', video.cv2.CAP_PROP_POS_AVI_RATIO)  # seeks to somewhere else
    read = list(source.read(range(COUNT - 1, -1, -1)))
    assert [frame for frame, _ in read] == list(range(COUNT))[::-1]
    for frame, image in read:
        np.testing.assert_array_equal(image, expected[frame])
    assert lines == ['clip.mp4: seeking in it is not exact; it is decoded from its start instead, which takes longer '
                     'backwards']


def test_a_file_that_changes_while_it_is_read_is_noticed(path):
    source = VideoFrames(path)
    write_video(path, [scene(frame)[0] for frame in range(COUNT, 0, -2)])
    read = dict(source.read(range(COUNT)))
    assert isinstance(read[0], UnreadableFrame)
    assert 'is decoded differently from before' in str(read[0])
    assert 'has the file changed?' in str(read[COUNT - 1])


@pytest.mark.parametrize('content, reason', [(b'', 'not a video'), (b'MZ' * 400, 'not a video')])
def test_what_is_no_video_is_refused_with_a_cure(tmp_path, content, reason):
    (tmp_path / 'clip.mp4').write_bytes(content)
    with pytest.raises(FrameError, match=f'clip.mp4: {reason}.*convert it, for example with ffmpeg'):
        open_frames(tmp_path / 'clip.mp4')


def test_one_picture_is_refused_although_opencv_would_open_it(tmp_path):
    (tmp_path / 'img01.jpg').write_bytes(jpeg(scene(0)[0]))
    with pytest.raises(FrameError, match='img01.jpg: one picture; give the folder that has all frames'):
        open_frames(tmp_path / 'img01.jpg')


def test_a_missing_file_and_a_range_for_a_video_are_refused(tmp_path, path):
    with pytest.raises(FrameError, match='none.mp4: no such file or folder'):
        open_frames(tmp_path / 'none.mp4')
    with pytest.raises(FrameError, match='range 0,100: a video has 8 bits'):
        open_frames(path, (0, 100))
