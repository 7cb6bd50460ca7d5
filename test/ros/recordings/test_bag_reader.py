"""Bags of killed recorders, and bags with other content than ROS 2 messages, are read.

Messages that exist are read, lost ones are counted, and the files are never changed.
"""
import contextlib
import hashlib
import shutil
import sqlite3
import struct

import numpy as np
import pytest

pytest.importorskip('rosbags', reason='needs rosbags (pip install rosbags rosbags-image)')

import lz4.frame
from rclpy.serialization import serialize_message
from rosbags.rosbag2 import CompressionMode, StoragePlugin
from sensor_msgs.msg import Image
from std_msgs.msg import String

from sam2_ros.messages.conversions import from_pixels, to_rgb
from sam2_ros.recordings import bag_sqlite
from sam2_ros.recordings.bag_reader import BagReader
from sam2_ros.recordings.bag_recording import BagRecording
from sam2_ros.recordings.bag_storage import BagError, zstd
from sam2_ros.recordings.bag_writer import type_name, typestore
from sam2_ros.recordings.recording import RecordingError
from testing.recorded_camera import (
    DEPTH,
    IMAGE,
    TRUTH,
    check_all,
    header,
    jpeg,
    labels,
    messages,
    picture,
    stamp,
    write,
)

# --- SQLite files of a killed recorder


def live_database(folder, mode, committed, written):
    """Return a copy of the files of a recorder as a power cut leaves them.

    ``committed`` messages of the camera are in the database, ``written`` more in what the recorder has not finished: a
    write-ahead log, or half a transaction.
    """
    made = next(write(folder / 'made', messages(), StoragePlugin.SQLITE3).glob('*.db3'))
    source = sqlite3.connect(made)
    rows = source.execute('SELECT id, topic_id, timestamp, data FROM messages ORDER BY timestamp').fetchall()
    live = sqlite3.connect(folder / 'live.db3', isolation_level=None)
    live.execute(f'PRAGMA journal_mode = {mode}')
    live.execute('PRAGMA wal_autocheckpoint = 0')
    live.execute('PRAGMA cache_size = 2')  # so that pages of an open transaction reach the file
    live.executescript('\n'.join(line for line in source.iterdump() if 'INSERT INTO "messages"' not in line))
    insert = 'INSERT INTO messages VALUES (?, ?, ?, ?)'
    live.execute('BEGIN')
    live.executemany(insert, rows[:committed])
    live.execute('COMMIT')
    live.execute('PRAGMA wal_checkpoint(TRUNCATE)')
    live.execute('BEGIN')
    live.executemany(insert, rows[committed:committed + written])
    if mode == 'WAL':
        live.execute('COMMIT')
    bag = folder / 'run'
    bag.mkdir()
    for file in folder.glob('live.db3*'):
        shutil.copy(file, bag / file.name.replace('live', 'run_0'))
    live.close()
    source.close()
    return bag, len(rows)


