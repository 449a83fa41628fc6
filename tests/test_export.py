"""A trained generator leaves the project: the formats of docs/export.md."""

import numpy as np
import pytest
import torch
from helpers import TINY

from wgangp import load_run

BATCH = ({0: torch.export.Dim("batch")},)


@pytest.fixture
def generator(trained):
    return load_run(trained(*TINY, "train.steps=1")).generator.eval()


def test_exported_program_is_equal_bit_for_bit(generator, tmp_path):
    z = torch.randn(4, generator.latent_dim)
    path = tmp_path / "generator.pt2"
    torch.export.save(torch.export.export(generator, (z,), dynamic_shapes=BATCH), path)
    loaded = torch.export.load(path).module()
    for size in (1, 4, 9):
        z = torch.randn(size, generator.latent_dim)
        assert torch.equal(loaded(z), generator(z))


def test_onnx_is_equal_to_rounding(generator, tmp_path):
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package, reason=f"{package} is not a dependency")
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not a dependency")
    names = {"input_names": ["z"], "output_names": ["x"], "verbose": False}
    z = torch.randn(4, generator.latent_dim)
    torch.onnx.export(generator, (z,), tmp_path / "generator.onnx", dynamic_shapes=BATCH, **names)
    session = runtime.InferenceSession(str(tmp_path / "generator.onnx"))
    z = torch.randn(9, generator.latent_dim)
    (x,) = session.run(None, {"z": z.numpy()})
    np.testing.assert_allclose(x, generator(z).detach().numpy(), atol=1e-5)


def test_safetensors_have_the_same_weights(generator, tmp_path):
    safetensors = pytest.importorskip("safetensors.torch", reason="safetensors is not a dependency")
    path = tmp_path / "generator.safetensors"
    safetensors.save_file(generator.state_dict(), path)
    loaded = safetensors.load_file(path)
    assert loaded.keys() == generator.state_dict().keys()
    assert all(torch.equal(loaded[name], x) for name, x in generator.state_dict().items())
