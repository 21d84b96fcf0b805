"""Builds to run programs on: the lanes and beats of real ones, with as little memory as they need.

What is small builds fast and simulates fast; where it is too small for a program, the generator
makes another.
"""

from dataclasses import replace

from alula.hw.arch import SIM

_SMALL = dict(rows=8, vector_elements=2048, activation_elements=2048, param_elements=1024,
              program_instructions=1024, queue_depth=8)
ARCHS = {
    "sim": SIM,  # 2 lanes, 32 bytes
    "one": replace(SIM, name="one", lanes=1, beat_bytes=64, lane_dsps=128, vector_width=16,
                   attention_elements=2048, attention_queries=32, merge_elements=4096,
                   prefetch_beats=1024, page_entries=128, **_SMALL),
    "four": replace(SIM, name="four", lanes=4, beat_bytes=16, lane_dsps=32, vector_width=4,
                    attention_elements=2048, attention_queries=32, merge_elements=4096,
                    prefetch_beats=1024, page_entries=128, **_SMALL),
}