def fingerprint(folder):
    return {path.name: (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
            for path in folder.iterdir()}


@pytest.mark.parametrize('by_file', [False, True])
def test_messages_in_the_log_of_a_killed_recorder_are_read_and_the_bag_is_not_touched(tmp_path, by_file):
    bag, total = live_database(tmp_path, 'WAL', 16, 24)
    before = fingerprint(bag)
    assert {'run_0.db3', 'run_0.db3-wal'} <= before.keys()
    bag.chmod(0o555)
    with BagRecording(bag / 'run_0.db3' if by_file else bag) as recording:
        told = [problem for problem in recording.problems if 'metadata.yaml' not in problem]
        assert len(told) == 1 and told[0].startswith(
            f'run_0.db3: the recorder was killed or still runs: 24 of {total} messages are read from run_0.db3-wal, ')
        assert len(recording.problems) == (1 if by_file else 2)
        recording.problems.clear()
        check_all(recording)
    bag.chmod(0o755)
    assert fingerprint(bag) == before


def test_half_of_a_transaction_is_undone(tmp_path):
    bag, _ = live_database(tmp_path, 'DELETE', 16, 24)
    assert (bag / 'run_0.db3-journal').stat().st_size
    before = fingerprint(bag)
    with BagReader(bag) as reader:
        assert sum(1 for _ in reader.messages(reader.channels)) == 16
        assert any('those of the write that it did not finish are lost' in problem for problem in reader.problems)
    assert fingerprint(bag) == before


@pytest.mark.parametrize('trouble', ['disk full', 'damaged log'])
def test_a_log_that_cannot_be_read_is_named_with_its_bytes_and_the_cure(tmp_path, monkeypatch, trouble):
    bag, _ = live_database(tmp_path, 'WAL', 16, 24)
    log = bag / 'run_0.db3-wal'
    if trouble == 'disk full':
        monkeypatch.setattr(bag_sqlite.shutil, 'disk_usage', lambda _: shutil._ntuple_diskusage(10, 9, 1))
        expected = f'{log.stat().st_size} bytes in run_0.db3-wal, left by a recorder that was killed, are not read'
    else:
        monkeypatch.setattr(bag_sqlite.shutil, 'copyfile', lambda *_: (_ for _ in ()).throw(OSError(5, 'I/O error')))
        expected = f'{log.stat().st_size} bytes in run_0.db3-wal, left by a recorder that was killed, cannot be read'
    with BagReader(bag) as reader:
        assert sum(1 for _ in reader.messages(reader.channels)) == 16
        told, = (problem for problem in reader.problems if 'db3-wal' in problem)
        assert expected in told and ('set TMPDIR' in told or '.recover' in told)


@pytest.mark.parametrize('damage', ['cut in its head', 'cut in a frame', 'noise', 'a wrong byte'])
def test_bytes_of_a_log_that_cannot_be_read_are_counted(tmp_path, damage):
    bag, _ = live_database(tmp_path, 'WAL', 16, 24)
    log = bag / 'run_0.db3-wal'
    data = bytearray(log.read_bytes())
    whole, middle = len(data), len(data) // 2
    if damage == 'a wrong byte':
        data[middle] ^= 1
    elif damage == 'noise':
        data = np.random.default_rng(0).bytes(whole)
    else:
        data = data[:20 if damage == 'cut in its head' else middle]
    log.write_bytes(data)
    with BagReader(bag / 'run_0.db3') as reader:
        assert sum(1 for _ in reader.messages(reader.channels)) == 16
        lost = len(data) - (32 if 'in its head' not in damage and damage != 'noise' else 0)  # the head of the log
        assert f'{lost} of {len(data)} bytes of run_0.db3-wal cannot be read: cut off' in reader.problems[0]


def test_frames_of_earlier_rounds_behind_the_end_of_a_log_are_no_problem(tmp_path):
    live = sqlite3.connect(next(write(tmp_path / 'made', messages(), StoragePlugin.SQLITE3).glob('*.db3')))
    live.execute('PRAGMA journal_mode = WAL')
    for value, times in (('a', 50), ('b', 1)):  # the second round overwrites only the beginning of the log
        for number in range(times):
            live.execute(f'INSERT INTO messages SELECT NULL, topic_id, timestamp + 1, data FROM messages '
                         f'WHERE id = {number + 1}')
        live.commit()
        if value == 'a':
            live.execute('PRAGMA wal_checkpoint(RESTART)')
    bag = tmp_path / 'run'
    bag.mkdir()
    for file in (tmp_path / 'made').glob('*.db3*'):
        shutil.copy(file, bag / file.name)
    live.close()
    with BagReader(next(bag.glob('*.db3'))) as reader:
        assert ' 1 of ' in reader.problems[0] and 'cannot be read' not in reader.problems[0]


def test_a_log_with_nothing_in_it_is_no_problem(tmp_path):
    bag, _ = live_database(tmp_path, 'WAL', 40, 0)
    (bag / 'run_0.db3-wal').write_bytes(b'')
    with BagRecording(bag / 'run_0.db3') as recording:
        check_all(recording)
        assert not recording.problems


def test_a_database_that_was_cut_off_is_read_up_to_there(tmp_path):
    file, = write(tmp_path / 'run', messages(60), StoragePlugin.SQLITE3).glob('*.db3')
    file.write_bytes(file.read_bytes()[:file.stat().st_size // 2])
    with BagRecording(tmp_path / 'run') as recording:
        assert 20 < len(recording.stamps) < 40
        for index in range(len(recording.stamps)):
            np.testing.assert_array_equal(to_rgb(recording.image(index)), picture(index))
        text = '\n'.join(recording.problems)
        assert 'run.db3: damaged or cut off' in text and '.recover' in text


# --- mcap and zstd files that are not finished or cut off

def test_an_mcap_file_is_read_as_far_as_the_recorder_came(tmp_path):
    """Wherever the file is cut, exactly the messages that are whole in it are read, byte for byte."""
    records = [(topic, (Image, serialize_message(message)), time) for topic, message, time in messages()
               if topic in (IMAGE, DEPTH)]
    data = mcap(records, finished=False)
    ends = [data.index(raw) + len(raw) for _, (_, raw), _ in records]
    rng = np.random.default_rng(0)
    for cut in (len(data), *rng.integers(ends[0], len(data), 30)):
        (tmp_path / 'run.mcap').write_bytes(data[:cut])
        with BagReader(tmp_path / 'run.mcap') as reader:
            found = [(channel.topic, time, raw) for channel, time, raw in reader.messages(reader.channels)]
            whole = [(topic, time, raw) for (topic, (_, raw), time), end in zip(records, ends, strict=True)
                     if end <= cut]
            assert sorted(found) == sorted(whole)
            problem, = reader.problems
            assert problem.startswith('run.mcap: the recorder did not finish it') and 'mcap recover' in problem


@pytest.mark.parametrize('compression', ['zstd', 'lz4'])
def test_chunks_of_an_unfinished_mcap_file_are_unpacked(tmp_path, compression):
    (tmp_path / 'run.mcap').write_bytes(mcap(messages(), compression=compression, finished=False))
    with BagRecording(tmp_path / 'run.mcap') as recording:
        assert recording.problems.pop().startswith('run.mcap: the recorder did not finish it')
        check_all(recording)


def test_zeros_at_the_end_after_a_power_cut_are_counted(tmp_path):
    (tmp_path / 'run.mcap').write_bytes(mcap(messages(), finished=False) + bytes(4096))
    with BagRecording(tmp_path / 'run.mcap') as recording:
        assert ', 4096 bytes at its end skipped; ' in recording.problems.pop()
        check_all(recording)


@pytest.mark.parametrize('storage', [StoragePlugin.MCAP, StoragePlugin.SQLITE3])
def test_a_packed_file_without_metadata_is_unpacked(tmp_path, storage):
    bag = write(tmp_path / 'run', messages(), storage, CompressionMode.FILE)
    (bag / 'metadata.yaml').unlink()
    with BagRecording(bag) as recording:
        assert 'read without metadata.yaml' in recording.problems.pop()
        check_all(recording)


def test_a_packed_file_that_was_cut_off_is_read_as_far_as_it_goes(tmp_path):
    bag = write(tmp_path / 'run', messages(40), mode=CompressionMode.FILE)
    file, = bag.glob('*.mcap.zstd')
    file.write_bytes(file.read_bytes()[:file.stat().st_size // 2])
    with BagRecording(bag) as recording:
        assert 10 < len(recording.stamps) < 30
        text = '\n'.join(recording.problems)
        assert 'run.mcap.zstd: cut off; read as far as it goes' in text
        assert f'of the {len(messages(40))} messages that metadata.yaml counts are there' in text


def test_a_full_disk_while_unpacking_is_named(tmp_path, monkeypatch):
    bag = write(tmp_path / 'run', messages(), mode=CompressionMode.FILE)
    monkeypatch.setattr('sam2_ros.recordings.bag_reader.unpack_file',
                        lambda *_: (_ for _ in ()).throw(OSError(28, 'No space')))
    with pytest.raises(BagError, match='run.mcap.zstd cannot be unpacked .No space.; .* is full: set TMPDIR'):
        BagReader(bag)


@pytest.mark.parametrize(('content', 'reason'), [
    ('[', 'it cannot be read (while parsing'), ('\0', 'it cannot be read (unacceptable character'),
    *((content, 'it lists no files;') for content in (
        '', 'hello: world', 'rosbag2_bagfile_information: {version: 99}', 'rosbag2_bagfile_information: null',
        'rosbag2_bagfile_information: {relative_file_paths: run.mcap}',
        'rosbag2_bagfile_information: {relative_file_paths: []}',
        'rosbag2_bagfile_information: {relative_file_paths: [1, run.mcap]}'))])
def test_metadata_that_cannot_be_used_is_named_and_the_files_are_read(tmp_path, content, reason):
    bag = write(tmp_path / 'run', messages())
    (bag / 'metadata.yaml').write_text(content)
    with BagRecording(bag) as recording:
        told = recording.problems.pop()
        assert told.startswith(f'read without metadata.yaml: {reason}') and '\n' not in told
        check_all(recording)


@pytest.mark.parametrize('files', ['3', '[1, {path: null}]', '[{path: run.mcap, message_count: many}]'])
def test_invalid_counts_in_metadata_do_not_matter(tmp_path, files):
    bag = write(tmp_path / 'run', messages())
    (bag / 'metadata.yaml').write_text(f'rosbag2_bagfile_information: {{relative_file_paths: [run.mcap], '
                                       f'files: {files}, message_count: many}}')
    with BagRecording(bag) as recording:
        check_all(recording)
        assert not recording.problems


def test_paths_that_are_not_bags_are_refused_with_a_cure(tmp_path):
    bag = write(tmp_path / 'run', messages(4))
    (tmp_path / 'one.mcap').write_bytes(b'#ROSBAG V2.0\n')
    (tmp_path / 'log').mkdir()
    (tmp_path / 'log' / 'a.db3-wal').write_bytes(b'log')
    for path, reason in ((bag / 'metadata.yaml', "neither a bag's folder nor one of its"),
                         ('/dev/null', "neither a bag's folder nor one of its"),
                         (tmp_path / 'one.mcap', 'a bag of ROS 1; convert it'),
                         (tmp_path / 'log', 'a.db3-wal is there without a.db3; put that file beside it')):
        with pytest.raises(RecordingError, match=reason):
            BagRecording(path)


def test_a_wrong_number_of_messages_in_the_metadata_is_reported(tmp_path):
    bag = write(tmp_path / 'run', messages())
    metadata = bag / 'metadata.yaml'
    metadata.write_text(metadata.read_text().replace('  message_count: 40', '  message_count: 99'))
    with BagRecording(bag) as recording:
        assert recording.problems.pop() == '40 of the 99 messages that metadata.yaml counts are there'
        check_all(recording)


def test_a_file_that_the_metadata_does_not_list_is_named(tmp_path):
    bag = write(tmp_path / 'run', messages())
    shutil.copy(bag / 'run.mcap', bag / 'other.mcap')
    with BagRecording(bag) as recording:
        assert recording.problems.pop() == 'other.mcap: not in metadata.yaml, skipped; `ros2 bag reindex` adds it'
        check_all(recording)


# --- other content

def record(kind, body):
    return bytes([kind]) + struct.pack('<Q', len(body)) + body


def text(value):
    value = value.encode() if isinstance(value, str) else value
    return struct.pack('<I', len(value)) + value


def channel(number, topic, kind, language, definition, encoding='cdr'):
    """Return schema and channel, or the channel alone if ``language`` is None."""
    schema = b'' if language is None else record(3, struct.pack('<H', number) + text(kind) + text(language)
                                                 + text(definition))
    return schema + record(4, struct.pack('<HH', number, 0 if language is None else number) + text(topic)
                           + text(encoding) + text(b''))


def mcap_message(number, data, time):
    return record(5, struct.pack('<HIQQ', number, 0, time, time) + data)


def chunk(records, start, end, compression=''):
    packed = {'': lambda data: data, 'zstd': zstd.compress, 'lz4': lz4.frame.compress,
              'secret': lambda data: data[::-1]}[compression](records)
    return record(6, struct.pack('<QQQI', start, end, len(records), 0) + text(compression)
                  + struct.pack('<Q', len(packed)) + packed)


def mcap(records, profile='ros2', compression='', more=b'', finished=True):
    """Return an mcap file by its specification, without an index; ``more``: records before those of the camera."""
    out, numbers = b'', {}
    for topic, message, time in records:
        kind, raw = message if isinstance(message, tuple) else (type(message), serialize_message(message))
        kind = type_name(kind)
        if topic not in numbers:
            numbers[topic] = len(numbers) + 1
            out += channel(numbers[topic], topic, kind, 'ros2msg', typestore().generate_msgdef(kind)[0])
        out += mcap_message(numbers[topic], raw, time)
    times = [time for *_, time in records]
    data = record(1, text(profile) + text('test')) + more + chunk(out, min(times), max(times), compression)
    data += record(15, bytes(4)) + record(2, bytes(20)) + b'\x89MCAP0\r\n' if finished else b''
    return b'\x89MCAP0\r\n' + data


FOREIGN = {
    'json': channel(90, '/detections', 'boxes', 'jsonschema', '{"type": "object"}', 'json') + mcap_message(
        90, b'{"x": 1}', stamp(0)),
    'protobuf': channel(90, '/pose', 'foxglove.Pose', 'protobuf', b'\xff\xfe\x00\xc3', 'protobuf') + mcap_message(
        90, b'\x08\x01', stamp(0)),
    'no schema': channel(90, '/bytes', '', None, '', 'x') + mcap_message(90, b'abc', stamp(0)),
    'unreadable definition': channel(90, '/odd', 'odd_msgs/msg/Odd', 'ros2msg', 'this is ]] no definition\x00') +
    mcap_message(90, b'\0\1\0\0', stamp(0)),
    'unknown language': channel(90, '/odd', 'odd_msgs/msg/Odd', 'unknown', '') + mcap_message(90, b'\0\1', stamp(0)),
    'private record': record(0x80, b'of an application'),
    'attachment': record(9, bytes(16) + text('calibration.yaml') + text('text/plain') + bytes(12)),
    'other types': channel(90, IMAGE, 'std_msgs/msg/String', 'ros2msg', 'string data') + mcap_message(
        90, serialize_message(String(data='no image')), stamp(0)),
}


@pytest.mark.parametrize('what', FOREIGN)
def test_a_bag_is_read_whatever_else_is_in_it(tmp_path, what):
    (tmp_path / 'run.mcap').write_bytes(mcap(messages(), more=FOREIGN[what]))
    with BagRecording(tmp_path / 'run.mcap', image_topic=IMAGE) as recording:
        check_all(recording)


@pytest.mark.parametrize('profile', ['', 'ros2', 'mine'])
def test_the_profile_does_not_matter_if_the_channels_are_those_of_ros(tmp_path, profile):
    (tmp_path / 'run.mcap').write_bytes(mcap(messages(), profile=profile))
    with BagRecording(tmp_path / 'run.mcap') as recording:
        check_all(recording)


def test_a_chunk_of_other_topics_in_an_unknown_compression_does_not_matter(tmp_path):
    """In a finished file, the index lists the topics of a chunk."""
    data = mcap(messages(), more=chunk(FOREIGN['json'], 1, 2, 'secret'))
    (tmp_path / 'run.mcap').write_bytes(data)
    with BagRecording(tmp_path / 'run.mcap') as recording:
        assert recording.problems.pop() == ("run.mcap: chunks compressed with 'secret' cannot be read; `mcap compress` "
                                            'changes them')
        check_all(recording)


def test_unreadable_chunks_of_other_topics_do_not_matter_in_a_file_with_an_index(tmp_path):
    large = [('/notes', String(data='x' * 2**21), stamp(0) - 1)]  # larger than a chunk
    file, = write(tmp_path / 'run', large + messages(), mode=CompressionMode.STORAGE).glob('*.mcap')
    data, name = file.read_bytes(), text('zstd')
    first, indexed = data.index(name), data.index(name, data.rindex(b'serialized_metadata'))
    for at in (first, indexed):
        data = data[:at] + text('lzma') + data[at + len(name):]
    file.write_bytes(data)
    with BagRecording(tmp_path / 'run') as recording:
        check_all(recording)
    with BagReader(tmp_path / 'run') as reader:
        assert sum(1 for _ in reader.messages(reader.channels)) == len(messages())
        problem, = reader.problems
        assert problem == "run.mcap: chunks compressed with 'lzma' cannot be read; `mcap compress` changes them"


def test_needed_chunks_in_an_unknown_compression_are_named(tmp_path):
    (tmp_path / 'run.mcap').write_bytes(mcap(messages(), compression='secret'))
    with pytest.raises(RecordingError, match="run.mcap: chunks compressed with 'secret' cannot be read"):
        BagRecording(tmp_path / 'run.mcap')


def test_sqlite_topics_with_unknown_definitions_do_not_matter(tmp_path):
    """rosbag2 writes the language "unknown" if a recorder did not find a definition."""
    file, = write(tmp_path / 'run', messages(), StoragePlugin.SQLITE3).glob('*.db3')
    with sqlite3.connect(file) as database:
        database.execute("UPDATE message_definitions SET encoding = 'unknown', encoded_message_definition = ''")
    database.close()
    with BagRecording(tmp_path / 'run') as recording:
        check_all(recording)


def test_a_wanted_channel_in_another_encoding_is_named(tmp_path):
    (tmp_path / 'run.mcap').write_bytes(mcap(messages(), more=channel(
        90, '/front', 'foxglove.CompressedImage', 'protobuf', b'\xff', 'protobuf') + mcap_message(90, b'\1', stamp(0))))
    with pytest.raises(RecordingError) as failure:
        BagRecording(tmp_path / 'run.mcap', image_topic='/front')
    assert 'not in CDR, as ROS 2 records: /front (foxglove.CompressedImage in protobuf, 1 ' in str(failure.value)


@pytest.mark.parametrize('topic', [IMAGE, TRUTH])
@pytest.mark.parametrize('storage', [StoragePlugin.MCAP, StoragePlugin.SQLITE3])
def test_a_topic_that_had_two_types_is_read_as_the_one_with_more_messages(tmp_path, topic, storage):
    """The other type comes first, as after the driver was changed."""
    from rosbags.rosbag2 import Writer
    with Writer(tmp_path / 'run', version=9, storage_plugin=storage) as writer:
        connections = {}
        for name, message, time in [(topic, jpeg(20), stamp(0)), (topic, jpeg(21), stamp(1)), *messages()]:
            key = name, type_name(type(message))
            if key not in connections:
                connections[key] = writer.add_connection(*key, typestore=typestore())
            writer.write(connections[key], time, serialize_message(message))
    with BagRecording(tmp_path / 'run') as recording:
        count = 12 if topic == IMAGE else 3
        assert recording.problems.pop() == (
            f'{topic}: 2 messages of type sensor_msgs/msg/CompressedImage skipped: the topic has {count} of type '
            f'sensor_msgs/msg/Image')
        check_all(recording)


def test_messages_without_chunks_come_in_order_of_their_times(tmp_path):
    """Recorders write messages as they arrive, which may be another order."""
    records = [(IMAGE, from_pixels(picture(frame), 'rgb8', header(frame)), stamp(frame)) for frame in range(6)]
    order = [0, 2, 1, 5, 4, 3]
    data = record(1, text('ros2') + text('test')) + channel(1, IMAGE, 'sensor_msgs/msg/Image', 'ros2msg', '')
    for frame in order:
        data += mcap_message(1, serialize_message(records[frame][1]), stamp(frame))
    (tmp_path / 'run.mcap').write_bytes(b'\x89MCAP0\r\n' + data + record(15, bytes(4)) + record(2, bytes(20))
                                        + b'\x89MCAP0\r\n')
    with BagReader(tmp_path / 'run.mcap') as reader:
        assert [time for _, time, _ in reader.messages(reader.channels)] == [stamp(frame) for frame in range(6)]
        assert [time for _, time, _ in reader.messages(reader.channels, stamp(2), stamp(4))] == [stamp(2), stamp(3)]
        assert reader.problems == []


# --- damaged at random

@pytest.mark.fuzz
@pytest.mark.parametrize('storage', [StoragePlugin.MCAP, StoragePlugin.SQLITE3])
def test_damaged_bags_are_read_or_refused_and_no_message_is_made_up(rounds, tmp_path, storage):
    """Every message that is read was recorded, or was changed by the damage itself."""
    records = [(IMAGE, from_pixels(picture(frame)[:8, :8], 'rgb8', header(frame)), stamp(frame)) for frame in range(20)]
    records += [(TRUTH, from_pixels(labels(frame)[:8, :8], 'mono16', header(frame)), stamp(frame))
                for frame in range(20)]
    source = next(path for path in write(tmp_path / 'run', records, storage).iterdir() if path.suffix != '.yaml')
    whole, damaged = source.read_bytes(), tmp_path / f'damaged{source.suffix}'
    rng, read = np.random.default_rng(7), 0
    for _ in range(rounds(100, 5_000)):
        data = bytearray(whole)
        for _ in range(rng.integers(1, 30)):
            data[rng.integers(len(data))] = rng.integers(256)
        if rng.random() < 0.5:
            data = data[:rng.integers(len(data))]
        damaged.write_bytes(data)
        try:
            with BagRecording(damaged, image_topic=IMAGE) as recording:
                for index in range(len(recording.stamps)):
                    with contextlib.suppress(RecordingError):
                        recording.image(index), recording.truth(index)
                read += 1
        except RecordingError as error:
            assert str(error).startswith(f'bag {damaged}: ')
    assert read > 5
