"""The LSTM with its gates written out is torch's: values, gradients, training."""

import pytest
import torch
from parity import count, meta
from torch import Tensor, nn

from cnn_train.layers import LayerFactory
from cnn_train.layers.init import orthogonal
from cnn_train.models.classification.lstm import GATES, LSTM, from_torch, lstm


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.mark.parametrize("num_layers", [1, 2])
def test_values_and_gradients_equal_torchs(num_layers: int):
    theirs = nn.LSTM(5, 7, num_layers, batch_first=True).double()
    ours = LSTM(5, 7, num_layers).double()
    ours.load_state_dict(from_torch(theirs.state_dict()), strict=True)
    x = torch.randn(3, 11, 5, dtype=torch.float64)
    weights = torch.randn(3, 11, 7, dtype=torch.float64)
    inputs, outputs = [], []
    for network in (ours, theirs):
        inputs.append(x.clone().requires_grad_())
        outputs.append(network(inputs[-1])[0])
        (outputs[-1] * weights).sum().backward()
    torch.testing.assert_close(outputs[0], outputs[1], rtol=0, atol=1e-12)
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad, rtol=0, atol=1e-12)
    # torch has two biases, whose gradients are the same.
    gradients = {name: p.grad / 2 if "bias" in name else p.grad for name, p in theirs.named_parameters()}
    expected = from_torch(gradients)
    assert set(expected) == {name for name, _ in ours.named_parameters()}
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=0, atol=1e-11)


def test_one_step_is_the_formula():
    cell = LSTM(2, 1, 1).double().cells[0]
    x = torch.tensor([[0.5, -1.0]], dtype=torch.float64)
    h, c = torch.tensor([[0.25]], dtype=torch.float64), torch.tensor([[2.0]], dtype=torch.float64)

    def sum_of(gate: nn.Module) -> Tensor:
        weight, bias, recurrent = gate.from_input.weight, gate.from_input.bias, gate.from_hidden.weight
        return weight[0, 0] * 0.5 - weight[0, 1] + bias[0] + recurrent[0, 0] * 0.25

    forget, enter, leave = (
        1 / (1 + torch.exp(-sum_of(gate))) for gate in (cell.forget_gate, cell.input_gate, cell.output_gate)
    )
    state = forget * 2.0 + enter * torch.tanh(sum_of(cell.candidate))
    new_h, new_c = cell(x, h, c)
    torch.testing.assert_close(new_c, state.view(1, 1))
    torch.testing.assert_close(new_h, (leave * torch.tanh(state)).view(1, 1))


def test_both_cells_give_the_same_logits():
    theirs, ours = lstm(cell="torch", num_layers=2), lstm(cell="own", num_layers=2)
    ours.lstm.load_state_dict(from_torch(theirs.lstm.state_dict()))
    ours.fc.load_state_dict(theirs.fc.state_dict())
    images = torch.randn(2, 1, 28, 28)
    torch.testing.assert_close(ours(images), theirs(images), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("cell", ["torch", "own"])
def test_rows_are_read_from_the_top_and_all_channels_at_once(cell: str):
    network = lstm(in_channels=2, row_width=6, hidden_size=4, cell=cell)
    image = torch.randn(1, 2, 3, 6)
    rows = torch.cat([image[:, 0], image[:, 1]], -1)
    assert rows.shape == (1, 3, 12)
    states, _ = network.lstm(rows)
    torch.testing.assert_close(network(image), network.fc(states[:, -1]))


@pytest.mark.parametrize("cell", ["torch", "own"])
@pytest.mark.parametrize("size", [1, 8, 32])
def test_any_size_and_every_parameter_learns(cell: str, size: int):
    network = lstm(in_channels=3, num_classes=4, hidden_size=8, cell=cell, num_layers=2)
    network(torch.randn(2, 3, size, size)).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        # The first step has no state to forget or to read.
        if size > 1 or not ("hh" in name or "hidden" in name or "forget" in name):
            assert parameter.grad.any(), name


@pytest.mark.parametrize("initializer", [None, orthogonal])
@pytest.mark.parametrize("cell", ["torch", "own"])
def test_forget_gates_start_open(cell: str, initializer):
    layers = LayerFactory(norm_layer=None, initializer=initializer)
    network = lstm(cell=cell, hidden_size=400, forget_bias=1.0, layers=layers)
    state = network.lstm.state_dict()
    state = from_torch(state) if cell == "torch" else state
    biases = {gate: state[f"cells.0.{gate}.from_input.bias"].mean().item() for gate in GATES}
    assert biases == {gate: pytest.approx(1.0 if gate == "forget_gate" else 0.0, abs=0.02) for gate in GATES}


def test_parameter_counts():
    assert count(meta(lstm)) == 82_186
    # The gates written out have one bias each.
    assert count(meta(lstm)) - count(meta(lstm, cell="own")) == 4 * 128


def test_a_wrong_cell_is_refused():
    with pytest.raises(ValueError, match="cell must be 'torch', 'own' or 'plain', got 'gru'"):
        lstm(cell="gru")


def test_the_plain_cell_is_elmans_formula():
    network = lstm(cell="plain", row_width=4, hidden_size=3)
    weights = dict(network.lstm.named_parameters())
    image = torch.randn(2, 1, 5, 4)
    h = torch.zeros(2, 3)
    for row in image.squeeze(1).unbind(1):
        h = torch.tanh(
            row @ weights["weight_ih_l0"].T
            + h @ weights["weight_hh_l0"].T
            + sum(weights[name] for name in ("bias_ih_l0", "bias_hh_l0"))
        )
    torch.testing.assert_close(network(image), network.fc(h))
    assert count(network) == 3 * 4 + 3 * 3 + 2 * 3 + 3 * 10 + 10
