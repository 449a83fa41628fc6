"""On a CPU, float32 matrix products inside compiled steps are computed by oneDNN instead of the BLAS of torch's build.

That BLAS is MKL, which does not use AVX-512 on processors of other makers: 205 against 459 GFLOP/s for 256 x 512 x 512
on two cores of an AMD EPYC. torch itself uses oneDNN for convolutions and for bf16 matrix products, but not for these.
"""

import torch
from torch import Tensor, fx
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files

__all__ = ["OneDNN"]

LEAST = 32  # the smallest number of rows, columns and inner size for which the call is worth its overhead


@torch.library.custom_op("wgangp::onednn_mm", mutates_args=())
def _mm(a: Tensor, b: Tensor) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(a, b.t(), None, "none", [], "")


@_mm.register_fake
def _(a: Tensor, b: Tensor) -> Tensor:
    return a.new_empty(a.shape[0], b.shape[1])


class OneDNN(CustomGraphPass):
    """A compiler pass that replaces mm and addmm in the graph of a step. The graph must not be differentiated again."""

    def __call__(self, graph: fx.Graph) -> None:
        for node in list(graph.nodes):
            if node.target is torch.ops.aten.mm.default:
                bias, (a, b) = None, node.args
            elif node.target is torch.ops.aten.addmm.default and not node.kwargs:
                bias, a, b = node.args
            else:
                continue
            value, sizes = node.meta["val"], (*a.meta["val"].shape, b.meta["val"].shape[1])
            if value.dtype != torch.float32 or value.device.type != "cpu" or min(sizes) < LEAST:
                continue
            with graph.inserting_before(node):
                result = graph.call_function(torch.ops.wgangp.onednn_mm.default, (a, b))
                result.meta["val"] = value
                if bias is not None:
                    result = graph.call_function(torch.ops.aten.add.Tensor, (result, bias))
                    result.meta["val"] = value
            node.replace_all_uses_with(result)
            graph.erase_node(node)

    def uuid(self) -> bytes:
        """Identify this pass in the cache of compiled graphs."""
        return get_hash_for_files((__file__,))
