"""Weights: loading, errors, downloads and their verification."""
import hashlib
import http.server
import json
import os
import pickle
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sam2_core import VARIANTS, CheckpointError, Sam2Model, load_model
from sam2_core.checkpoint import OFFICIAL, OfficialFile, check_finite, read_weights, recognise, verify

NANO = Path(__file__).parents[2] / 'sam2_core' / 'weights' / 'nano.safetensors'


@pytest.fixture(scope='module')
def nano_weights():
    return load_file(NANO)


@pytest.fixture(scope='module')
def tiny_weights():
    torch.manual_seed(0)
    return Sam2Model(VARIANTS['sam2.1_hiera_tiny']).state_dict()


def saved(path, weights):
    torch.save({'model': weights}, path)
    return path


def test_nano_is_packaged_and_small():
    model = load_model('nano')
    assert model.image_size == 256 and model.dtype == torch.float32
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    assert NANO.stat().st_size < 8_000_000


@pytest.mark.parametrize('suffix', ['.pt', '.safetensors'])
def test_local_file_loads_and_is_recognised(tmp_path, nano_weights, suffix):
    path = tmp_path / f'mine{suffix}'
    torch.save({'model': nano_weights}, path) if suffix == '.pt' else save_file(nano_weights, path)
    model = load_model(checkpoint=path)
    assert model.name == 'nano'
    for key, value in model.state_dict().items():
        assert torch.equal(value, nano_weights[key].float())


@pytest.mark.parametrize('name', [n for n in VARIANTS if 'large' not in n])
def test_every_variant_is_recognised_from_its_keys(name):
    with torch.device('meta'):
        weights = Sam2Model(VARIANTS[name]).state_dict()
    assert recognise(weights) == name


def test_number_of_parameters_is_the_published_one():
    """The expected numbers, in millions, are those of the model table in the SAM 2 repository."""
    for size, millions in (('tiny', 38.9), ('small', 46.0), ('base_plus', 80.8), ('large', 224.4)):
        with torch.device('meta'):
            model = Sam2Model(VARIANTS[f'sam2.1_hiera_{size}'])
        assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.1)


def test_edgetam_has_the_tensors_of_the_official_implementation():
    """The expected numbers are those of its state dict and of its parameters."""
    with torch.device('meta'):
        model = Sam2Model(VARIANTS['edgetam'])
    assert len(model.state_dict()) == 982
    assert sum(p.numel() for p in model.parameters()) == 13895794


def test_published_layout_has_471_keys_for_tiny(tiny_weights):
    assert len(tiny_weights) == 471


def test_image_size_is_free(tmp_path, tiny_weights):
    model = load_model('sam2.1_hiera_tiny', saved(tmp_path / 'tiny.pt', tiny_weights), image_size=96)
    assert model.image_size == 96
    with torch.inference_mode():
        assert model.encode_image(torch.zeros(1, 3, 96, 96)).stride16_bchw.shape == (1, 256, 6, 6)


def test_half_precision_keeps_coordinates_in_float32():
    model = load_model('nano', dtype=torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert {b.dtype for b in model.buffers()} == {torch.float32}


@pytest.mark.parametrize(('arguments', 'text'), [
    ({'name': 'sam3'}, "model 'sam3' is not known: choose one of nano, "),
    ({}, 'neither a model name nor a checkpoint'),
    ({'name': 'nano', 'image_size': 100}, 'image_size 100: must be a positive multiple of 32'),
    ({'name': 'nano', 'image_size': 0}, 'image_size 0'),
    ({'name': 'edgetam', 'image_size': 320}, 'image_size 320: must be a multiple of 256'),  # before a download
    ({'name': 'nano', 'dtype': torch.int8}, 'dtype torch.int8: must be one of'),
    ({'name': 'nano', 'device': 'tpu'}, "device 'tpu': must be"),
    ({'name': 'nano', 'device': 'cuda:99'}, "device 'cuda:99': this machine has"),
])
def test_wrong_argument_is_named(arguments, text):
    with pytest.raises(ValueError, match=text):
        load_model(**arguments)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'gone\.pt: no such file'):
        load_model('nano', tmp_path / 'gone.pt')


def test_variant_that_does_not_fit_the_file_says_which_would(tmp_path, nano_weights):
    with pytest.raises(CheckpointError, match=r'is not sam2\.1_hiera_tiny: missing .* and \d+ more; '
                                              r'it looks like nano'):
        load_model('sam2.1_hiera_tiny', saved(tmp_path / 'a.pt', nano_weights))


