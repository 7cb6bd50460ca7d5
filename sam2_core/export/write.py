"""Writing of graphs, their description, and a script that builds TensorRT engines."""
from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from sam2_core.export.graph_model import EMPTY, GraphModel
from sam2_core.export.stages import Port, Sizes, Stage, placeholders, stages
from sam2_core.images import IMAGE_MEAN, IMAGE_STD
from sam2_core.model import Sam2Model
from sam2_core.nn.prompt_encoder import NOT_A_POINT

OPSET = 18
NEEDED = ('onnx', 'onnxscript')
BUILD_SCRIPT = Path(__file__).with_name('build_tensorrt.sh')


class ExportError(RuntimeError):
    """Error that prevents writing or checking graphs; the message states the cure."""


def need(packages: Sequence[str]) -> None:
    """Raise ExportError unless these packages can be imported."""
    missing = []
    for package in packages:
        try:
            __import__(package)
        except ImportError:
            missing.append(package)
    if missing:
        raise ExportError(f'{" and ".join(missing)} cannot be imported: pip install {" ".join(missing)}')


def export_onnx(model: Sam2Model, folder: str | Path, sizes: Sizes | None = None,
                progress: Callable[[int, int, Stage], None] = lambda done, total, stage: None) -> list[Stage]:
    """Export a model as ONNX graphs, one per stage, with ``model.json`` and ``build_tensorrt.sh``.

    Args:
        model: The model to export; graphs are float32 whatever its dtype.
        folder: Output folder, created if it does not exist. Existing files of the same names are replaced.
        sizes: Sizes that are fixed in the graphs besides the image size; None means ``Sizes()``.
        progress: Called before each graph with the number of graphs written, the total number, and the next stage.

    Returns:
        The stages, one per graph.

    Raises:
        ExportError: A package is missing.
        ValueError: The model has an int8 encoder, adapters or hooks.
    """
    need(NEEDED)
    folder, sizes = Path(folder), sizes or Sizes()
    folder.mkdir(parents=True, exist_ok=True)
    graph_model = GraphModel(model)
    every = stages(model.config, sizes)
    for done, stage in enumerate(every):
        progress(done, len(every), stage)
        write_graph(graph_model, stage, folder / f'{stage.name}.onnx')
    (folder / 'model.json').write_text(json.dumps(description(model, sizes, every), indent=1) + '\n')
    script = folder / BUILD_SCRIPT.name
    script.write_text(BUILD_SCRIPT.read_text())
    script.chmod(0o755)
    return every


class _Graph(nn.Module):
    """Stage as a module, for PyTorch's exporter."""

    def __init__(self, model: GraphModel, stage: Stage) -> None:
        super().__init__()
        self.model, self.stage = model, stage

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Run the stage."""
        return self.stage.run(self.model, inputs)


def write_graph(model: GraphModel, stage: Stage, path: Path) -> None:
    """Trace one stage and write it with its weights."""
    # With gradients enabled, nothing runs in place, in blocks or with complex numbers (nn/attention.py).
    with torch.inference_mode(False), torch.enable_grad(), _quiet():
        program = torch.onnx.export(
            _Graph(model, stage).eval(), placeholders(stage), dynamo=True, opset_version=OPSET, verbose=False,
            input_names=[port.name for port in stage.inputs], output_names=[port.name for port in stage.outputs])
        assert program is not None
        program.save(path, external_data=False)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's warnings about its own deprecations and about packages that are not needed."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            yield
    finally:
        logging.disable(before)


def description(model: Sam2Model, sizes: Sizes, every: Sequence[Stage]) -> dict:
    """Return the content of ``model.json``: all that a program needs to run the graphs."""
    config = model.config
    return {
        'model': model.name,
        'image': {'size': config.image_size, 'channels': 'RGB', 'resize': 'bilinear with antialias, to a square',
                  'scale': 1 / 255, 'mean': IMAGE_MEAN, 'std': IMAGE_STD},
        'memory': {
            'frames': sizes.memory_frames, 'pointers': sizes.pointers, 'empty': EMPTY,
            'recent_frames': config.memory_frames - 1, 'recent_pointers': config.object_pointers - 1,
            'prompted_time_slot': config.memory_frames - 1, 'max_pointer_age': config.max_pointer_distance},
        'prompt': {'points': sizes.points, 'no_point': NOT_A_POINT},
        'opset': OPSET,
        'graphs': [{'file': f'{stage.name}.onnx', 'stage': stage.kind, 'objects': stage.objects,
                    'inputs': [_port(port) for port in stage.inputs],
                    'outputs': [_port(port) for port in stage.outputs]} for stage in every],
    }


def _port(port: Port) -> dict:
    return {**port._asdict(), 'shape': list(port.shape)}
