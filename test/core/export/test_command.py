"""Export: traced stages equal the model, and the command and the build script report errors."""
import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sam2_core import Prompt, StreamTracker
from sam2_core.approximations import pool_memory, quantize_encoder
from sam2_core.export import ExportError, Sizes, cli, export_onnx, stages, verify
from sam2_core.export.graph_model import GraphModel
from sam2_core.export.verify import differences
from sam2_core.export.write import BUILD_SCRIPT, description
from testing import comparisons
from testing.graph_tracker import GraphTracker
from testing.small_edgetam import small_edgetam


@pytest.fixture(scope='module', params=['nano', 'sam2.1_hiera_tiny', 'sam2_hiera_tiny', 'small edgetam'])
def model(request):
    """Return a model with random weights, in which every object is visible."""
    if request.param == 'small edgetam':
        return small_edgetam()
    pair = comparisons.make_pair(request.param, image_size=128)
    pair.set_object_score_bias(4.0)
    return pair.ours


@pytest.mark.parametrize('sizes', [Sizes((1, 3)), Sizes((2,), memory_frames=10, pointers=19, points=1)])
def test_traced_stages_compute_the_same_as_the_model(model, sizes):
    """Before PyTorch's exporter runs: fused layers, empty rows, hidden points and the choice of masks."""
    graph_model = GraphModel(model)

    def run(stage, inputs):
        with torch.enable_grad():
            return stage.run(graph_model, tuple(inputs.values()))

    found = list(differences(model, stages(model.config, sizes), run))
    assert len(found) == 4 + 6 * len(sizes.objects) + 7
    assert [d for d in found if d.largest > 1e-5 * max(1, d.scale)] == []


class TracedTracker(GraphTracker):
    """Tracker on the stages as they are before PyTorch's exporter runs."""

    def __init__(self, model, sizes):
        every = stages(model.config, sizes)
        self.about = description(model, sizes, every)
        self.model, self.stages = GraphModel(model), {stage.name: stage for stage in every}
        self.config, self.objects, self.banks = model.config, sizes.objects[0], {}

    def run(self, graph, inputs):
        stage = self.stages[graph]
        with torch.enable_grad():
            outputs = stage.run(self.model, [torch.from_numpy(inputs[port.name]) for port in stage.inputs])
        return {port.name: output.detach().numpy() for port, output in zip(stage.outputs, outputs, strict=True)}


def test_a_stream_of_edgetam_on_traced_stages_equals_the_tracker(scene):
    """Memory frames of a few tokens are stored and attended to by the rules of model.json."""
    model = small_edgetam()
    tracker, traced = StreamTracker(model), TracedTracker(model, Sizes((2,), memory_frames=8, pointers=17))
    script = {0: [Prompt(1, box=scene.box(1))], 1: [Prompt(2, mask=scene.truth(2, 1))],
              3: [Prompt(3, points=[(20, 200)], labels=[1])], 5: [Prompt(1, points=[(95, 70), (9, 9)], labels=[1, 0])]}
    for time in range(9):
        image, prompts = scene.image(time), script.get(time, [])
        expected = tracker.step(image, prompts).objects
        found = traced.step(image, {prompt.object_id: prompt for prompt in prompts})
        assert list(found) == list(expected)
        for object_id, item in expected.items():
            assert item.logits.std() > 0.01
            torch.testing.assert_close(torch.from_numpy(found[object_id]), item.logits, atol=1e-3, rtol=0)


def test_pooled_memory_is_exported_too(nano):
    model = copy.deepcopy(nano)
    pool_memory(model, 2)
    graph_model = GraphModel(model)
    stage = next(stage for stage in stages(model.config, Sizes((2,))) if stage.kind == 'attend_memory')

    def run(stage, inputs):
        with torch.enable_grad():
            return stage.run(graph_model, tuple(inputs.values()))

    pooled, = differences(model, [stage], run)
    exact, = differences(nano, [stage], run)
    assert pooled.largest < 1e-5 * pooled.scale < exact.largest


def test_int8_encoder_is_refused(nano):
    model = copy.deepcopy(nano)
    quantize_encoder(model)
    with pytest.raises(ValueError, match='nano with an int8 encoder: load it without int8_encoder'):
        GraphModel(model)


def test_exporting_leaves_the_model_as_it_was(nano, scene):
    model = copy.deepcopy(nano)
    before = StreamTracker(model).step(scene.image(0), [Prompt(1, box=scene.box(1))]).objects[1].logits
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    GraphModel(model)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    after = StreamTracker(model).step(scene.image(0), [Prompt(1, box=scene.box(1))]).objects[1].logits
    assert torch.equal(before, after)


