"""Scripts: each is `python -m launch.NAME`."""

from launch.allocator import keep_freed_memory

keep_freed_memory()  # here, because it must come before the scripts' imports
