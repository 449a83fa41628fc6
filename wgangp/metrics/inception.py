"""The feature space of the literature: Inception v3 with the weights of TensorFlow 1, through torch-fidelity."""

from functools import lru_cache
from http.client import HTTPException
from pathlib import Path

import torch
from torch import Tensor

from wgangp.data.download import download
from wgangp.files import digest_file
from wgangp.metrics.features import FeatureSpace, require_library

__all__ = ["load_inception"]

NAME = "weights-inception-2015-12-05-6726825d.pth"
URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{NAME}"
SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"  # its first digits are in the file's name


@lru_cache(maxsize=1)
def load_inception(weights: str | None = None, device: torch.device | str = "cpu") -> FeatureSpace:
    """Load the network: features are the 2,048 numbers after the last pooling, logits are those without the bias.

    Args:
        weights: the file with the weights, 91 MB. None: torch's cache, to which the file is downloaded once.

    Raises:
        ValueError: torch-fidelity is not installed; there is no file, or it cannot be downloaded; its sha256 is not the
            published one. It is not opened in this case: torch-fidelity would run code in it.

    Paper: Salimans et al. 2016, Heusel et al. 2017. The resize to 299 x 299 is that of TensorFlow 1.
    """
    require_library("torch_fidelity", "torch-fidelity")
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    path = _find_weights(weights)
    with torch.random.fork_rng(devices=[]):  # initial weights are drawn before they are loaded
        network = FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(path)
        ).to(device)

    def extract(x: Tensor) -> tuple[Tensor, Tensor]:
        return network(x.to(device).expand(-1, 3, -1, -1))

    facts = {"weights": SHA256[:8], "classifier": "Inception v3, TensorFlow 1"}
    return FeatureSpace("inception", extract, facts)


def _find_weights(weights: str | None) -> Path:
    """Return the file with the published weights; download it if `weights` is None and it is not in torch's cache."""
    path = Path(weights) if weights else Path(torch.hub.get_dir(), "checkpoints", NAME)
    if weights is None and not path.exists():
        try:
            download(URL, path, SHA256)
        except (OSError, ValueError, HTTPException) as error:
            raise ValueError(
                f"the weights of the Inception network cannot be downloaded from {URL}: {error}. Download the file with"
                " a browser and set weights=FILE, or use scores that need no download, as in scores=[efficientnet]"
            ) from error
    if path.exists() and not path.is_file():  # reading a pipe would never end
        raise ValueError(f"weights = {path}: is not a file")
    try:
        digest = digest_file(path)
    except OSError as error:
        raise ValueError(f"weights = {path}: cannot be read ({error.strerror})") from error
    if digest != SHA256:
        raise ValueError(
            f"weights = {path}: its sha256 is {digest}, and that of the published weights is {SHA256}. Download"
            f" {URL}. If that is where the file is from, delete it"
        )
    return path
