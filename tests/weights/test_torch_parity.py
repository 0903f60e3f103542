"""What PyTorch writes is read as PyTorch reads it: every layout, every type, strided and shared tensors."""

import numpy as np
import pytest

from dalle_jax.weights.reading import read_tensors
from dalle_jax.weights.torch_files import is_torchscript, read_torch

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")

DTYPES = ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")


class Inner(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(3, 4).half()
        self.norm = torch.nn.BatchNorm2d(5)
        self.register_buffer("kept", torch.arange(6).reshape(2, 3))
        self.register_buffer("dropped", torch.ones(3), persistent=False)

    def forward(self, x):
        return self.linear(x)


class Outer(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(2.5))
        self.layers = torch.nn.Sequential(Inner(), Inner())
        self.numbers = [1, 2, 3]

    def forward(self, x):
        return self.scale * self.layers(x)


def same(read, expected):
    assert read.keys() == expected.keys()
    for name, tensor in expected.items():
        array = read[name].read()
        assert array.shape == tuple(tensor.shape) and array.dtype.name == str(tensor.dtype).removeprefix("torch.")
        if tensor.dtype == torch.bfloat16:
            array, tensor = array.astype(np.float32), tensor.float()
        np.testing.assert_array_equal(array, tensor.detach().numpy())


@pytest.mark.parametrize("archive", [True, False], ids=["archive", "legacy"])
def test_types_and_views(tmp_path, archive):
    torch.manual_seed(0)
    state = {dtype: (100 * torch.randn(3, 5)).to(getattr(torch, dtype)) for dtype in DTYPES}
    base = torch.randn(6, 8)
    state |= {"turned": base.T, "part": base[2:5, 1:7], "steps": base[::2, ::3], "same": base, "number": base[1, 1]}
    state |= {"nothing": torch.zeros(0, 3), "row": torch.arange(4).expand((1, -1))}
    torch.save(state, tmp_path / "a.pt", _use_new_zipfile_serialization=archive)
    same(read_tensors(tmp_path / "a.pt"), state)


@pytest.mark.parametrize("archive", [True, False], ids=["archive", "legacy"])
def test_whole_modules_and_checkpoints(tmp_path, archive):
    module = Outer()
    torch.save(module, tmp_path / "module.pt", _use_new_zipfile_serialization=archive)
    same(read_tensors(tmp_path / "module.pt"), module.state_dict())
    optimizer = torch.optim.AdamW(module.parameters())
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    checkpoint = {
        "epoch": 3,
        "optimizer": optimizer.state_dict(),
        "best": np.float64(0.5),
        "callbacks": {Outer: {"seen": np.arange(3)}},
        "state_dict": {f"module.{name}": tensor for name, tensor in module.state_dict().items()},
    }
    torch.save(checkpoint, tmp_path / "epoch_3.pt", _use_new_zipfile_serialization=archive)
    same(read_tensors(tmp_path / "epoch_3.pt"), module.state_dict())
    assert read_torch(str(tmp_path / "epoch_3.pt"))["epoch"] == 3


def test_torchscript(tmp_path):
    script = torch.jit.script(Outer())
    torch.jit.save(script, tmp_path / "script.pt")
    expected = script.state_dict()
    # A program has no word for buffers that are not kept.
    expected |= {f"layers.{i}.dropped": torch.ones(3) for i in range(2)}
    same(read_tensors(tmp_path / "script.pt"), expected)
    torch.save(script.state_dict(), tmp_path / "state.pt")
    assert is_torchscript(str(tmp_path / "script.pt")) and not is_torchscript(str(tmp_path / "state.pt"))


def test_tensors_with_attributes(tmp_path):
    parameter = torch.nn.Parameter(torch.randn(2, 3))
    parameter.note = "kept"
    tensor = torch.randn(3)
    tensor.note = {"a": 1}
    torch.save({"parameter": parameter, "tensor": tensor}, tmp_path / "a.pt")
    same(read_tensors(tmp_path / "a.pt"), {"parameter": parameter, "tensor": tensor})


def test_safetensors(tmp_path):
    from safetensors.torch import save_file

    state = {dtype: torch.ones(3, 5).to(getattr(torch, dtype)) for dtype in DTYPES}
    save_file(state, tmp_path / "a.safetensors")
    same(read_tensors(tmp_path / "a.safetensors"), state)
