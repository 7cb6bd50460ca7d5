"""Exported graphs equal the model in onnxruntime, stage by stage and in a stream."""
import contextlib
import gc
import io
import json
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
from safetensors.torch import save_file

from sam2_core import Prompt, Sam2Model, StreamTracker
from sam2_core.export import Sizes, cli, export_onnx, stages, verify
from sam2_core.export.graph_model import GraphModel
from sam2_core.export.write import write_graph
from testing import comparisons
from testing.graph_tracker import GraphTracker
from testing.small_edgetam import small_edgetam

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]  # PyTorch's exporter takes about five seconds per graph
OBJECTS, ROOM = 2, {'memory_frames': 8, 'pointers': 17, 'points': 4}  # room for the first prompt and a correction
SIZES = Sizes((OBJECTS,), **ROOM)
ANY = {'Cast', 'Concat', 'Expand', 'Gather', 'GatherND', 'Reshape', 'Slice', 'Squeeze', 'Transpose', 'Unsqueeze',
       'Where'}
NUMBERS = ANY | {'Add', 'ArgMax', 'ConstantOfShape', 'Div', 'Equal', 'Greater', 'GreaterOrEqual', 'LessOrEqual', 'Max',
                 'Mul', 'Pad', 'ReduceMax', 'ReduceSum', 'Split', 'Sub'}
FLOATS = NUMBERS | {'Clip', 'Conv', 'ConvTranspose', 'Cos', 'Erf', 'Gemm', 'LayerNormalization', 'MatMul', 'MaxPool',
                    'ReduceMean', 'Relu', 'Resize', 'Sigmoid', 'Sin', 'Softmax'}
READ_BY_TENSORRT = {'BOOL': ANY | {'Not'}, 'INT32': NUMBERS, 'INT64': NUMBERS, 'FLOAT': FLOATS}
KINDS = {'encode_image', 'attend_memory', 'decode_tracked', 'decode_prompted', 'adopt_mask', 'encode_memory'}


@pytest.fixture(autouse=True, scope='module')
def no_garbage_collection():
    """Disable garbage collection, which takes a fifth of the time of PyTorch's exporter."""
    gc.disable()
    yield
    gc.enable()
    gc.collect()


@pytest.fixture(scope='module')
def exported(tmp_path_factory):
    """Export nano with the command; return folder, exit code, stdout and stderr."""
    folder, said, told = tmp_path_factory.mktemp('nano') / 'graphs', io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(told):
        code = cli.main(['--model', 'nano', '--onnx', str(folder), '--objects', str(OBJECTS), '--verify',
                         *(f'--{name.replace("_", "-")}={number}' for name, number in ROOM.items())])
    return folder, code, said.getvalue(), told.getvalue()


@pytest.fixture(scope='module')
def graphs(exported):
    return exported[0]


def check_stages(model, folder):
    assert {stage.kind for stage in check_differences(model, folder, stages(model.config, SIZES))} == KINDS


def check_differences(model, folder, every):
    """Float32 has 7 digits; sums in another order, some layers deep, cost one or two of them."""
    differences = list(verify(model, folder, every))
    assert {d.stage for d in differences} == {stage.name for stage in every}
    assert [d for d in differences if d.largest > 2e-5 * max(1, d.scale)] == []
    assert all(d.scale > 1e-3 for d in differences)  # no output is equal only because it is zero
    return every


def check_stream(model, folder, scene, limit):
    """Track ten images with objects that are added at different times by box, mask and click; one is corrected."""
    tracker, graph_tracker = StreamTracker(model), GraphTracker(folder, model, OBJECTS)
    mask = scene.truth(2, 1)
    script = {0: [Prompt(1, box=scene.box(1))], 1: [Prompt(2, mask=mask)], 3: [Prompt(3, [(20, 200)], [1])],
              5: [Prompt(1, [(95, 70), (200, 60)], [1, 0])]}
    visible = 0
    for time in range(10):
        image, prompts = scene.image(time), script.get(time, [])
        expected = tracker.step(image, prompts).objects
        found = graph_tracker.step(image, {prompt.object_id: prompt for prompt in prompts})
        assert list(found) == list(expected)
        for object_id, item in expected.items():
            assert np.abs(found[object_id] - item.logits.numpy()).max() < limit, (time, object_id)
            shown, truth = found[object_id] > 0, item.logits.numpy() > 0
            assert (shown != truth).mean() < 1e-3, (time, object_id)
            visible += truth.any()
    assert visible > 15 and len(graph_tracker.banks) == 3
    return graph_tracker


