"""Workloads of `launch.bench`, one module an area; `ROWS` lists them in the order in which they are printed."""

from launch.bench_rows import clip, codec, contrastive, decoder, inputs, loading, reading, text
from launch.bench_rows.workload import Row

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
