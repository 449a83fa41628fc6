"""On a CPU, float32 products of matrices inside compiled steps by oneDNN, instead of the BLAS of torch's build.

That is MKL, which leaves AVX-512 unused on processors of another maker: 205 against 459 GFLOP/s for 256 x 512 x 512 on
two cores of an AMD EPYC. torch itself takes oneDNN for matrices in bf16, and for convolutions; not for these.
"""

import torch
from torch import Tensor, fx
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files

__all__ = ["OneDNN"]

LEAST = 32  # rows, columns and inner size of a product that is worth the call


@torch.library.custom_op("wgangp::onednn_mm", mutates_args=())
def _mm(a: Tensor, b: Tensor) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(a, b.t(), None, "none", [], "")


@_mm.register_fake
def _(a: Tensor, b: Tensor) -> Tensor:
    return a.new_empty(a.shape[0], b.shape[1])


class OneDNN(CustomGraphPass):
    """Replaces mm and addmm in the graph of a whole step, when nothing is left to differentiate in it."""

    def __call__(self, graph: fx.Graph) -> None:
        for node in list(graph.nodes):
            if node.target is torch.ops.aten.mm.default:
                bias, (a, b) = None, node.args
            elif node.target is torch.ops.aten.addmm.default and not node.kwargs:
                bias, a, b = node.args
            else:
                continue
            made, sizes = node.meta["val"], (*a.meta["val"].shape, b.meta["val"].shape[1])
            if made.dtype != torch.float32 or made.device.type != "cpu" or min(sizes) < LEAST:
                continue
            with graph.inserting_before(node):
                result = graph.call_function(torch.ops.wgangp.onednn_mm.default, (a, b))
                result.meta["val"] = made
                if bias is not None:
                    result = graph.call_function(torch.ops.aten.add.Tensor, (result, bias))
                    result.meta["val"] = made
            node.replace_all_uses_with(result)
            graph.erase_node(node)

    def uuid(self) -> bytes:
        """What a cache of compiled graphs knows this by."""
        return get_hash_for_files((__file__,))