def check_operators(folder):
    """Check operators by docs/operators.md of onnx-tensorrt for TensorRT 10.0."""
    for path in folder.glob('*.onnx'):
        graph = onnx.shape_inference.infer_shapes(onnx.load(path), strict_mode=True, data_prop=True).graph
        types = {value.name: value.type.tensor_type.elem_type
                 for value in (*graph.input, *graph.output, *graph.value_info)}
        types.update((weight.name, weight.data_type) for weight in graph.initializer)
        for node in graph.node:
            kind = onnx.TensorProto.DataType.Name(types[node.input[1 if node.op_type == 'Where' else 0]])
            assert node.op_type in READ_BY_TENSORRT[kind], (path.name, node.op_type, kind)
            attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            assert node.op_type != 'Resize' or not attributes.get('antialias'), path.name


def test_every_stage_equals_pytorch(nano, graphs):
    check_stages(nano, graphs)


def test_stream_equals_the_tracker(nano, graphs, scene):
    # memory is rounded to bfloat16: two nearly equal float32 numbers may round to values 1 part in 256 apart
    check_stream(nano, graphs, scene, limit=0.05)


def visible_pair(name):
    """Return a model with random weights at a small image size, in which every object is visible."""
    pair = comparisons.make_pair(name, image_size=128)
    pair.set_object_score_bias(4.0)
    return pair.ours


def test_published_model_equals_pytorch(tmp_path, scene):
    model = visible_pair('sam2.1_hiera_tiny')
    export_onnx(model, tmp_path, SIZES)
    check_stages(model, tmp_path)
    check_stream(model, tmp_path, scene, limit=0.05)
    check_operators(tmp_path)


def test_version_2_0_equals_pytorch_where_it_differs_from_2_1(tmp_path):
    """SAM 2.0 has no codes of pointer ages and no embedding of absent objects; its other graphs are the same.

    Its four layers of memory attention are alike, so one of them is exported.
    """
    whole = visible_pair('sam2_hiera_tiny')
    model = Sam2Model(replace(whole.config, memory_attention_layers=1)).eval().requires_grad_(False)
    weights = whole.state_dict()
    model.load_state_dict({name: weights[name] for name in model.state_dict()})
    check_differences(model, tmp_path, write_some(model, tmp_path, 'attend_memory', 'encode_memory'))


def test_edgetam_equals_pytorch_where_it_differs_from_version_2_0(tmp_path):
    """Its decoder is that of SAM 2.0. The branches of its trunk are merged, and each memory frame has 21 tokens."""
    model = small_edgetam()
    every = write_some(model, tmp_path, 'encode_image', 'attend_memory', 'encode_memory')
    check_differences(model, tmp_path, every)
    check_operators(tmp_path)
    check_static(tmp_path)
    trunk = onnx.load(tmp_path / 'encode_image.onnx').graph
    # 2 in the stem, 3 in a block, 7 between stages, 2 in a gate, 4 in the neck
    assert sum(node.op_type == 'Conv' for node in trunk.node) == 2 + 5 * 3 + 3 * 7 + 4 * 2 + 4
    memory = onnx.load(tmp_path / f'encode_memory_{OBJECTS}.onnx').graph.output[0].type.tensor_type
    assert [d.dim_value for d in memory.shape.dim] == [OBJECTS, 5 + 4 * 4, 16]


def write_some(model, folder, *kinds):
    """Write the graphs of these kinds and return their stages."""
    graph_model = GraphModel(model)
    every = [stage for stage in stages(model.config, SIZES) if stage.kind in kinds]
    for stage in every:
        write_graph(graph_model, stage, folder / f'{stage.name}.onnx')
    return every


# --- content of the graphs

def test_shapes_are_static_and_those_of_model_json(graphs):
    described = json.loads((graphs / 'model.json').read_text())['graphs']
    assert {graph['file'] for graph in described} == {path.name for path in graphs.glob('*.onnx')}
    for graph in described:
        content = onnx.load(graphs / graph['file']).graph
        for ports, values in ((graph['inputs'], content.input), (graph['outputs'], content.output)):
            assert [(p['name'], p['shape'], p['dtype']) for p in ports] == [(
                value.name, [d.dim_value for d in value.type.tensor_type.shape.dim],
                onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type).lower().replace('float', 'float32'))
                for value in values]
        assert all(port['meaning'] for port in graph['inputs'] + graph['outputs'])