@pytest.mark.parametrize(('arguments', 'message'), [
    (['--model', 'giant'], "model 'giant' is not known: choose one of nano, "),
    ([], 'neither a model name nor a checkpoint: give a checkpoint, or one of nano, '),
    (['--checkpoint', 'missing.pt'], 'checkpoint missing.pt: no such file'),
    (['--model', 'nano', '--image-size', '100'], 'image_size 100: must be a positive multiple of 32'),
    (['--model', 'nano', '--objects', '1', '0'], 'objects 0: must be a whole number, 1 or more'),
    (['--model', 'nano', '--memory-frames', '-1'], 'memory_frames -1: must be a whole number, 1 or more'),
])
def test_command_names_what_is_wrong(arguments, message, tmp_path, capsys):
    assert cli.main([*arguments, '--onnx', str(tmp_path / 'graphs')]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / 'graphs').exists()


def test_command_says_that_the_folder_is_a_file(tmp_path, capsys):
    (tmp_path / 'file').touch()
    assert cli.main(['--model', 'nano', '--onnx', str(tmp_path / 'file')]) == 2
    assert f"'{tmp_path / 'file'}'" in capsys.readouterr().err


def test_missing_packages_are_reported_with_the_cure(nano, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, 'onnxscript', None)
    with pytest.raises(ExportError, match='onnxscript cannot be imported: pip install onnxscript'):
        export_onnx(nano, tmp_path)
    monkeypatch.setitem(sys.modules, 'onnxruntime', None)
    assert cli.main(['--model', 'nano', '--onnx', str(tmp_path), '--verify']) == 2
    assert capsys.readouterr().err == ('sam2_export: onnxscript and onnxruntime cannot be imported: '
                                       'pip install onnxscript onnxruntime\n')
    with pytest.raises(ExportError, match='pip install onnxruntime'):
        next(verify(nano, tmp_path, []))


def test_core_does_not_need_the_packages():
    code = ('import sys; sys.modules.update(onnx=None, onnxscript=None, onnxruntime=None); '
            'import sam2_core, sam2_core.export.cli; sam2_core.export.cli.parser()')
    subprocess.run([sys.executable, '-c', code], check=True, cwd=Path(__file__).parents[3])


# --- the script for TensorRT, with a trtexec that only records its arguments

@pytest.fixture
def build(tmp_path):
    """Return a function that runs the script beside two graphs, and returns its result and the calls of trtexec."""
    folder, calls = tmp_path / 'graphs', tmp_path / 'calls'
    folder.mkdir()
    for name in ('encode_image.onnx', 'attend_memory_1.onnx'):
        (folder / name).touch()
    (folder / BUILD_SCRIPT.name).write_text(BUILD_SCRIPT.read_text())
    trtexec = tmp_path / 'trtexec'
    trtexec.write_text(f'#!/bin/sh\necho "$@" >> {calls}\n'
                       'for option; do case $option in --saveEngine=*) touch "${option#*=}";; esac; done\n'
                       'case "$1" in *$BROKEN*) exit 1;; esac\n')
    trtexec.chmod(0o755)

    def build(**environment):
        answer = subprocess.run(['sh', folder / BUILD_SCRIPT.name], capture_output=True, text=True, env={
            'PATH': os.environ['PATH'], 'TRTEXEC': str(trtexec), 'BROKEN': 'none', **environment})
        asked = calls.read_text().splitlines() if calls.exists() else []
        calls.unlink(missing_ok=True)
        return answer, asked, folder
    return build


def test_script_builds_an_engine_of_every_graph_once(build):
    answer, asked, folder = build()
    assert answer.returncode == 0, answer.stderr
    assert {path.name for path in folder.glob('*.engine*')} == {'encode_image.engine', 'attend_memory_1.engine'}
    assert len(asked) == 2 and all('--fp16' in line for line in asked)
    assert build()[1] == []
    os.utime(folder / 'encode_image.onnx', (4e9, 4e9))
    again = build(PRECISION='')[1]
    assert len(again) == 1 and '--onnx=encode_image.onnx' in again[0] and '--fp16' not in again[0]


def test_script_leaves_no_engine_of_a_graph_that_failed(build):
    answer, asked, folder = build(BROKEN='encode_image')
    assert answer.returncode == 1 and 'trtexec could not build encode_image.onnx' in answer.stderr
    assert list(folder.glob('encode_image.engine*')) == []


def test_script_says_where_trtexec_should_be(build):
    answer, _, _ = build(TRTEXEC='/nowhere/trtexec')
    assert answer.returncode == 2
    assert 'trtexec is not at /nowhere/trtexec' in answer.stderr