def test_first_offending_keys_are_named(tmp_path, nano_weights):
    weights = dict(nano_weights)
    del weights['no_mem_embed']
    weights['extra.weight'] = torch.zeros(1)
    weights['no_obj_ptr'] = torch.zeros(1, 97)
    with pytest.raises(CheckpointError, match=r'missing no_mem_embed; unexpected extra\.weight; '
                                              r'no_obj_ptr is \(1, 97\), must be \(1, 96\); apart from that it is one'):
        load_model('nano', saved(tmp_path / 'a.pt', weights))


@pytest.mark.parametrize('suffix', ['.pt', '.safetensors'])
@pytest.mark.parametrize('keep', [0, 1000, 0.5, 0.999])
def test_truncated_file_is_refused(tmp_path, nano_weights, suffix, keep):
    whole, path = tmp_path / f'whole{suffix}', tmp_path / f'cut{suffix}'
    torch.save({'model': nano_weights}, whole) if suffix == '.pt' else save_file(nano_weights, whole)
    data = whole.read_bytes()
    path.write_bytes(data[:keep if isinstance(keep, int) else int(len(data) * keep)])
    with pytest.raises(CheckpointError, match=f'cut{suffix}'):
        load_model('nano', path)


class Malicious:
    def __reduce__(self):
        return os.mkdir, ('pwned',)


@pytest.mark.parametrize('wrap', [lambda x: x, lambda x: {'model': x}])
@pytest.mark.parametrize('plain_pickle', [False, True])
def test_code_in_a_checkpoint_never_runs(tmp_path, monkeypatch, wrap, plain_pickle):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / 'evil.pt'
    if plain_pickle:
        path.write_bytes(pickle.dumps(wrap(Malicious())))
    else:
        torch.save(wrap(Malicious()), path)
    with pytest.raises(CheckpointError, match=r'evil\.pt'):
        load_model('nano', path)
    assert not (tmp_path / 'pwned').exists()


@pytest.mark.parametrize('content', [{'model': {}}, {'model': {'a': 1}}, [torch.zeros(1)], {'model': torch.zeros(1)}])
def test_file_without_state_dict_is_refused(tmp_path, content):
    torch.save(content, tmp_path / 'a.pt')
    with pytest.raises(CheckpointError, match='no state dict'):
        read_weights(tmp_path / 'a.pt')


def test_unknown_architecture_is_refused(tmp_path, nano_weights):
    weights = {k: v for k, v in nano_weights.items() if '.blocks.7.' not in k}
    with pytest.raises(CheckpointError, match='not a known SAM 2 checkpoint: 7 trunk blocks'):
        load_model(checkpoint=saved(tmp_path / 'a.pt', weights))


def test_downloaded_file_is_checked_by_size_and_hash(tmp_path):
    path = tmp_path / 'file'
    path.write_bytes(b'weights')
    good = hashlib.sha256(b'weights').hexdigest()
    verify(path, OfficialFile('r', 'f', good, 7))
    verify(path, OfficialFile('r', 'f', good, None))
    with pytest.raises(CheckpointError, match='7 bytes, the published file has 8'):
        verify(path, OfficialFile('r', 'f', good, 8))
    with pytest.raises(CheckpointError, match=f'sha256 {good}, the published file has 0000'):
        verify(path, OfficialFile('r', 'f', '0' * 64, 7))


def test_statistics_that_stay_float32_may_exceed_float16():
    weights = {'conv.weight': torch.ones(2), 'bn.running_var': torch.tensor([1e5])}
    check_finite(weights, 'mine.pt', torch.float16, {'bn.running_var'})
    with pytest.raises(CheckpointError, match='1 of 2 tensors exceed 65504.* bn.running_var reaches 100000'):
        check_finite(weights, 'mine.pt', torch.float16)
    with pytest.raises(CheckpointError, match='1 of 2 tensors are not finite: bn.running_var'):
        check_finite({**weights, 'bn.running_var': torch.tensor([torch.inf])}, 'mine.pt', torch.float16,
                     {'bn.running_var'})


def test_counts_of_batches_may_be_missing(tmp_path):
    torch.manual_seed(0)
    weights = Sam2Model(VARIANTS['edgetam']).state_dict()
    for key in [key for key in weights if key.endswith('num_batches_tracked')]:
        del weights[key]
    model = load_model(checkpoint=saved(tmp_path / 'edgetam.pt', weights), device='cpu')
    assert model.name == 'edgetam'
    assert all(torch.equal(model.state_dict()[key], value) for key, value in weights.items())


