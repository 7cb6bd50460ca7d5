"""SAM 2 as ONNX graphs with static shapes, for machines that run no PyTorch (docs/how-to/export.md)."""
from sam2_core.export.stages import Port, Sizes, Stage, stages
from sam2_core.export.verify import Difference, verify
from sam2_core.export.write import ExportError, export_onnx

__all__ = ['Difference', 'ExportError', 'Port', 'Sizes', 'Stage', 'export_onnx', 'stages', 'verify']
