"""``python -m backdoorbench_ext`` is ``bbx``."""

from .cli import main

main()
