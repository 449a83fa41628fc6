"""A feature space for MNIST-like images: a small classifier that is trained on the data set itself.

Its accuracy stands beside every score. Two classifiers give different numbers, so compare with the value of real images
beside real images.
"""

import io
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from wgangp.files import write_file
from wgangp.metrics.features import WIDTHS, FeatureSpace, cache_per_data
from wgangp.seeds import initialize, rng_for
from wgangp.state import digest_weights

__all__ = ["Classifier", "classify", "find_labeled", "load_classifier", "train_classifier"]

WIDTH = WIDTHS["classifier"]
STEPS, BATCH, RATE = 2_500, 64, 1e-3  # updates of Adam, whose rate decays linearly to 0
KEYS = {"weights", "fingerprint", "shape", "classes", "accuracy"}  # of a file


class Classifier(nn.Module):
    """images (B, C, H, W) with values in [-0.5, 0.5] -> features (B, 512), logits (B, classes).

    Paper: Binkowski et al. 2018, appendix: "a LeNet-like convolutional classifier", TensorFlow's tutorial
    convolutional.py: two 5 x 5 convolutions with max pooling, 512 units. The features are those units after the ReLU.
    Differs: no dropout and no weight decay.
    """

    def __init__(self, shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        channels, height, width = shape
        self.layers = nn.Sequential(
            *(nn.Conv2d(channels, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(32, 64, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Linear(64 * (height // 4) * (width // 4), WIDTH), nn.ReLU()),
        )
        self.output = nn.Linear(WIDTH, classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.layers(x)
        return features, self.output(features)


def find_labeled(data: Any) -> Any:
    """Return the gray images with labels that a classifier for this data is trained on.

    Raises:
        ValueError: the data is not images, has other than one channel, or has no labels of two classes or more.
    """
    data = getattr(data, "digits", data)  # of stacked digits
    if len(data.shape) != 3 or data.shape[0] != 1 or getattr(data, "classes", 0) < 2 or not hasattr(data, "take"):
        raise ValueError(
            f"the classifier needs gray images with labels, as data=mnist has. This data has the shape"
            f" {tuple(data.shape)} and {getattr(data, 'classes', 0)} classes: use other scores="
        )
    if problem := getattr(data, "label_problem", ""):
        raise ValueError(f"the classifier needs labels, but {problem}")
    return data


@cache_per_data
def load_classifier(data: Any, path: str | None = None, device: torch.device | str = "cpu") -> FeatureSpace:
    """Load the classifier of a data set. It is trained on the first use, which takes minutes, and kept in a file.

    Args:
        data: see `find_labeled`.
        path: the file. None: one in torch's cache, whose name has the fingerprint of the data. If there is no file, the
            classifier is trained and the file is written.

    Raises:
        ValueError: as in `find_labeled`; the file cannot be read or written, is damaged or was trained on other data.
    """
    data = find_labeled(data)
    file = Path(path) if path else Path(torch.hub.get_dir(), "wgangp", f"classifier-{data.fingerprint[:16]}.pt")
    if file.exists() and not file.is_file():  # reading a pipe would never end
        raise ValueError(f"classifier = {file}: is not a file. Choose another")
    if not file.exists():
        _require_writable(file)
        network, accuracy = train_classifier(data, device)
        contents = {"fingerprint": data.fingerprint, "shape": list(data.shape), "classes": data.classes}
        _save(file, {"weights": network.cpu().state_dict(), "accuracy": accuracy, **contents})
    state = _read(file)
    if [state[name] for name in ("fingerprint", "shape", "classes")] != [data.fingerprint, [*data.shape], data.classes]:
        raise ValueError(
            f"classifier = {file}: it was trained on other data (sha256, shape or number of classes differ). Leave out"
            " classifier=, or name a file that does not exist: one is trained on this data"
        )
    network = initialize(lambda: Classifier(tuple(state["shape"]), state["classes"]), 0, "classifier")
    try:
        network.load_state_dict(state["weights"])
    except RuntimeError as error:
        raise ValueError(f"classifier = {file}: its weights do not fit. Choose another file") from error
    network.requires_grad_(False).eval().to(device)

    def extract(x: Tensor) -> tuple[Tensor, Tensor]:
        return network(_scale(x.to(device)))

    facts = {"weights": digest_weights(network)[:8], "classifier": "LeNet", "accuracy": state["accuracy"]}
    return FeatureSpace("classifier", extract, facts)


def classify(space: FeatureSpace, x: Tensor) -> Tensor:
    """Return the most probable class (B,) of images, uint8 (B, 1, H, W)."""
    with torch.no_grad():
        return space.extract(x)[1].argmax(1)


def train_classifier(data: Any, device: torch.device | str = "cpu", steps: int = STEPS) -> tuple[Classifier, float]:
    """Train a classifier on the training images; return it, and the share of held-out images that it gets right.

    It is a function of the data, up to rounding that depends on the machine.
    """
    network = initialize(lambda: Classifier(tuple(data.shape), data.classes), 0, "classifier").to(device)
    optimizer = torch.optim.Adam(network.parameters(), RATE)
    count = len(data.labels["train"])
    for step in tqdm(range(steps), desc="training the classifier of the scores", unit="update", disable=None):
        chosen = torch.randint(count, (BATCH,), generator=rng_for(0, step, "classifier"))
        x, y = data.take("train", chosen).to(device), data.labels["train"][chosen.to(data.labels["train"].device)]
        for group in optimizer.param_groups:
            group["lr"] = RATE * (1 - step / steps)
        optimizer.zero_grad()
        with torch.enable_grad():
            F.cross_entropy(network(_scale(x))[1], y.to(device)).backward()
        optimizer.step()
    network.requires_grad_(False).eval()
    labels = data.labels["heldout"]
    parts = torch.arange(len(labels)).split(1_000)
    right = [network(_scale(data.take("heldout", part).to(device)))[1].argmax(1).cpu() for part in parts]
    return network, (torch.cat(right) == labels.cpu()).double().mean().item()


def _scale(x: Tensor) -> Tensor:
    return x.float() / 255 - 0.5


def _require_writable(file: Path) -> None:
    """Create the folder of a file. ValueError, before training, if the file cannot be written."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=file.parent):
            pass
    except OSError as error:
        raise ValueError(f"classifier = {file}: cannot be written ({error.strerror}). Choose another file") from error


def _save(file: Path, contents: dict[str, Any]) -> None:
    buffer = io.BytesIO()
    torch.save(contents, buffer)
    write_file(file, buffer.getbuffer())  # also if two processes train the same classifier, it is one of the two


def _read(file: Path) -> dict[str, Any]:
    """Read a file that `load_classifier` wrote. ValueError if it is something else."""
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types for damaged files
        raise ValueError(f"classifier = {file}: cannot be read. Delete it, and it is trained again") from error
    if not isinstance(state, dict) or state.keys() != KEYS:
        raise ValueError(f"classifier = {file}: is not a classifier that this package wrote. Choose another file")
    return state
