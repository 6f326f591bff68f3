"""``mcci_sig`` without augmentation, clean-label too."""

from dataclasses import replace

from .attacks_unflipped import SUITE as UNFLIPPED
from .mcci_sig import SUITE as SIG

SUITE = replace(SIG, name="mcci_sig_unflipped", protocol=UNFLIPPED.protocol, attacks=("sig[delta=40]", *SIG.attacks))
