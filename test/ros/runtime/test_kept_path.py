"""Files that keep_objects names."""
from pathlib import Path

from sam2_ros.runtime.kept_path import kept_path


def test_home_and_variables_are_replaced_and_links_followed(monkeypatch, tmp_path):
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.setenv('ROBOT', 'r2')
    assert kept_path('~/$ROBOT/objects.safetensors') == tmp_path / 'r2' / 'objects.safetensors'
    assert kept_path('$HOME/objects.safetensors') == tmp_path / 'objects.safetensors'
    (tmp_path / 'link.safetensors').symlink_to(tmp_path / 'elsewhere' / 'objects.safetensors')
    assert kept_path(str(tmp_path / 'link.safetensors')) == tmp_path / 'elsewhere' / 'objects.safetensors'


def test_each_of_several_cameras_has_a_file_of_its_own():
    assert kept_path('/var/objects.safetensors', 'front') == Path('/var/objects.front.safetensors')
    assert kept_path('/var/my.objects.safetensors', 'left') == Path('/var/my.objects.left.safetensors')
