"""What each layer of a CNN sees, weighs and costs: for any `nn.Module`."""

from cnn_train.analysis.complexity import TrainingMemory, training_memory
from cnn_train.analysis.diagnose import diagnose
from cnn_train.analysis.effective import EffectiveField, effective_receptive_field
from cnn_train.analysis.graph import Finding, Graph, LayerRow
from cnn_train.analysis.receptive_field import receptive_field
from cnn_train.analysis.statistics import LayerStatistics, dead_units, layer_statistics
from cnn_train.analysis.trace import trace

__all__ = [
    "EffectiveField",
    "Finding",
    "Graph",
    "LayerRow",
    "LayerStatistics",
    "TrainingMemory",
    "dead_units",
    "diagnose",
    "effective_receptive_field",
    "layer_statistics",
    "receptive_field",
    "trace",
    "training_memory",
]
