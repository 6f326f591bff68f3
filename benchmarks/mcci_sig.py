"""Why MCCI fails on SIG in ``defenses``: its AIN does not learn the stripes there. Here they come with the target's label to images of all classes.

Clean-label, only images of the target class carry the stripes, and the class alone says their label. With ``mcci_sig_unflipped``, where no flip turns
the stripes into their negative, and with SIG's row in ``defenses`` the two are told apart.
"""

from dataclasses import replace

from .cifar10_small import SUITE as SMALL

SUITE = replace(SMALL, name="mcci_sig", attacks=("sig[delta=40,label_mode=all-to-one]",), defenses=("none", "mcci[lr=1.0,inference=avg]"), rates=(0.03,))
