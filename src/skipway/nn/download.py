"""Published weights by name: `torchvision:IMAGENET1K_V2`, `timm:resnet50.a1_in1k`. Those libraries fetch and keep."""

import logging
from collections.abc import Mapping

from torch import Tensor

from skipway.errors import InputError, unknown
from skipway.foreign_spec import ForeignSpec
from skipway.nn.foreign import build_foreign, need

SOURCES = ("torchvision:", "timm:")
_AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")  # heads of GoogLeNet and Inception that only their own recipes train


def fetch(
    weights: str, network: str, foreign: ForeignSpec | None, image_size: int, seed: int = 0
) -> Mapping[str, Tensor]:
    """A state dict under its library's own names.

    Args:
        weights: torchvision:WEIGHTS or timm:NAME.
        network: the name of the network that they are for.
        foreign: its spec where it is another's; for one of its own timm fits classes, channels and positions itself.
        image_size: pixels a side, for that.
        seed: of what timm draws anew.

    Raises:
        InputError: no such weights, or the download failed; the message says how to bring a file instead.
    """
    library, _, name = weights.partition(":")
    if library == "torchvision":
        return _torchvision(weights, name, network)
    return _timm(weights, name, foreign, image_size, seed)


def _torchvision(weights: str, name: str, network: str) -> Mapping[str, Tensor]:
    models = need("torchvision").models
    theirs = network.removeprefix("torchvision:")
    if theirs not in models.list_models(module=models):
        raise InputError(f"torchvision has no weights for network {network}; it has them for resnet18, resnet50, ...")
    known = models.get_model_weights(theirs)
    if name not in known.__members__:
        raise unknown(f"weights of torchvision's {theirs}:", name, known.__members__)
    chosen = known[name]
    try:
        state = chosen.get_state_dict(progress=True, check_hash=True)
        return {key: value for key, value in state.items() if not key.startswith(_AUXILIARY)}
    except Exception as error:
        raise _failed(weights, error, chosen.url) from error


def _timm(weights: str, name: str, foreign: ForeignSpec | None, image_size: int, seed: int) -> Mapping[str, Tensor]:
    timm = need("timm")
    known = timm.list_pretrained()
    if name not in known and name not in {full.partition(".")[0] for full in known}:
        raise unknown("timm weights", name, known)
    config = timm.get_pretrained_cfg(name)
    url = config.url
    if config.hf_hub_id:
        from huggingface_hub import hf_hub_url

        url = hf_hub_url(config.hf_hub_id, "model.safetensors")
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)  # the message below says once what it says at each try
    try:
        if foreign is not None and foreign.library == "timm":
            return build_foreign(foreign, image_size=image_size, seed=seed, pretrained=name).state_dict()
        return timm.create_model(name, pretrained=True).state_dict()
    except InputError:  # of the network, not of its weights
        raise
    except Exception as error:
        raise _failed(weights, error, url) from error
    finally:
        logger.setLevel(level)


def normalisation_of(weights: str, network: str) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Mean and deviation of the images that published weights were trained on; None where they do not say.

    Args:
        weights: torchvision:WEIGHTS or timm:NAME, known to exist.
        network: the name of the network that they are for.
    """
    library, _, name = weights.partition(":")
    if library == "timm":
        config = need("timm").get_pretrained_cfg(name)
        return tuple(config.mean), tuple(config.std)
    chosen = need("torchvision").models.get_model_weights(network.removeprefix("torchvision:"))[name]
    preset = chosen.transforms()
    if not hasattr(preset, "mean"):
        return None
    return tuple(preset.mean), tuple(preset.std)


def _failed(weights: str, error: Exception, url: str) -> InputError:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return InputError(
        f"{weights} could not be downloaded ({lines[0]}). Fetch {url} on a machine that can reach it, "
        "copy the file here and name it: --weights FILE"
    )
