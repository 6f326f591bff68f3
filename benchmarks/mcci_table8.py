"""MCCI's table 8: the smooth trigger beside table 4's attacks, and what fine-tuning on 25 clean
images does to it, on CIFAR-10.
"""

from dataclasses import replace

from .mcci_table4 import ATTACKS as BLURRED
from .mcci_table4 import SUITE as TABLE4
from .published import wide

DEFENSES = {"avg": "mcci[inference=avg]", "sg": "mcci[inference=sg]"}
TUNED = {"avg": "mcci[inference=avg,finetune=25]", "sg": "mcci[inference=sg,finetune=25]"}
ATTACKS = BLURRED | {"Smooth Trigger": "smooth"}

SUITE = replace(
    TABLE4,
    name="mcci_table8",
    attacks=tuple(ATTACKS.values()),
    defenses=(*DEFENSES.values(), *TUNED.values()),
    leave_out=tuple((attack, tuned) for attack in BLURRED.values() for tuned in TUNED.values()),
    reported=wide("mcci_table8", "technique", ATTACKS, DEFENSES)
    | wide("mcci_table8", "technique", {"After Finetuning": "smooth"}, TUNED),
)
