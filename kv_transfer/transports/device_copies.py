"""Copies out of a mapped pool by the target's GPU, on a stream beside the engine's."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from kv_transfer.transports.background import Flag
from kv_transfer.transports.checks import check_generations, check_sources
from kv_transfer.transports.framing import Frame, Generations, cut_frames
from kv_transfer.transports.gpu_copies import CopyQueue, Mark, copy_blocks
from kv_transfer.transports.interface import BlockMove
from pdserve.errors import PeerLost

AHEAD = 2
"""Frames given to the device before the first of them is waited for: it never runs dry, and an end is soon noticed."""


class DeviceCopies:
    """Copies between two pools that one device can reach.

    A frame's copy is enclosed by two looks at its generations, which lie in host memory: the second one is taken when
    the copy is over on the device, not when it was given. The source raises a generation on the host before it gives
    the next owner's work to its GPU, so equal before and after means that the copy is of the block that was named.
    """

    def __init__(self, source: Tensor, generations: memoryview, target: Tensor, queue: CopyQueue, lost: Flag) -> None:
        """`source`, `target`: pools as of gpu_copies.as_words. `lost` ends a copy between two frames."""
        assert source.shape[1:] == target.shape[1:] and source.dtype == target.dtype
        self.num_blocks, self.block_bytes = len(target), target[0].nbytes
        self._source: Tensor | None = source
        self._target = target
        self._generations: Generations | None = np.asanyarray(generations)
        self._queue = queue
        self._lost = lost

    def let_go(self) -> None:
        self._source = self._generations = None

    def copy(self, transfer_id: int, moves: Sequence[BlockMove]) -> None:
        under_way: deque[tuple[Frame, Mark]] = deque()
        try:
            for frame in cut_frames(moves, self.block_bytes):
                if self._lost.is_raised:
                    raise PeerLost("the source is gone")
                under_way.append((frame, self._begin(frame)))
                if len(under_way) == AHEAD:
                    self._finish(*under_way.popleft())
            while under_way:
                self._finish(*under_way.popleft())
        finally:
            self._queue.mark().wait()  # of a refused transfer too: its blocks are free again after this

    def _begin(self, frame: Frame) -> Mark:
        source, target = self._source, self._target
        assert source is not None
        check_sources(frame, len(source))
        check_generations(frame, self._generations)
        self._queue.give(lambda: copy_blocks(source, frame.sources, target, frame.targets))
        return self._queue.mark()

    def _finish(self, frame: Frame, copied: Mark) -> None:
        copied.wait()
        check_generations(frame, self._generations)