def check_static(folder):
    for path in folder.glob('*.onnx'):
        graph = onnx.load(path)
        onnx.checker.check_model(graph, full_check=True)
        graph = onnx.shape_inference.infer_shapes(graph, strict_mode=True, data_prop=True).graph
        assert {node.op_type for node in graph.node} & {'If', 'Loop', 'Scan', 'NonZero', 'Shape'} == set(), path.name
        values = [*graph.input, *graph.output, *graph.value_info]
        assert len(values) > len(graph.node) // 2
        types = {value.type.tensor_type.elem_type for value in values} | {w.data_type for w in graph.initializer}
        assert types <= {getattr(onnx.TensorProto, name) for name in ('FLOAT', 'INT32', 'INT64', 'BOOL')}, path.name
        for value in values:
            assert all(d.HasField('dim_value') for d in value.type.tensor_type.shape.dim), (path.name, value.name)


def test_graphs_hold_no_complex_number_no_branch_and_no_dynamic_shape(graphs):
    check_static(graphs)


def test_every_operator_and_its_types_are_among_those_tensorrt_reads(graphs):
    check_operators(graphs)


def test_values_are_averaged_in_their_own_width(nano, graphs):
    """Projections from memory_dim to d_model remain for the keys, and one after each average."""
    shape = {nano.config.memory_dim, nano.config.d_model}
    weights = [w for w in onnx.load(graphs / f'attend_memory_{OBJECTS}.onnx').graph.initializer if set(w.dims) == shape]
    layers = nano.config.memory_attention_layers
    assert len([w for w in weights if len(w.dims) == 2]) == 2 * layers


def test_content_of_empty_rows_has_no_effect(nano, graphs):
    session = onnxruntime.InferenceSession(graphs / f'attend_memory_{OBJECTS}.onnx')
    random = np.random.default_rng(0)
    inputs = {i.name: random.standard_normal(i.shape, np.float32) for i in session.get_inputs()}
    inputs['time_slots'] = np.array([[6, 0, 1, -1, -1, -1, -1, -1]] * OBJECTS, np.int32)
    inputs['pointer_ages'] = np.array([[3, 1, 2] + [-1] * 14] * OBJECTS, np.int32)
    before, = session.run(None, inputs)
    for name in ('frames', 'pointers'):
        inputs[name][:, 3:] = 50 * random.standard_normal(inputs[name][:, 3:].shape, np.float32)
    np.testing.assert_allclose(session.run(None, inputs)[0], before, atol=1e-5)
    inputs['frames'][:, 2] += 1
    assert np.abs(session.run(None, inputs)[0] - before).max() > 0.01


# --- the command

def test_command_reports_progress_and_differences(exported):
    folder, code, said, told = exported
    assert code == 0
    assert '[6/6, ' in told
    assert f'wrote 6 graphs of nano at 256 pixels, model.json and build_tensorrt.sh to {folder}' in told
    rows = [line.split() for line in said.splitlines()[1:]]
    assert {row[0].removesuffix(f'_{OBJECTS}') for row in rows} == KINDS
    assert all(float(row[2]) < 1e-3 for row in rows)


def test_command_fails_when_a_graph_is_not_the_model(nano, graphs, tmp_path, monkeypatch, capsys):
    """Graphs of other weights simulate an exporter that fails."""
    weights = {name: value.clone() for name, value in nano.state_dict().items()}
    weights['memory_encoder.out_proj.bias'] += 0.1
    save_file(weights, tmp_path / 'other.safetensors')
    monkeypatch.setattr(cli, 'export_onnx', lambda model, folder, sizes, progress: stages(model.config, SIZES))
    code = cli.main(['--model', 'nano', '--checkpoint', str(tmp_path / 'other.safetensors'), '--onnx', str(graphs),
                     '--verify'])
    assert code == 1
    assert capsys.readouterr().err.splitlines()[-1] == (
        f'sam2_export: memory of encode_memory_{OBJECTS}: differs from PyTorch by more than 0.001 of the largest value')
