"""Workloads of `launch.bench`, one module an area; `ROWS` lists them in the order in which they are printed."""

from launch.benchmarks import clip, codec, contrastive, decoder, inputs, loading, reading, text
from launch.benchmarks.workload import Row

ROWS: tuple[Row, ...] = (
    *decoder.ROWS,
    *codec.ROWS,
    *clip.ROWS,
    *contrastive.ROWS,
    *inputs.ROWS,
    *text.ROWS,
    *loading.ROWS,
    *reading.ROWS,
)
