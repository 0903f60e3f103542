"""Parts of `launch.plan`: chips and topologies, counting of FLOPs and bytes, and what follows from them."""
