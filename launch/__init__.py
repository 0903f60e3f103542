"""Scripts: each is `python -m launch.NAME`."""

import sys

from launch.run.allocator import keep_freed_memory

if sys.argv[:1] == ["-m"]:  # Python is looking for the script to run; whoever imports a part of one is left alone
    keep_freed_memory()  # here, because it must come before the scripts' imports
