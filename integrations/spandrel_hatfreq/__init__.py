"""HATFreq for spandrel (https://github.com/chaiNNer-org/spandrel), so that programs built on it open our files.

    import spandrel_hatfreq  # registers it; in this repository: from integrations import spandrel_hatfreq
    from spandrel import ModelLoader

    model = ModelLoader().load_from_file("hatfreq_light_x4.safetensors")
    sr = model(lq)  # float 1 3 h w in [0, 1]

The shape is read off the tensors. A HATFreq is a HAT with `layers.i.freq.*`; a file without them is a HAT, and stays
spandrel's. A `light` without frequency blocks is not opened: spandrel's HAT has no
`pixelshuffledirect`, and to take every file with that key for ours would be to guess what it adds up.
"""

import sys
from collections.abc import Mapping
from typing import Any

from spandrel import MAIN_REGISTRY, Architecture, ArchSupport, ImageModelDescriptor, ModelTiling, SizeRequirements

try:
    if "models.team08_HATFreq" in sys.modules:  # this repository is at work, not the package made from it
        raise ModuleNotFoundError
    from hatfreq import HATConfig, HATFreq
    from hatfreq.weights import WeightsError, describe, preset_name
except ModuleNotFoundError:
    from models.team08_HATFreq import HATConfig, HATFreq
    from models.team08_HATFreq.weights import WeightsError, describe, preset_name


class HATFreqArchitecture(Architecture[HATFreq]):
    """How spandrel recognises and builds a HATFreq: any preset, x2 to x4."""

    def __init__(self) -> None:
        super().__init__(id="HATFreq", detect=is_hatfreq)

    def load(self, state_dict: Mapping[str, Any]) -> ImageModelDescriptor[HATFreq]:
        """A descriptor of the network whose shape the tensors have; spandrel then loads them.

        Raises:
            WeightsError: not a HAT or HATFreq.
        """
        config = describe(state_dict)
        return ImageModelDescriptor(
            HATFreq(config),
            dict(state_dict),
            architecture=self,
            purpose="SR",
            tags=tags_of(config),
            supports_half=False,  # HAT overflows in fp16, and its FFT would
            supports_bfloat16=True,
            scale=config.scale,
            input_channels=3,
            output_channels=3,
            size_requirements=SizeRequirements(),  # the network pads by itself
            tiling=ModelTiling.SUPPORTED,  # the means and spectra of a tile cost hundredths of a dB
        )


def tags_of(config: HATConfig) -> list[str]:
    """What programs show beside the name: preset, frequency blocks, channels, window, groups."""
    preset = preset_name(config) or "custom"
    frequency = f"frequency-{config.frequency}"
    return [preset, frequency, f"{config.embed_dim}dim", f"w{config.window_size}", f"{len(config.depths)}groups"]


def is_hatfreq(state_dict: Mapping[str, Any]) -> bool:
    """Whether tensors are those of a HAT with frequency blocks."""
    if not any(key.startswith("layers.") and ".freq." in key for key in state_dict):
        return False
    try:
        return describe(state_dict).frequency != "none"
    except WeightsError:
        return False


def install() -> None:
    """Make HATFreq known to `spandrel.ModelLoader`; a second call changes nothing."""
    MAIN_REGISTRY.add(ArchSupport.from_architecture(HATFreqArchitecture(), before=("HAT",)), ignore_duplicates=True)


install()
