"""Export of SAM 2 as ONNX graphs with static shapes, for machines without PyTorch (docs/how-to/export.md)."""
from sam2_core.export.stages import Port, Sizes, Stage, stages
from sam2_core.export.verify import OutputDifference, verify
from sam2_core.export.write import ExportError, export_onnx

__all__ = ['ExportError', 'OutputDifference', 'Port', 'Sizes', 'Stage', 'export_onnx', 'stages', 'verify']
