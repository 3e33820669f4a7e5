"""LSTM: Hochreiter & Schmidhuber, "Long Short-Term Memory", Neural Computation 1997; an image read row by row.

The forget gate is of Gers, Schmidhuber & Cummins, "Learning to Forget", Neural Computation 2000; that it starts open,
with a bias of 1, of Jozefowicz, Zaremba & Sutskever, ICML 2015, https://proceedings.mlr.press/v37/jozefowicz15.html.
"""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from cnn_train.layers import LayerFactory

__all__ = ["lstm"]

# torch stacks the gates' weights in this order, and calls the input gate i, the candidate g.
GATES = ("input_gate", "forget_gate", "candidate", "output_gate")


class Gate(nn.Module):
    """W x + U h + b."""

    def __init__(self, input_size: int, hidden_size: int):
        super().__init__()
        self.from_input = nn.Linear(input_size, hidden_size)
        self.from_hidden = nn.Linear(hidden_size, hidden_size, bias=False)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return self.from_input(x) + self.from_hidden(h)


class LSTMCell(nn.Module):
    """One step: x (N, input_size) and state h, c (N, hidden_size) -> the next h, c.

    f = sigmoid(W_f x + U_f h + b_f), likewise i and o; c' = f * c + i * tanh(W_g x + U_g h + b_g); h' = o * tanh(c').
    """

    def __init__(self, input_size: int, hidden_size: int):
        super().__init__()
        self.forget_gate = Gate(input_size, hidden_size)
        self.input_gate = Gate(input_size, hidden_size)
        self.output_gate = Gate(input_size, hidden_size)
        self.candidate = Gate(input_size, hidden_size)

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        f = self.forget_gate(x, h).sigmoid()
        i = self.input_gate(x, h).sigmoid()
        o = self.output_gate(x, h).sigmoid()
        c = f * c + i * self.candidate(x, h).tanh()
        return o * c.tanh(), c


class LSTM(nn.Module):
    """Layers of `LSTMCell`, each reading the states of the one below: (N, T, input_size) -> (N, T, hidden_size).

    As in `torch.nn.LSTM` weights start as U(+-1 / sqrt(hidden_size)), and the states start as zeros.
    """

    def __init__(self, input_size: int, hidden_size: int, num_layers: int):
        super().__init__()
        sizes = [input_size, *[hidden_size] * (num_layers - 1)]
        self.cells = nn.ModuleList(LSTMCell(size, hidden_size) for size in sizes)
        self.hidden_size = hidden_size
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -(hidden_size**-0.5), hidden_size**-0.5)

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        for cell in self.cells:
            h = c = x.new_zeros(x.size(0), self.hidden_size)
            states = []
            for step in x.unbind(1):
                h, c = cell(step, h, c)
                states.append(h)
            x = torch.stack(states, 1)
        return x, None


def from_torch(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Split the stacked weights of a `torch.nn.LSTM` into the gates of `LSTM`; its two biases are added."""
    result = {}
    for layer in range(sum(key.startswith("weight_hh_l") for key in state)):
        bias = state[f"bias_ih_l{layer}"] + state[f"bias_hh_l{layer}"]
        stacked = {
            "from_input.weight": state[f"weight_ih_l{layer}"],
            "from_hidden.weight": state[f"weight_hh_l{layer}"],
            "from_input.bias": bias,
        }
        for name, value in stacked.items():
            for gate, part in zip(GATES, value.chunk(4), strict=True):
                result[f"cells.{layer}.{gate}.{name}"] = part
    return result


class RowLSTM(nn.Module):
    """An LSTM over the rows of an image, a dense layer on its last state: (N, in_channels, H, W) -> (N, num_classes).

    `cell="plain"` is h' = tanh(W x + U h + b) instead (Elman, "Finding Structure in Time", 1990). A step sees one row
    of all channels, resampled to `row_width` pixels where the image is not that wide. There is
    nothing to normalize, and the gates' sigmoid and tanh are part of the cell: choices of layers change nothing here
    but the initialization.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        in_channels: int,
        cell: Literal["torch", "own", "plain"] = "torch",
        row_width: int = 28,
        hidden_size: int = 128,
        num_layers: int = 1,
        forget_bias: float = 1.0,
        dropout: float = 0.0,
        layers: LayerFactory,
    ):
        super().__init__()
        self.rows = nn.AdaptiveAvgPool2d((None, row_width))
        self.flatten = nn.Flatten(2)
        self.lstm: nn.Module
        if cell == "torch":
            self.lstm = nn.LSTM(in_channels * row_width, hidden_size, num_layers, batch_first=True)
        elif cell == "own":
            self.lstm = LSTM(in_channels * row_width, hidden_size, num_layers)
        elif cell == "plain":
            self.lstm = nn.RNN(in_channels * row_width, hidden_size, num_layers, batch_first=True)
        else:
            raise ValueError(f"cell must be 'torch', 'own' or 'plain', got {cell!r}")
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(hidden_size, num_classes)
        layers.init(self)
        if cell != "plain":
            self.open_forget_gates(forget_bias)

    @torch.no_grad()
    def open_forget_gates(self, bias: float) -> None:
        """Add `bias` to the forget gates' biases, so that they start near sigmoid(bias)."""
        for name, parameter in self.lstm.named_parameters():
            if name.startswith("bias_ih_l"):
                parameter.chunk(4)[GATES.index("forget_gate")].add_(bias)
            elif name.endswith("forget_gate.from_input.bias"):
                parameter.add_(bias)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.flatten(self.rows(x).transpose(1, 2))
        states, _ = self.lstm(rows)
        return self.fc(self.dropout(states[:, -1]))


def lstm(
    num_classes: int = 10,
    *,
    in_channels: int = 1,
    layers: LayerFactory = LayerFactory(norm_layer=None),
    **options: Any,
) -> RowLSTM:
    """An LSTM over rows: 82,186 parameters at 10 classes, rows of 28 pixels and one channel."""
    return RowLSTM(num_classes, in_channels=in_channels, layers=layers, **options)
