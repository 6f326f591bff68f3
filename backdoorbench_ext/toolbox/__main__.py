"""``python -m backdoorbench_ext.toolbox cbd --result_file badnet_0_1 --yaml_path ... --dataset
cifar10``.
"""

import sys

from ..errors import InputError
from .interface import main

if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except InputError as error:
        print(f"backdoorbench_ext.toolbox: {error}", file=sys.stderr)
        sys.exit(2)
