"""``python -m backdoorbench_ext.toolbox cbd --result_file badnet_0_1 --yaml_path ... --dataset
cifar10``.
"""

import sys

from .interface import main, told

if __name__ == "__main__":
    told(main, sys.argv[1:])
