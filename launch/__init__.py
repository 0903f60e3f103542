"""Scripts: each is `python -m launch.NAME`."""

import sys

from dalle_jax import moved_modules
from launch.run.allocator import keep_freed_memory

moved_modules.install()
if sys.argv[:1] == ["-m"]:  # Python is looking for the script to run; whoever imports a part of one is left alone
    keep_freed_memory()  # here, because it must come before the scripts' imports
