"""Replacement of whole files."""
import os

import pytest

from sam2_core.files import replacing


def test_a_file_is_replaced_when_the_block_ends(tmp_path):
    path = tmp_path / 'metrics.json'
    path.write_text('old')
    with replacing(path) as part:
        part.write_text('new')
        assert path.read_text() == 'old'
    assert path.read_text() == 'new'
    assert list(tmp_path.iterdir()) == [path]


def test_a_durable_file_is_on_the_disk_before_it_takes_the_name_and_its_folder_after(tmp_path, monkeypatch):
    path, flushed = tmp_path / 'objects.safetensors', []
    path.write_text('old')

    def fsync(descriptor):
        flushed.append((os.readlink(f'/proc/self/fd/{descriptor}'), path.read_text()))
    monkeypatch.setattr(os, 'fsync', fsync)
    with replacing(path, durable=True) as part:
        part.write_text('new')
    assert flushed == [(f'{path}.part', 'old'), (str(tmp_path), 'new')]


def test_a_file_is_left_alone_when_writing_fails(tmp_path):
    path = tmp_path / 'metrics.json'
    path.write_text('old')
    with pytest.raises(OSError, match='disk full'), replacing(path) as part:
        part.write_text('ne')
        raise OSError('disk full')
    assert path.read_text() == 'old'
    assert list(tmp_path.iterdir()) == [path]


def test_nothing_is_left_of_a_new_file_when_writing_fails(tmp_path):
    with pytest.raises(KeyboardInterrupt), replacing(tmp_path / 'metrics.json'):
        raise KeyboardInterrupt
    assert not any(tmp_path.iterdir())