def test_table_of_official_files_is_complete():
    assert set(OFFICIAL) == set(VARIANTS) - {'nano'}
    assert len({f.sha256 for f in OFFICIAL.values()}) == 9
    for name, file in OFFICIAL.items():
        assert len(file.sha256) == 64 and file.filename == f'{name}.pt'


class Hub(http.server.BaseHTTPRequestHandler):
    """Handler that answers as the hub does for one file of one repository."""

    content = b''
    requests: list[str]

    def do_HEAD(self):
        self.requests.append(f'{self.command} {self.path}')
        if self.path != '/facebook/EdgeTAM/resolve/main/edgetam.pt':
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header('X-Repo-Commit', 'c' * 40)
        self.send_header('ETag', f'"{hashlib.sha256(self.content).hexdigest()}"')
        self.send_header('Content-Length', str(len(self.content)))
        self.end_headers()

    def do_GET(self):
        self.do_HEAD()
        self.wfile.write(self.content)

    def log_message(self, *args):
        pass


FETCH = """
import json, sys
from sam2_core import checkpoint, load_model
checkpoint.OFFICIAL['edgetam'] = checkpoint.OFFICIAL['edgetam']._replace(sha256=sys.argv[1], size=int(sys.argv[2]))
try:
    model = load_model('edgetam', device='cpu')
    print(json.dumps({'name': model.name, 'bias': model.no_mem_embed.flatten()[:4].tolist()}))
except Exception as error:
    print(json.dumps({'error': f'{type(error).__name__}: {error}'}))
"""


@pytest.fixture(scope='module')
def hub(tmp_path_factory):
    """Serve the smallest published model."""
    weights = Sam2Model(VARIANTS['edgetam']).state_dict()
    weights['no_mem_embed'][0, 0, :4] = torch.tensor([1.0, 2.0, 3.0, 4.0])
    path = saved(tmp_path_factory.mktemp('hub') / 'edgetam.pt', weights)
    handler = type('Handler', (Hub,), {'content': path.read_bytes(), 'requests': []})
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server, handler
    server.shutdown()
    server.server_close()


def fetch(cache, address, sha256, size, before=''):
    """Run load_model in a process of its own, after the code ``before``; return its result or error."""
    env = dict(os.environ, HF_HOME=str(cache), HF_ENDPOINT=address, HF_HUB_DISABLE_XET='1',
               HF_HUB_DISABLE_TELEMETRY='1', HF_HUB_ETAG_TIMEOUT='5', NO_PROXY='127.0.0.1', no_proxy='127.0.0.1')
    run = subprocess.run([sys.executable, '-c', before + FETCH, sha256, str(size)], env=env, capture_output=True,
                         text=True)
    assert run.stdout, run.stderr
    return json.loads(run.stdout)


def test_official_weights_are_fetched_once_checked_and_cached(tmp_path, hub):
    server, handler = hub
    address = f'http://127.0.0.1:{server.server_port}'
    good, size = hashlib.sha256(handler.content).hexdigest(), len(handler.content)
    assert fetch(tmp_path, address, good, size) == {'name': 'edgetam', 'bias': [1.0, 2.0, 3.0, 4.0]}
    assert sum(line.startswith('GET') for line in handler.requests) == 1
    before = len(handler.requests)
    assert fetch(tmp_path, address, good, size) == {'name': 'edgetam', 'bias': [1.0, 2.0, 3.0, 4.0]}
    assert len(handler.requests) == before  # a robot without a connection does not wait for one
    damaged = fetch(tmp_path, address, '0' * 64, size)
    assert 'delete it and try again' in damaged['error']


def test_fetched_file_with_another_hash_is_refused(tmp_path, hub):
    server, handler = hub
    answer = fetch(tmp_path, f'http://127.0.0.1:{server.server_port}', '0' * 64, len(handler.content))
    assert answer['error'].startswith('CheckpointError: ') and 'delete it and try again' in answer['error']


def test_missing_connection_is_reported_with_the_cure(tmp_path):
    with socket.socket() as deaf:
        deaf.bind(('127.0.0.1', 0))  # it does not listen, so connections are refused
        # the hub's client retries with increasing delays
        answer = fetch(tmp_path, f'http://127.0.0.1:{deaf.getsockname()[1]}', '0' * 64, 1,
                       'import time; time.sleep = lambda seconds: None')
    assert answer['error'].startswith('ConnectionError: the weights of edgetam (facebook/EdgeTAM/edgetam.pt)')
    assert 'Give a local file as checkpoint' in answer['error']
